"""Streaming calls (Upload, Download, Attach): relayed message by message, so that a value is never held here.

The controller offers the call to the engine's host, which opens a Transfer for it, on a connection of its own.
Two pumps then pass on raw messages; each reads the next only when the one before is written, so that a slow
reader slows its writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio
from google.rpc import status_pb2

from controller_service import frames
from enginery._engine import DEFAULT_VALUE_LIMIT
from enginery._methods import METHODS
from enginery._reasons import Code, DeliveryError
from enginery._requests import parse
from enginery._serving import abort
from enginery._status import DETAILS_KEY, to_proto
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from controller_service.reference import EngineFromReference

logger = logging.getLogger(__name__)

_ACCEPTANCE = 20.0  # seconds for a connected host to take an offer
_STALL = 120.0  # seconds without any message after which a transfer is given up
_DRAIN = 2.0  # seconds for a caller to say that it sends no more, after the host has answered
_MESSAGE_OVERHEAD = 64  # bytes of a message that are not the value's
_END = engine_pb2.TransferResponse(end=True).SerializeToString()
_EVENTS = frozenset({METHODS["Attach"]})  # streams of events, not the bytes of a value
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Result = TypeVar("_Result")
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, eq=False)
class _Transfer:
    """One streaming call. `host` is the host's end, once it has accepted; `done` ends that."""

    limit: float
    """Bytes that may pass; infinite for events."""
    stall: float | None
    """Seconds without a message after which it is given up; None for events, which may be rare."""
    host: asyncio.Future[_Context]
    refused: asyncio.Future[DeliveryError]
    first: bytes | None
    """A request of the caller that was read before."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while something is written to the host, whose end must not come before."""
    answered: bool = False
    moved_at: float = 0.0
    moved_bytes: int = 0

    def moved(self, data: bytes) -> None:
        """Count a message, and refuse the value if it is too large."""
        self.moved_at = asyncio.get_running_loop().time()
        self.moved_bytes += max(0, len(data) - _MESSAGE_OVERHEAD)
        if self.moved_bytes > self.limit and not self.refused.done():
            size, option = f"at least {self.moved_bytes}", "--value-limit of the controller"
            self.refused.set_result(
                DeliveryError("VALUE_TOO_LARGE", size=size, limit=self.limit, option=option)
            )


