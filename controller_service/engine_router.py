"""EngineService for every registered engine, by metadata: raw bytes in, raw bytes out.

The handlers come from the contract's descriptor, so a new method changes nothing here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import grpc.aio

from enginery import _ids
from enginery._metadata import read_call
from enginery._methods import ENGINE_SERVICE, METHODS, OPERATION_ID_KEY, STREAMING

if TYPE_CHECKING:
    from controller_service.switchboard import Switchboard
    from controller_service.transfers import Transfers

_Context = grpc.aio.ServicerContext[bytes, bytes]


class EngineRouter:
    """Serves EngineService."""

    def __init__(self, switchboard: Switchboard, transfers: Transfers) -> None:
        """Call the engines of `switchboard`; streaming calls go by `transfers`."""
        self._switchboard = switchboard
        self._transfers = transfers

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
        async def behave(request: bytes, context: _Context) -> bytes:
            engine_id, call = read_call(context.invocation_metadata() or ())
            engine = self._switchboard.engine(engine_id)
            await context.send_initial_metadata(((OPERATION_ID_KEY, _ids.show(call.operation_id)),))
            return (await engine.call(number, request, call)).response

        return grpc.unary_unary_rpc_method_handler(behave)

    def _streaming(self, number: int) -> grpc.RpcMethodHandler[bytes, bytes]:
        # On the wire one message is a stream of one, so every kind is relayed as a stream in both directions.
        async def behave(_requests: object, context: _Context) -> None:
            engine_id, _ = read_call(context.invocation_metadata() or ())
            await self._transfers.relay(self._switchboard.engine(engine_id), number, context)

        return grpc.stream_stream_rpc_method_handler(behave)
