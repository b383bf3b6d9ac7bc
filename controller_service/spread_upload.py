"""One upload for several engines: each message of the caller goes once to each of their hosts.

Each host has a transfer of its own, whose caller is a leg of this one. The slowest host sets the pace. One
that takes nothing for too long is left behind: whom the response does not name is to be sent the value alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio

from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery._serving import abort
from enginery._status import from_parts
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
    """The caller of one host's transfer: what the real caller sends is put here."""

    def __init__(self, engine_ids: Sequence[int]) -> None:
        """Begin with nothing, for engines of one host."""
        self.engine_ids = engine_ids
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

    `find` returns an engine or raises DeliveryError. If none has it, this ends as the upload to the first does,
    or, if some have a part of it, by saying how much all of those have.
    """
    legs = [Leg(ids) for ids in _by_host(find, engine_ids)]
    calls = [
        asyncio.create_task(_carry(transfers, find, leg), name=f"upload to engines {leg.engine_ids}")
        for leg in legs
    ]
    try:
        while isinstance(data := await caller.read(), bytes):
            left_behind = await asyncio.gather(*(leg.put(data) for leg in legs), return_exceptions=True)
            for leg, call, error in zip(legs, calls, left_behind, strict=True):
                if error is not None:
                    logger.warning("engines %s took nothing of an upload for %g s", leg.engine_ids, _PATIENCE)
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
    whole = [leg.response for leg, failure in zip(legs, failures, strict=True) if failure is None]
    if whole:
        there = [
            id_ for leg, failure in zip(legs, failures, strict=True) if failure is None for id_ in _have_it(leg)
        ]
        response = engine_pb2.UploadResponse.FromString(whole[0])
        del response.engine_ids[:]
        response.engine_ids.extend(sorted(there, key=engine_ids.index))
        await caller.write(response.SerializeToString())
        return
    failure = min(failures, key=_offset)
    if isinstance(failure, _Refused):
        await abort(caller, *failure.status)
    if isinstance(failure, asyncio.CancelledError):
        raise DeliveryError("ENGINE_AWAY", engine_id=engine_ids[0])
    assert isinstance(failure, BaseException)
    raise failure


def _by_host(find: Callable[[int], EngineFromReference], engine_ids: Sequence[int]) -> list[list[int]]:
    """Return the engines, those together to which one transfer goes."""
    groups: list[tuple[EngineFromReference | None, list[int]]] = []
    for engine_id in engine_ids:
        try:
            engine = find(engine_id)
        except DeliveryError:
            groups.append((None, [engine_id]))  # its leg will say so
            continue
        for first, ids in groups:
            if first is not None and first.shares_host_with(engine):
                ids.append(engine_id)
                break
        else:
            groups.append((engine, [engine_id]))
    return [ids for _, ids in groups]


def _have_it(leg: Leg) -> Sequence[int]:
    named = engine_pb2.UploadResponse.FromString(leg.response).engine_ids
    return [one for one in leg.engine_ids if one in named] if named else leg.engine_ids[:1]


def _offset(failure: object) -> float:
    """Return how much of the blob is where an upload failed so; infinity if that is not why it failed."""
    if isinstance(failure, _Refused):
        error = from_parts(*failure.status)
        if error.reason == "UPLOAD_INCOMPLETE":
            return int(error.metadata["offset"])
    return math.inf


async def _carry(transfers: Transfers, find: Callable[[int], EngineFromReference], leg: Leg) -> None:
    """Relay one leg to its host."""
    first, *others = leg.engine_ids
    try:
        await transfers.relay(find(first), METHODS["Upload"], leg, other_engine_ids=others)  # type: ignore[arg-type]  # as one that calls
    finally:
        leg.over()
