"""Streaming calls (Upload, Download): relayed message by message, so that a value is never held here.

The controller offers the call to the engine's host, which opens a Transfer for it, on a connection of its own.
Two pumps then pass on raw messages; each reads the next only when the one before is written, so that a slow
reader slows its writer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.rpc import status_pb2

from controller_service import frames
from enginery._engine import DEFAULT_VALUE_LIMIT
from enginery._reasons import Code, DeliveryError
from enginery._status import DETAILS_KEY
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from controller_service.reference import EngineFromReference

logger = logging.getLogger(__name__)

_ACCEPTANCE = 20.0  # seconds for a connected host to take an offer
_STALL = 120.0  # seconds without any message after which a transfer is given up
_HALF_CLOSE = 1.0  # seconds for a caller to say that it sends no more, after the host was content
_MESSAGE_OVERHEAD = 64  # bytes of a message that are not the value's
_END = engine_pb2.TransferResponse(end=True).SerializeToString()
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, eq=False)
class _Transfer:
    """One streaming call. `host` is the host's end, once it has accepted; `done` ends that."""

    host: asyncio.Future[_Context]
    done: asyncio.Event
    limit: int
    moved_at: float = 0.0
    moved_bytes: int = 0

    def moved(self, data: bytes) -> None:
        """Count a message; DeliveryError if the value is too large."""
        self.moved_at = asyncio.get_running_loop().time()
        self.moved_bytes += max(0, len(data) - _MESSAGE_OVERHEAD)
        if self.moved_bytes > self.limit:
            size, option = f"at least {self.moved_bytes}", "--value-limit of the controller"
            raise DeliveryError("VALUE_TOO_LARGE", size=size, limit=self.limit, option=option)


class Transfers:
    """All streaming calls: both ends of each."""

    def __init__(self, value_limit: int = DEFAULT_VALUE_LIMIT) -> None:
        """Start with none. A value of more than `value_limit` bytes is refused."""
        self._value_limit = value_limit
        self._offered: dict[str, _Transfer] = {}
        self._leftover: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many wait for their host."""
        return len(self._offered)

    async def relay(self, engine: EngineFromReference, method: int, caller: _Context) -> None:
        """Serve one streaming call of `caller` by the host of `engine`; DeliveryError if that cannot be."""
        transfer_id = secrets.token_hex(16)
        transfer = _Transfer(asyncio.get_running_loop().create_future(), asyncio.Event(), self._value_limit)
        self._offered[transfer_id] = transfer
        try:
            await engine.offer(transfer_id, method)
            try:
                host = await asyncio.wait_for(transfer.host, _ACCEPTANCE)
            except TimeoutError:
                raise DeliveryError("ENGINE_AWAY", engine_id=engine.engine_id) from None
            await self._pump(transfer, engine.engine_id, caller, host)
        finally:
            self._offered.pop(transfer_id, None)
            transfer.done.set()

    async def accept(self, _requests: object, context: _Context) -> None:
        """Serve ControllerService.Transfer: the host's end of one streaming call."""
        try:
            # Ending the read ends the rpc, which is what a host that says nothing deserves.
            data = await asyncio.wait_for(context.read(), _ACCEPTANCE)
            message = engine_pb2.TransferRequest.FromString(data if isinstance(data, bytes) else b"")
        except TimeoutError:
            raise DeliveryError("PROTOCOL_ERROR", cause="no accept came") from None
        except Exception as error:  # protobuf's DecodeError differs in class between its implementations
            raise DeliveryError("MALFORMED_MESSAGE", message="enginery.v1.TransferRequest") from error
        if message.WhichOneof("kind") != "accept":
            raise DeliveryError("PROTOCOL_ERROR", cause="the first message must hold accept")
        transfer = self._offered.pop(message.accept.transfer_id, None)
        if transfer is None or transfer.host.done():
            raise DeliveryError("TRANSFER_NOT_FOUND")
        transfer.host.set_result(context)
        await transfer.done.wait()

    async def close(self) -> None:
        """Wait for what is left of finished transfers; their rpcs are over by now."""
        for task in self._leftover:
            task.cancel()
        await asyncio.gather(*self._leftover, return_exceptions=True)

    async def _pump(self, transfer: _Transfer, engine_id: int, caller: _Context, host: _Context) -> None:
        up = asyncio.create_task(_to_host(transfer, caller, host))
        down = asyncio.create_task(_from_host(transfer, engine_id, caller, host))
        try:
            await _watch(transfer, up, down)
            status = await down
        except BaseException:
            # The caller has gone, or the host has: ending a read of a dead rpc harms nobody.
            down.cancel()
            up.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            raise
        self._keep(up)
        if status.code != Code.OK:
            details = ((DETAILS_KEY, status.SerializeToString()),)
            await caller.abort(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, details)
        await asyncio.wait({up}, timeout=_HALF_CLOSE)

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Own a pump that may still read from a caller; it ends with the caller's rpc, which ends now."""
        self._leftover.add(task)
        task.add_done_callback(self._leftover.discard)


async def _watch(transfer: _Transfer, up: asyncio.Task[None], down: asyncio.Task[status_pb2.Status]) -> None:
    """Return once `down` is done; raise what `up` raised, or if nothing moves for too long."""
    loop = asyncio.get_running_loop()
    transfer.moved_at = loop.time()
    while not down.done():
        left = transfer.moved_at + _STALL - loop.time()
        if left <= 0:
            raise DeliveryError("CONTROLLER_LOST", cause=f"the transfer stood still for {_STALL:g} s")
        running: set[asyncio.Task[Any]] = {task for task in (up, down) if not task.done()}
        await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if up.done():
            await up


async def _to_host(transfer: _Transfer, caller: _Context, host: _Context) -> None:
    """Pass on the caller's requests. If a stream fails, the other direction says why."""
    try:
        while isinstance(data := await caller.read(), bytes):
            transfer.moved(data)
            await host.write(frames.embed(frames.TO_HOST, data))
        await host.write(_END)
    except DeliveryError:
        raise
    except Exception as error:  # a dead stream shows itself by many types
        logger.debug("a transfer stopped sending to its host: %r", error)


async def _from_host(
    transfer: _Transfer, engine_id: int, caller: _Context, host: _Context
) -> status_pb2.Status:
    """Pass on the host's responses and return its status."""
    while isinstance(data := await host.read(), bytes):
        transfer.moved(data)
        message = frames.transferred(data)
        if message is None:
            request = engine_pb2.TransferRequest.FromString(data)
            if request.WhichOneof("kind") == "status":
                return status_pb2.Status.FromString(request.status)
            if request.WhichOneof("kind") != "message":
                raise DeliveryError("PROTOCOL_ERROR", cause="a transfer carries messages, then a status")
            message = request.message
        await caller.write(message)
    raise DeliveryError("ENGINE_AWAY", engine_id=engine_id)
