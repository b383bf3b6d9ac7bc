"""ClusterService.Session, many calls of one client on one stream: for the controller, and for hosts.

What a call says is completed and checked here; what becomes of it then is the server's.
"""

from __future__ import annotations

import abc
import asyncio
import logging
from typing import TYPE_CHECKING

from enginery import _ids, _logs
from enginery._function_window import FunctionWindow
from enginery._methods import ANY_ENGINE
from enginery._reasons import DeliveryError
from enginery._replies import undelivered
from enginery._requests import parse
from enginery._server_stream import Stream
from enginery._wire import embed, tag
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

    from enginery._function_window import Function
    from enginery._open_streams import OpenStreams
    from enginery.v1 import frame_pb2

logger = logging.getLogger(__name__)

MAX_UNREAD = 64 << 20
"""Bytes of replies that a client may leave unread."""
MAX_TARGETS = 10_000
"""Engines of one call."""
METHOD = "/enginery.v1.ClusterService/Session"
_REPLY = tag(cluster_pb2.SessionResponse.REPLIES_FIELD_NUMBER)
_SESSION_BYTES = 8
_OPERATION_BYTES = 16


class SessionServer(abc.ABC):
    """Serves Session. One object for all streams."""

    def __init__(
        self, streams: OpenStreams, *, cluster_id: str, controller_epoch: int, max_unread: int = MAX_UNREAD
    ) -> None:
        """Count streams into `streams`; ids and epoch are what clients are told."""
        self._streams = streams
        self._max_unread = max_unread
        self._open: dict[bytes, ClientSession] = {}
        self._welcome = cluster_pb2.SessionResponse(
            welcome=cluster_pb2.SessionWelcome(cluster_id=cluster_id, controller_epoch=controller_epoch)
        ).SerializeToString()

    @abc.abstractmethod
    def submit(self, call: frame_pb2.Call, session: ClientSession, function: Function | None) -> None:
        """Send `call`, which may be changed, to its engine, and deliver the reply to `session`.

        `function` is the one that it names, if it does. `call` is another one after this returns.
        """

    @abc.abstractmethod
    def submit_task(self, call: frame_pb2.Call, session: ClientSession, function: Function | None) -> None:
        """The same with a call to any engine."""

    async def session(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Serve one stream until its client ends it; one that only sends no more gets its replies first."""
        settled = asyncio.Event()
        stream = Stream(context, limit=self._max_unread, on_over=settled.set)
        session = ClientSession(self, stream, settled, self._welcome, self._opened)
        try:
            async with self._streams.opened(stream):
                await stream.read_all(session.receive)
                await session.settle()
        finally:
            if self._open.get(session.session_id) is session:
                del self._open[session.session_id]

    def _opened(self, session: ClientSession) -> None:
        """End the older stream of the same session: its client has left it, even if that does not show yet."""
        older = self._open.pop(session.session_id, None)
        if older is not None:
            older.end(DeliveryError("SUPERSEDED"))
        self._open[session.session_id] = session


class ClientSession:
    """One client: takes its messages, and the replies to its calls."""

    def __init__(
        self,
        server: SessionServer,
        stream: Stream,
        settled: asyncio.Event,
        welcome: bytes,
        opened: Callable[[ClientSession], None],
    ) -> None:
        """Made by `server` for each stream."""
        self._server = server
        self._stream = stream
        self._settled = settled  # nothing is waited for, or can be delivered any more
        self._welcome = welcome
        self._opened = opened
        self.session_id = b""
        """Empty before its hello."""
        self._waiting = 0
        self._functions = FunctionWindow()

    @property
    def is_gone(self) -> bool:
        """Whether its stream has ended."""
        return self._stream.is_over

    def end(self, error: DeliveryError) -> None:
        """End its stream."""
        self._stream.end(error)

    async def settle(self) -> None:
        """Wait for the replies to come."""
        if self._waiting:
            self._settled.clear()
            if not self._stream.is_over:
                await self._settled.wait()

    def receive(self, data: bytes) -> None:
        """Handle one serialized SessionRequest."""
        message = parse(cluster_pb2.SessionRequest, data)
        if message.HasField("hello"):
            self._open(message.hello)
        elif not self.session_id:
            raise DeliveryError("PROTOCOL_ERROR", cause="the first message must hold a hello")
        for function in message.functions:
            self._functions.take_in(function.digest, function.pickle)
        for call in message.calls:
            self._submit(call)
        self._functions.trim()

    def _open(self, hello: cluster_pb2.SessionHello) -> None:
        if self.session_id:
            raise DeliveryError("PROTOCOL_ERROR", cause="a second hello on one session")
        if len(hello.session_id) != _SESSION_BYTES:
            cause = f"a session_id is {_SESSION_BYTES} bytes, not {len(hello.session_id)}"
            raise DeliveryError("PROTOCOL_ERROR", cause=cause)
        self.session_id = hello.session_id
        logger.debug("opens (%s)", hello.client_version, extra=_logs.about(client=hello.session_id))
        self._opened(self)
        self._stream.send(self._welcome)

    def _submit(self, call: frame_pb2.Call) -> None:
        if call.targets:
            self._submit_to_many(call)
            return
        self._waiting += 1
        try:
            self._complete(call)
            function = self._functions.named_by(call)
        except DeliveryError as error:
            self.deliver(undelivered(call.call_id, error))
            return
        if call.engine_id == ANY_ENGINE:
            self._server.submit_task(call, self, function)
            return
        if call.HasField("task"):
            call.ClearField("task")  # it is none
        self._server.submit(call, self, function)

    def _submit_to_many(self, call: frame_pb2.Call) -> None:
        """Call every target of `call`, each with an id of its own."""
        targets = [(target.engine_id, target.sent_epoch) for target in call.targets]
        first = call.call_id
        self._waiting += len(targets)
        problem, function = None, None
        try:
            function = self._check_many(call)
        except DeliveryError as error:
            problem = error
        call.ClearField("targets")
        call.ClearField("task")
        call.session_id = self.session_id
        for position, (engine_id, sent_epoch) in enumerate(targets):
            if problem is not None:
                self.deliver(undelivered(first + position, problem))
                continue
            # One message for all: each is made bytes before the next.
            call.call_id, call.engine_id, call.sent_epoch = first + position, engine_id, sent_epoch
            call.operation_id = _ids.operation_id(self.session_id, call.call_id)
            self._server.submit(call, self, function)

    def _check_many(self, call: frame_pb2.Call) -> Function | None:
        """Return the function that a call to many names, if it does; DeliveryError if it cannot be sent."""
        problem = ""
        if len(call.targets) > MAX_TARGETS:
            problem = f"{len(call.targets)} are more than {MAX_TARGETS}"
        elif call.operation_id:
            problem = "each of their operations has an id of its own: leave operation_id empty"
        if problem:
            raise DeliveryError("BAD_REQUEST", field="targets", cause=problem)
        return self._functions.named_by(call)

    def _complete(self, call: frame_pb2.Call) -> None:
        """Fill in what a client may leave out."""
        call.session_id = self.session_id
        if not call.operation_id:
            call.operation_id = _ids.operation_id(self.session_id, call.call_id)
        elif len(call.operation_id) != _OPERATION_BYTES:
            cause = f"it is {_OPERATION_BYTES} bytes, not {len(call.operation_id)}"
            raise DeliveryError("BAD_REQUEST", field="operation_id", cause=cause)

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Send a reply to the client, if it is still there."""
        self._waiting -= 1
        self._stream.send(embed(_REPLY, reply.SerializeToString()))
        if not self._waiting:
            self._settled.set()
