"""Transfers: streaming calls that the controller relays, each on a Transfer stream that the host opens.

They have a channel, and so a connection, of their own: calls never wait behind bulk.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.rpc import status_pb2

from enginery import _logs, _status
from enginery._channel import open_channel
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery._wire import embed, sole_field, tag
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from engine_service.engine import Engine
    from enginery._connection_file import ConnectionInfo
    from enginery._encoded import Buffer

    Call = grpc.aio.StreamStreamCall[Any, Any]  # of serialized TransferRequest and TransferResponse

logger = logging.getLogger(__name__)

METHOD = "/enginery.v1.ControllerService/Transfer"
_FROM_CALLER = tag(engine_pb2.TransferResponse.MESSAGE_FIELD_NUMBER)
_TO_CALLER = tag(engine_pb2.TransferRequest.MESSAGE_FIELD_NUMBER)
MAX_RUNNING = 64
MAX_OFFERS = 1_000
"""Transfers of values that run at a time; transfers that run or wait, attached callers among them."""


class Transfers:
    """The transfers of one registration stream."""

    def __init__(self, info: ConnectionInfo, engines: Mapping[int, Engine]) -> None:
        """Relay to `engines`, by id."""
        self._info = info
        self._engines = engines
        self._channel = open_channel(info)
        self._slots = asyncio.Semaphore(MAX_RUNNING)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many run or wait."""
        return len(self._tasks)

    def connect(self) -> None:
        """Connect in the background, so that the first transfer does not wait for it."""
        self._channel.get_state(try_to_connect=True)

    def start(self, offer: engine_pb2.TransferOffer) -> None:
        """Take up an offer, unless there are too many: it then expires at the controller."""
        if len(self._tasks) >= MAX_OFFERS:
            about = _logs.about(engine=offer.engine_id)
            logger.warning("over %d transfers run or wait; one is dropped", MAX_OFFERS, extra=about)
            return
        task = asyncio.create_task(self._run(offer), name=f"transfer for engine {offer.engine_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all transfers."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._channel.close()

    async def _run(self, offer: engine_pb2.TransferOffer) -> None:
        open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            METHOD,
            request_serializer=None,
            response_deserializer=None,
        )
        call: Call = open_stream(metadata=self._info.metadata)
        try:
            # At once, since the controller takes one that is not accepted for a host that is not there.
            accept = engine_pb2.TransferAccept(transfer_id=offer.transfer_id)
            await call.write(engine_pb2.TransferRequest(accept=accept).SerializeToString())
            if offer.method == frame_pb2.METHOD_ATTACH:  # lasts as long as its operation, and moves little
                status = await self._serve(offer, call)
            else:
                async with self._slots:
                    status = await self._serve(offer, call)
            ended = engine_pb2.TransferRequest(status=status.SerializeToString())
            await call.write(ended.SerializeToString())
            await call.done_writing()
            while isinstance(await call.read(), bytes):
                pass  # what the caller sent after it was refused
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            about = _logs.about(engine=offer.engine_id)
            logger.debug("a transfer ended early: %s", error, extra=about)
        finally:
            call.cancel()

    async def _serve(self, offer: engine_pb2.TransferOffer, call: Call) -> status_pb2.Status:
        """Run the streaming call and return the status that the caller is to see."""
        try:
            engine = self._engines.get(offer.engine_id)
            if engine is None:
                ids = ", ".join(map(str, sorted(self._engines)))
                raise DeliveryError("INVALID_ENGINE_ID", engine_id=offer.engine_id, engine_ids=ids)
            requests = _requests(call)
            if offer.method == frame_pb2.METHOD_UPLOAD:
                others = [self._engines[one] for one in offer.other_engine_ids if one in self._engines]
                response = await engine.upload(requests, others)
                await call.write(embed(_TO_CALLER, response))
            elif offer.method == frame_pb2.METHOD_DOWNLOAD:
                await _answer(engine.download, requests, call)
            elif offer.method == frame_pb2.METHOD_ATTACH:
                _end_with(call)
                await _answer(engine.attach, requests, call)
            else:
                raise DeliveryError("UNKNOWN_METHOD", method=f"{offer.method} in a transfer")
        except DeliveryError as error:
            return _status.to_proto(error)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise  # the stream itself is over
        except Exception as error:
            logger.exception("defect in a transfer", extra=_logs.about(engine=offer.engine_id))
            cause = f"{type(error).__name__}: {error}"
            return _status.to_proto(DeliveryError("INTERNAL", cause=cause, process="engine host"))
        return status_pb2.Status()  # code 0 is OK


async def _requests(call: Call) -> AsyncIterator[Buffer]:
    while isinstance(data := await call.read(), bytes):
        message = sole_field(_FROM_CALLER, data)
        if message is None:
            response = parse(engine_pb2.TransferResponse, data)
            if response.end:
                return
            yield response.message
        else:
            yield message


async def _answer(
    respond: Callable[[bytes], AsyncGenerator[bytes]], requests: AsyncIterator[Buffer], call: Call
) -> None:
    """Serve a call of one request and a stream of responses."""
    request, more = await anext(requests, None), await anext(requests, None)
    if request is None or more is not None:
        raise DeliveryError("PROTOCOL_ERROR", cause="the call has one request")
    responses = respond(bytes(request))
    try:
        async for message in responses:
            await call.write(embed(_TO_CALLER, message))
    finally:
        await responses.aclose()


def _end_with(call: Call) -> None:
    """Cancel this task when its stream is over: without events it would not learn that the caller has gone.

    gRPC tells of the end only when all that came before was read.
    """
    task = asyncio.current_task()
    assert task is not None

    def end(_call: object) -> None:
        task.cancel()

    call.add_done_callback(end)
