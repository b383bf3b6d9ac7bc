"""EngineService as the host serves it: raw bytes between gRPC and the engine that the caller names."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from engine_service.engine import Engine
from enginery import _ids
from enginery._metadata import cancels_on_disconnect, read_call
from enginery._methods import ENGINE_SERVICE, METHODS, OPERATION_ID_KEY, OPERATIONS
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    Context = grpc.aio.ServicerContext[Any, Any]


def engine_handlers(engines: Sequence[Engine]) -> grpc.GenericRpcHandler:
    """Return handlers of all rpcs of EngineService over `engines`, which may come and go in the sequence."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for rpc in ENGINE_SERVICE.methods:
        if rpc.client_streaming:
            handlers[rpc.name] = grpc.stream_unary_rpc_method_handler(_upload(engines))
        elif rpc.server_streaming:
            open_stream = Engine.attach if rpc.name == "Attach" else Engine.download
            handlers[rpc.name] = grpc.unary_stream_rpc_method_handler(_streaming(engines, open_stream))
        else:
            handlers[rpc.name] = grpc.unary_unary_rpc_method_handler(_unary(engines, METHODS[rpc.name]))
    return grpc.method_handlers_generic_handler(ENGINE_SERVICE.full_name, handlers)


def _unary(engines: Sequence[Engine], method: int) -> Callable[..., Any]:
    async def behave(request: bytes, context: Context) -> bytes:
        metadata = context.invocation_metadata() or ()
        engine_id, call = read_call(metadata)
        engine = find(engines, engine_id)
        await context.send_initial_metadata(((OPERATION_ID_KEY, _ids.show(call.operation_id)),))
        cancels = method in OPERATIONS and cancels_on_disconnect(metadata)
        try:
            return (await engine.call(method, request, call)).response
        except asyncio.CancelledError:
            if cancels:
                with contextlib.suppress(DeliveryError):  # it has ended just now, and was released
                    engine.cancel(engine.operations.find(call.operation_id))
            raise

    return behave


def _upload(engines: Sequence[Engine]) -> Callable[..., Any]:
    async def behave(requests: AsyncIterator[bytes], context: Context) -> bytes:
        engine_id, _ = read_call(context.invocation_metadata() or ())
        return await find(engines, engine_id).upload(requests)

    return behave


def _streaming(
    engines: Sequence[Engine], open_stream: Callable[[Engine, bytes], AsyncGenerator[bytes]]
) -> Callable[..., Any]:
    async def behave(request: bytes, context: Context) -> AsyncIterator[bytes]:
        engine_id, _ = read_call(context.invocation_metadata() or ())
        responses = open_stream(find(engines, engine_id), request)
        try:
            async for response in responses:
                yield response
        finally:
            await responses.aclose()

    return behave


def find(engines: Sequence[Engine], engine_id: int | None) -> Engine:
    """Return the engine of that id; without an id the only one there is. DeliveryError if there is none."""
    for engine in engines:
        if engine.engine_id == engine_id and not engine.is_stopping:
            return engine
    living = [engine for engine in engines if not engine.is_stopping]
    if not living:
        raise DeliveryError("NO_ENGINES_REGISTERED")
    if engine_id is None and len(living) == 1:
        return living[0]
    ids = ", ".join(str(engine.engine_id) for engine in living)
    if engine_id is None:
        raise DeliveryError("MISSING_ENGINE_ID", engine_ids=ids)
    raise DeliveryError("INVALID_ENGINE_ID", engine_id=engine_id, engine_ids=ids)
