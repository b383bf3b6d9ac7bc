"""Transfers that stand still. However slow a link is, what moves is not given up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    import grpc.aio

T = TypeVar("T")

LIMIT = 150.0
"""Seconds; the controller, which can say more about it, gives up after 120."""


class Stall:
    """Ends one call if nothing of it has moved for `LIMIT` seconds."""

    def __init__(self) -> None:
        """Begin now."""
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()

    def moved(self) -> None:
        """Something has moved."""
        self._moved_at = self._loop.time()

    async def noting(self, messages: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Yield `messages`; whenever one is asked for, those before it have moved."""
        async with contextlib.aclosing(messages):
            async for message in messages:
                self.moved()
                yield message

    @contextlib.contextmanager
    def ending(self, call: grpc.aio.Call) -> Iterator[None]:
        """Cancel `call` once it stands still, and raise CONTROLLER_LOST then."""
        stands_still = False
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer, stands_still
            left = self._moved_at + LIMIT - self._loop.time()
            stands_still = left <= 0
            if stands_still:
                call.cancel()
            else:
                timer = self._loop.call_later(left, look)

        timer = self._loop.call_later(LIMIT, look)
        try:
            yield
        except (Exception, asyncio.CancelledError):
            if stands_still:
                cause = f"the transfer of a value stood still for {LIMIT:g} s"
                raise DeliveryError("CONTROLLER_LOST", cause=cause) from None
            raise
        finally:
            timer.cancel()
