"""Use of the pieces of a large value in a thread beside the loop, each while the next is received.

The checksum of a piece, its place and the making of the pages there take up to a millisecond, in which the loop
would answer no call. That is for clients. In hosts, where no other thread wants the interpreter, small calls
beside a large value gained nothing by it, and the value cost a fifth more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from enginery._pieces import Piece

WORTH = 4 << 20
"""Bytes of a value for which the way to a thread and back pays."""


class Behind:
    """Uses pieces, each while the next is received; `async with` waits for the last.

    What the use of a piece raises is raised by the `put` of the next, or at the end.
    """

    def __init__(self, use: Callable[[Piece], None], size: int) -> None:
        """Call `use` with each piece, in a thread if `size` bytes are worth it."""
        self._use = use
        self._is_beside = size >= WORTH
        self._using: asyncio.Future[None] | None = None

    async def put(self, piece: Piece) -> None:
        """Have a piece used, when the one before was."""
        if not self._is_beside:
            self._use(piece)
            return
        await self._last()
        self._using = asyncio.get_running_loop().run_in_executor(None, self._use, piece)

    async def _last(self) -> None:
        if self._using is not None:
            await asyncio.wait({self._using})  # if this is cancelled, the use is not
            self._using.result()

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


async def _end(work: asyncio.Future[None]) -> None:
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
