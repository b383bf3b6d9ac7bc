"""EngineService for every registered engine, by metadata: raw bytes in, raw bytes out.

The handlers come from the contract's descriptor, so a new method changes nothing here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from controller_service.answers import outcome_message
from controller_service.journal_records import Result
from controller_service.operations import ATTACH, UNARY
from controller_service.spread_upload import spread
from enginery import _ids
from enginery._metadata import cancels_on_disconnect, read_call, read_engine_ids, read_task
from enginery._methods import ANY_ENGINE, ENGINE_SERVICE, METHODS, OPERATION_ID_KEY, OPERATIONS, STREAMING
from enginery._requests import parse
from enginery.v1 import operation_pb2

if TYPE_CHECKING:
    from controller_service.any_engine import AnyEngine
    from controller_service.operations import Operations
    from controller_service.switchboard import Switchboard
    from controller_service.transfers import Transfers
    from enginery._engine import CallContext

_LAST_SEQUENCE = (1 << 64) - 1
_UPLOAD = METHODS["Upload"]
_Context = grpc.aio.ServicerContext[bytes, bytes]


class EngineRouter:
    """Serves EngineService."""

    def __init__(
        self, switchboard: Switchboard, operations: Operations, any_engine: AnyEngine, transfers: Transfers
    ) -> None:
        """Call the engines of `switchboard`, and those that `any_engine` chooses; streaming calls go by
        `transfers`, those about operations by `operations`."""
        self._switchboard = switchboard
        self._transfers = transfers
        self._operations = operations
        self._any_engine = any_engine

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of every rpc."""
        return grpc.method_handlers_generic_handler(
            ENGINE_SERVICE.full_name,
            {
                name: self._streaming(number) if number in STREAMING else self._unary(number)
                for name, number in METHODS.items()
            },
        )

    def _unary(self, number: int) -> grpc.RpcMethodHandler[bytes, bytes]:
        serve = self._operations.call if number in UNARY else self._switchboard.call

        async def behave(request: bytes, context: _Context) -> bytes:
            metadata = context.invocation_metadata() or ()
            engine_id, call = read_call(metadata)
            cancels = cancels_on_disconnect(metadata)
            await context.send_initial_metadata(((OPERATION_ID_KEY, _ids.show(call.operation_id)),))
            try:
                if engine_id == ANY_ENGINE:
                    task = read_task(metadata)
                    return (await self._any_engine.call(number, request, call, task)).response
                return (await serve(engine_id, number, request, call)).response
            except asyncio.CancelledError:
                if cancels and number in OPERATIONS and engine_id == ANY_ENGINE:
                    self._any_engine.cancel(call.operation_id)
                elif cancels and number in OPERATIONS and engine_id is not None:
                    self._switchboard.cancel(engine_id, call.operation_id)
                raise

        return grpc.unary_unary_rpc_method_handler(behave)

    def _streaming(self, number: int) -> grpc.RpcMethodHandler[bytes, bytes]:
        # On the wire one message is a stream of one, so every kind is relayed as a stream in both directions.
        async def behave(_requests: object, context: _Context) -> None:
            metadata = context.invocation_metadata() or ()
            engine_id, call = read_call(metadata)
            if number == ATTACH:
                await self._attach(engine_id, call, context)
            elif number == _UPLOAD and (engine_ids := read_engine_ids(metadata)):
                await spread(self._transfers, self._switchboard.engine, engine_ids, context)
            else:
                await self._transfers.relay(self._switchboard.engine(engine_id), number, context)

        return grpc.stream_stream_rpc_method_handler(behave)

    async def _attach(
        self, engine_id: int | None, call: CallContext, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        data = await context.read()
        request = data if isinstance(data, bytes) else b""
        found = await self._operations.locate(engine_id, request, call)
        if not isinstance(found, Result):
            engine, request = found
            await self._transfers.relay(engine, ATTACH, context, first=request)
            return
        # Its events are gone with its engine; how it ended is left.
        after = parse(operation_pb2.AttachRequest, request).after_sequence
        event = operation_pb2.OperationEvent(
            sequence=min(after, _LAST_SEQUENCE - 1) + 1, outcome=outcome_message(found)
        )
        event.event_time.FromMilliseconds(found.ended_ms)
        await context.write(operation_pb2.AttachResponse(events=[event]).SerializeToString())
