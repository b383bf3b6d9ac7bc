"""Interrupts that hit the operation they name, and no other.

The host writes the serial number of its target into a page of memory that both share, then sends SIGINT. The
handler raises KeyboardInterrupt only if that operation is armed. So a late signal does nothing. One that was
handed over ahead of time is revoked on the same page: then it never begins.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has none
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine_service.kernel_page import RUNNING, TARGET, is_revoked

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from types import FrameType

_QUIET = 0.01  # seconds after one that raised in which others are ignored: what handles it must get to its end


class Interrupts:
    """The kernel's half of the page. Everything here but `shielded` runs on the main thread."""

    def __init__(self, page: memoryview) -> None:
        """Take the page, and take over SIGINT."""
        self._page = page
        self._main = threading.get_ident()
        self._armed = 0
        self._shields = 0
        self._deferred = False
        self._quiet_until = 0.0
        self.task: asyncio.Task[Any] | None = None
        self.task_cancelled = False
        self._handler = self._handle  # one object, so that it can be compared
        signal.signal(signal.SIGINT, self._handler)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def arm(self, serial: int) -> bool:
        """From now on an interrupt of `serial` raises, or now if it came before. False if it was revoked."""
        if is_revoked(self._page, serial):
            return False
        self._page[RUNNING] = serial
        self.task_cancelled = False
        self._quiet_until = 0.0
        self._armed = serial
        if self._page[TARGET] == serial:
            self._quiet_until = time.monotonic() + _QUIET
            raise KeyboardInterrupt
        return True

    def disarm(self) -> None:
        """From here on nothing raises."""
        self._armed = 0
        self._deferred = False
        self._shields = 0
        self.task = None

    def restore(self) -> None:
        """Undo what user code did to the handler of SIGINT and to the signal mask.

        Asks `_signal`, as it is after every command: `signal` makes enums of what it says, which takes longer.
        """
        if _signal.getsignal(signal.SIGINT) is not self._handler:
            signal.signal(signal.SIGINT, self._handler)
        if _signal.pthread_sigmask(signal.SIG_BLOCK, ()) != self._mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Put off interrupts while something must not be left half done, such as a frame on the socket.

        Any thread may ask for it; only the main one is ever interrupted.
        """
        if threading.get_ident() != self._main:
            yield
            return
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            if self._deferred and not self._shields:
                self._deferred = False
                self._handle(signal.SIGINT, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._armed or self._page[TARGET] != self._armed:
            return
        if self._shields:
            self._deferred = True
            return
        task, self.task = self.task, None  # the first interrupt cancels, the second raises
        if task is not None and not task.done():
            self.task_cancelled = True
            task.get_loop().call_soon_threadsafe(task.cancel)
            return
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET
            raise KeyboardInterrupt