class Transfers:
    """All streaming calls: both ends of each."""

    def __init__(self, value_limit: int = DEFAULT_VALUE_LIMIT) -> None:
        """Start with none. A value of more than `value_limit` bytes is refused."""
        self._value_limit = value_limit
        self._offered: dict[str, _Transfer] = {}
        self.running: set[_Transfer] = set()
        self._pumps: set[asyncio.Task[Any]] = set()
        self._closed: DeliveryError | None = None

    def __len__(self) -> int:
        """Return how many directions of transfers are running."""
        return len(self._pumps)

    async def relay(
        self,
        engine: EngineFromReference,
        method: int,
        caller: _Context,
        *,
        first: bytes | None = None,
        other_engine_ids: Sequence[int] = (),
    ) -> None:
        """Serve one streaming call of `caller` by the host of `engine`; DeliveryError if that cannot be.

        `first` is a request that was read already. An upload may be for other engines of the same host, too.
        """
        if self._closed is not None:
            raise self._closed
        transfer_id = secrets.token_hex(16)
        loop = asyncio.get_running_loop()
        limit, stall = (math.inf, None) if method in _EVENTS else (self._value_limit, _STALL)
        transfer = _Transfer(limit, stall, loop.create_future(), loop.create_future(), first)
        self._offered[transfer_id] = transfer
        self.running.add(transfer)
        try:
            await engine.offer(transfer_id, method, other_engine_ids)
            try:
                host = await asyncio.wait_for(transfer.host, _ACCEPTANCE)
            except TimeoutError:
                raise DeliveryError("ENGINE_AWAY", engine_id=engine.engine_id) from None
            await self._pump(transfer, engine.engine_id, caller, host)
        finally:
            self._offered.pop(transfer_id, None)
            self.running.discard(transfer)
            transfer.done.set()

    async def accept(self, _requests: object, context: _Context) -> None:
        """Serve ControllerService.Transfer: the host's end of one streaming call."""
        data = await context.read()  # a host that says nothing is noticed by keepalive
        message = parse(engine_pb2.TransferRequest, data if isinstance(data, bytes) else b"")
        if message.WhichOneof("kind") != "accept":
            raise DeliveryError("PROTOCOL_ERROR", cause="the first message must hold accept")
        transfer = self._offered.pop(message.accept.transfer_id, None)
        if transfer is None or transfer.host.done():
            raise DeliveryError("TRANSFER_NOT_FOUND")
        transfer.host.set_result(context)
        await transfer.done.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN), transfer.writing:
                pass
        if not transfer.answered:
            raise DeliveryError("TRANSFER_NOT_FOUND")  # the caller has gone, or was refused

    def end_all(self, error: DeliveryError) -> None:
        """End every transfer that runs, and refuse new ones, with `error`."""
        self._closed = error
        for transfer in self.running:
            if not transfer.refused.done():
                transfer.refused.set_result(error)

    async def drain(self, caller: _Context) -> None:
        """Drop what a caller still sends, for a while: in the middle of a write it would learn that the write
        failed instead of why."""
        await asyncio.wait({self._start(_drop(caller))}, timeout=_DRAIN)

    async def close(self) -> None:
        """Wait for the pumps; their rpcs are over by now, and that ends them."""
        if self._pumps:
            _, stuck = await asyncio.wait(self._pumps, timeout=_DRAIN)
            for task in stuck:
                task.cancel()

    async def _pump(self, transfer: _Transfer, engine_id: int, caller: _Context, host: _Context) -> None:
        # Neither is cancelled: a cancelled read would leave its rpc without an end. They end with their rpcs.
        up = self._start(_to_host(transfer, caller, host))
        down = self._start(_from_host(transfer, engine_id, caller, host))
        try:
            status = await _outcome(transfer, down)
            transfer.answered = True
        except DeliveryError as error:
            status = to_proto(error)
        transfer.done.set()
        # A caller in the middle of a write would learn that the write failed instead of why.
        await asyncio.wait({up}, timeout=_DRAIN)
        if status.code != Code.OK:
            details = ((DETAILS_KEY, status.SerializeToString()),)
            await abort(caller, _CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, details)

    def _start(self, pump: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        task = asyncio.create_task(pump)
        self._pumps.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._pumps.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a transfer ended: %r", task.exception())


async def _outcome(transfer: _Transfer, down: asyncio.Task[status_pb2.Status]) -> status_pb2.Status:
    """Return the host's status; DeliveryError if the value is too large, or nothing moves for too long."""
    loop = asyncio.get_running_loop()
    transfer.moved_at = loop.time()
    while not down.done():
        left = None if transfer.stall is None else transfer.moved_at + transfer.stall - loop.time()
        if left is not None and left <= 0:
            raise DeliveryError("CONTROLLER_LOST", cause=f"the transfer stood still for {transfer.stall:g} s")
        await asyncio.wait({down, transfer.refused}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if transfer.refused.done():
            raise transfer.refused.result()
    return down.result()


async def _to_host(transfer: _Transfer, caller: _Context, host: _Context) -> None:
    """Pass on the caller's requests; once the host has answered or failed, drop what still comes."""
    is_open = True
    if transfer.first is not None:
        is_open = await _write(transfer, host, frames.embed(frames.TO_HOST, transfer.first))
    while isinstance(data := await caller.read(), bytes):
        transfer.moved(data)
        is_open = is_open and not transfer.done.is_set() and not transfer.refused.done()
        is_open = is_open and await _write(transfer, host, frames.embed(frames.TO_HOST, data))
    if is_open and not transfer.done.is_set():
        await _write(transfer, host, _END)


async def _drop(caller: _Context) -> None:
    while isinstance(await caller.read(), bytes):
        pass


async def _write(transfer: _Transfer, host: _Context, message: bytes) -> bool:
    """Return whether the host could be written to; if not, the other direction learns why."""
    try:
        async with transfer.writing:
            await host.write(message)
    except Exception as error:  # a dead stream shows itself by many types
        logger.debug("a transfer can no longer be written: %r", error)
        return False
    return True


async def _from_host(
    transfer: _Transfer, engine_id: int, caller: _Context, host: _Context
) -> status_pb2.Status:
    """Pass on the host's responses and return its status."""
    while isinstance(data := await _read(host), bytes):
        transfer.moved(data)
        message = frames.transferred(data)
        if message is None:
            request = parse(engine_pb2.TransferRequest, data)
            if request.WhichOneof("kind") == "status":
                return parse(status_pb2.Status, request.status)
            if request.WhichOneof("kind") != "message":
                raise DeliveryError("PROTOCOL_ERROR", cause="a transfer carries messages, then a status")
            message = request.message
        try:
            await caller.write(message)
        except Exception as error:  # grpc has no public type for a caller who has gone
            logger.debug("the caller of a transfer has gone: %r", error)
            raise asyncio.CancelledError from None
    raise DeliveryError("ENGINE_AWAY", engine_id=engine_id)


async def _read(host: _Context) -> object:
    """Return the next message of the host, something else at its end."""
    try:
        return await host.read()
    except Exception as error:  # a dead stream shows itself by many types
        logger.debug("a transfer can no longer be read: %r", error)
        return None
