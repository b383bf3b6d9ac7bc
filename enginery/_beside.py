"""Work on the pieces of a large value in a thread beside the loop: one at a time, and one ahead of its use.

The checksum and the copies of a megabyte take up to a millisecond, in which the loop would answer no call.
Beside it they also overlap with what gRPC does for the next piece.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from types import TracebackType

T = TypeVar("T")
R = TypeVar("R")

WORTH = 4 << 20
"""Bytes of a value for which the way to a thread and back pays."""


async def ahead(pieces: Iterator[T], size: int) -> AsyncGenerator[T]:
    """Yield what `pieces` yields, each made while the one before is used, if `size` bytes are worth it.

    Close it if it is not read to its end: then nothing uses `pieces` any more.
    """
    if size < WORTH:
        for one in pieces:
            yield one
        return
    loop = asyncio.get_running_loop()
    making: asyncio.Future[T | None] = loop.run_in_executor(None, next, pieces, None)
    try:
        while True:
            piece = await _outcome(making)
            if piece is None:
                return
            making = loop.run_in_executor(None, next, pieces, None)
            yield piece
    finally:
        await _end(making)


class Behind(Generic[T]):
    """Uses pieces, each while the next is received; `async with` waits for the last.

    What the use of a piece raises is raised by the `put` of the next, or at the end.
    """

    def __init__(self, use: Callable[[T], None], size: int) -> None:
        """Call `use` with each piece, in a thread if `size` bytes are worth it."""
        self._use = use
        self._is_beside = size >= WORTH
        self._using: asyncio.Future[None] | None = None

    async def put(self, piece: T) -> None:
        """Have a piece used, when the one before was."""
        if not self._is_beside:
            self._use(piece)
            return
        await self._last()
        self._using = asyncio.get_running_loop().run_in_executor(None, self._use, piece)

    async def _last(self) -> None:
        if self._using is not None:
            await _outcome(self._using)

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until nothing is used any more."""
        if kind is None:
            await self._last()
        elif self._using is not None:
            await _end(self._using)


async def _outcome(work: asyncio.Future[R]) -> R:
    """Return what `work` returns; if the waiting is cancelled, the work is not."""
    await asyncio.wait({work})
    return work.result()


async def _end(work: asyncio.Future[R]) -> None:
    """Wait for a piece of which nobody needs the outcome any more. That is short, so even cancelling waits."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    work.exception()  # seen
    if cancelled is not None:
        raise cancelled
