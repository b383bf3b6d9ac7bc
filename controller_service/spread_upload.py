"""One upload for several engines: each message of the caller goes to all of them.

Each engine has a transfer of its own, whose caller is a leg of this one. The slowest engine sets the pace. One
that takes nothing for too long is left behind: whom the response does not name is to be sent the value alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio

from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery._serving import abort
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from controller_service.reference import EngineFromReference
    from controller_service.transfers import Transfers

logger = logging.getLogger(__name__)

_AHEAD = 2  # messages that wait for one engine
_PATIENCE = 10.0  # seconds that an engine may take none, while the others wait for it

_Context = grpc.aio.ServicerContext[Any, Any]


class _Refused(grpc.aio.AbortError):  # what `abort` of a caller raises
    """The engine's host ended its transfer with a status."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        super().__init__(text)
        self.status = (code, text, trailing)


class Leg:
    """The caller of one engine's transfer: what the real caller sends is put here."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.response = b""
        self.is_over = False
        """Whether nobody reads any more."""
        self._messages: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._is_ended = False

    async def put(self, data: bytes) -> None:
        """Wait until the engine has taken most of what came before; TimeoutError if it takes nothing."""
        while len(self._messages) >= _AHEAD and not self.is_over:
            self._changed.clear()
            async with asyncio.timeout(_PATIENCE):
                await self._changed.wait()
        if not self.is_over:
            self._messages.append(data)
            self._changed.set()

    def end(self) -> None:
        """Let what waits be read, and then the end."""
        self._is_ended = True
        self._changed.set()

    def over(self) -> None:
        """Note that nobody reads any more."""
        self.is_over = True
        self._messages.clear()
        self.end()

    # ---- what a transfer does with its caller

    async def read(self) -> object:
        """Return the next message; EOF at the end."""
        while not self._messages:
            if self._is_ended:
                return grpc.aio.EOF
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._changed.set()
        return message

    async def write(self, data: bytes) -> None:
        """Take the response."""
        self.response = data

    async def abort(
        self, code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, bytes], ...]
    ) -> NoReturn:
        """Take a status that is not OK."""
        raise _Refused(code, text, trailing)


async def spread(
    transfers: Transfers,
    find: Callable[[int], EngineFromReference],
    engine_ids: Sequence[int],
    caller: _Context,
) -> None:
    """Serve an upload of `caller` for engines, and answer which of them have it.

    `find` returns an engine or raises DeliveryError. If none has it, this ends as the upload to the first does.
    """
    legs = [Leg() for _ in engine_ids]
    calls = [
        asyncio.create_task(_carry(transfers, find, engine_id, leg), name=f"upload to engine {engine_id}")
        for engine_id, leg in zip(engine_ids, legs, strict=True)
    ]
    try:
        while isinstance(data := await caller.read(), bytes):
            left_behind = await asyncio.gather(*(leg.put(data) for leg in legs), return_exceptions=True)
            for engine_id, leg, call, error in zip(engine_ids, legs, calls, left_behind, strict=True):
                if error is not None:
                    logger.warning("engine %d took nothing of an upload for %g s", engine_id, _PATIENCE)
                    leg.over()
                    call.cancel()
            if all(leg.is_over for leg in legs):
                await transfers.drain(caller)
                break
        for leg in legs:
            leg.end()
        failures = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        for leg, call in zip(legs, calls, strict=True):
            leg.over()
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    there = [engine_id for engine_id, failure in zip(engine_ids, failures, strict=True) if failure is None]
    if there:
        whole = next(leg.response for leg, failure in zip(legs, failures, strict=True) if failure is None)
        # Joined, serialized messages are one.
        await caller.write(whole + engine_pb2.UploadResponse(engine_ids=there).SerializeToString())
        return
    first = failures[0]
    if isinstance(first, _Refused):
        await abort(caller, *first.status)
    if isinstance(first, asyncio.CancelledError):
        raise DeliveryError("ENGINE_AWAY", engine_id=engine_ids[0])
    assert isinstance(first, BaseException)
    raise first


async def _carry(
    transfers: Transfers, find: Callable[[int], EngineFromReference], engine_id: int, leg: Leg
) -> None:
    """Relay one leg to its engine."""
    try:
        await transfers.relay(find(engine_id), METHODS["Upload"], leg)  # type: ignore[arg-type]  # as one that calls
    finally:
        leg.over()
