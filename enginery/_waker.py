"""Wakes coroutines of an event loop from another thread: all that are due by one wake-up."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future


class Waker:
    """What wakes the coroutines of one loop.

    Waking a loop costs a write to its socket, and often a change of threads. Answers come many at a time, so
    only the first of those that the loop has not seen yet wakes it.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        """Wake `loop`, which must not be kept alive by this."""
        self._loop = weakref.ref(loop)
        self._due: deque[Future[None]] = deque()
        self._is_woken = False

    def wake(self, waiter: Future[None]) -> None:
        """Let `waiter` be done. From any thread; nothing happens once the loop was closed."""
        self._due.append(waiter)
        loop = self._loop()
        if not self._is_woken and loop is not None:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # it was closed: nobody waits any more
                loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._is_woken = False  # first: what is appended from now on wakes again
        while self._due:
            waiter = self._due.popleft()
            if not waiter.done():
                waiter.set_result(None)


_wakers: weakref.WeakKeyDictionary[AbstractEventLoop, Waker] = weakref.WeakKeyDictionary()


def of_running_loop() -> Waker:
    """Return the waker of the loop that runs in this thread."""
    loop = asyncio.get_running_loop()
    waker = _wakers.get(loop)
    if waker is None:
        waker = _wakers[loop] = Waker(loop)
    return waker
