"""One event loop for many inputs, on which what is tried runs to its end and leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from tests.fuzz.rules import BrokenRule

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.fuzz.rules import Watch

T = TypeVar("T")

_HANG = 20.0  # seconds


class Loop:
    """Runs coroutines one after the other."""

    def __init__(self, watch: Watch) -> None:
        """Make the loop; `watch` hears what nobody awaits."""
        self._runner = asyncio.Runner()
        watch.follow(self._runner.get_loop())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what `coroutine` returns; BrokenRule if it hangs."""

        async def bounded() -> T:
            async with asyncio.timeout(_HANG) as limit:
                try:
                    return await coroutine
                except TimeoutError:
                    if limit.expired():
                        raise BrokenRule(f"it hangs: no end after {_HANG:g} s") from None
                    raise

        return self._runner.run(bounded())

    def close(self) -> None:
        """End the loop and what runs on it."""
        self._runner.close()


async def turns(condition: Callable[[], bool], limit: int) -> bool:
    """Let the loop turn until `condition` holds; return whether it came to hold within `limit` turns."""
    for _ in range(limit):
        if condition():
            return True
        await asyncio.sleep(0)
    return condition()
