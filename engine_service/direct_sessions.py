"""ClusterService.Session as a host serves it on its own port: the calls of its engines, past the controller."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from engine_service.servicer import find
from enginery._engine import CallContext, CallReply, read_context
from enginery._methods import ANY_ENGINE
from enginery._reasons import DeliveryError
from enginery._replies import undelivered
from enginery._session_server import ClientSession, SessionServer
from enginery.v1 import cluster_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine_service.engine import Engine
    from engine_service.operation import Answer
    from enginery._function_window import Function
    from enginery._open_streams import OpenStreams

_CLUSTER_SERVICE = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name


class DirectSessions(SessionServer):
    """Serves Session for the engines of this host. One object for all streams."""

    def __init__(
        self,
        engines: Sequence[Engine],
        streams: OpenStreams,
        cluster_id: str,
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `engines`, as far as they are registered; `on_call` is told of each call."""
        super().__init__(streams, cluster_id=cluster_id, controller_epoch=0)
        self._engines = engines
        self._on_call = on_call

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handler of the one rpc of ClusterService that a host serves."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Session": grpc.stream_stream_rpc_method_handler(self.session)
        }
        return grpc.method_handlers_generic_handler(_CLUSTER_SERVICE, handlers)

    def submit(self, call: frame_pb2.Call, session: ClientSession, function: Function | None) -> None:
        """Have the engine answer it."""
        engine_id, call_id = call.engine_id, call.call_id
        try:
            if engine_id < 0:  # as that of an engine is that is not registered
                raise DeliveryError("INVALID_ENGINE_ID", engine_id=engine_id, engine_ids="")
            engine = find(self._engines, engine_id)
            if call.sent_epoch and call.sent_epoch != engine.epoch:
                cause = "its registration has ended"
                raise DeliveryError("ENGINE_LOST", engine_id=engine_id, cause=cause)
            if call.HasField("options"):
                context = read_context(
                    call.operation_id, session.session_id, call.options, known=False, function=function
                )
            else:
                context = CallContext(call.operation_id, session.session_id, function=function)
        except DeliveryError as error:
            session.deliver(undelivered(call_id, error))
            return
        engine.submit(call.method, call.request, context, partial(_deliver, session, call_id))
        self._on_call()

    def submit_task(self, call: frame_pb2.Call, session: ClientSession, function: Function | None) -> None:
        """Refuse it: whoever chooses an engine must know all of them."""
        error = DeliveryError("INVALID_ENGINE_ID", engine_id=ANY_ENGINE, engine_ids="")
        session.deliver(undelivered(call.call_id, error))


def _deliver(session: ClientSession, call_id: int, answer: Answer) -> None:
    if isinstance(answer, CallReply):
        reply = frame_pb2.Reply(
            call_id=call_id,
            outcome=frame_pb2.Outcome.ValueType(answer.outcome),
            response=answer.response,
        )
    else:
        reply = undelivered(call_id, answer)
    session.deliver(reply)
