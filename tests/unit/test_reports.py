"""What a signal's handler reports amid another report comes after it, and is never forgotten."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from engine_service.kernel.link import Link, Reports
from engine_service.kernel_messages import DisplayData

if TYPE_CHECKING:
    from collections.abc import Callable


class Struck:
    """A lock that a signal strikes once at the last moment at which it is held."""

    def __init__(self, handler: Callable[[], object]) -> None:
        self._lock = threading.RLock()
        self._handlers = [handler]

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            self._handlers.pop()()
        self._lock.release()

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]


class Interrupts:
    """Interrupts that nobody sends."""

    shielded = contextlib.nullcontext


class Wire:
    """A link that keeps what is sent, and says that it is put off: nobody acknowledges."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, frame: Any) -> bool:
        self.sent.append(frame.meta["display"][0]["text/plain"])
        return False


def test_a_display_at_the_last_moment_of_another_is_shown() -> None:
    """It used to wait for the next display, which need not come."""
    wire: Any = Wire()
    interrupts: Any = Interrupts()
    reports = Reports(wire, -1, interrupts, memoryview(b""))
    reports._lock = Struck(lambda: reports.display(DisplayData({"text/plain": "late"})))  # type: ignore[assignment]
    reports.display(DisplayData({"text/plain": "first"}))
    os.close(reports._stdout)
    os.close(reports._stderr)
    assert wire.sent == ["first", "late"]


def test_a_frame_at_the_last_moment_of_another_is_sent() -> None:
    """Progress of a handler used to come only with the next frame, and so after the end of its operation."""
    here, there = socket.socketpair()
    with here, there:
        link = Link(here)
        link._lock = Struck(lambda: link.send(b"late"))  # type: ignore[assignment]
        assert link.send(b"first")
        assert there.recv(100) == b"firstlate"
