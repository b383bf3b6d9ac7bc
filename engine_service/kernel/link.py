"""The kernel's end of what connects it to its host: a socket, and a pipe on which the host acknowledges.

What is acknowledged is that the host has read the output that was written before: so displays have their place
in it, and one operation's output is never taken for that of the next, which the kernel may have already.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import termios
import threading
import traceback
from typing import TYPE_CHECKING

from engine_service.kernel import process
from engine_service.kernel_frames import FrameReader, WireError, send
from engine_service.kernel_messages import Shown
from engine_service.kernel_page import READING
from engine_service.kernel_wire import write_progress, write_shown
from enginery.errors import ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine_service.kernel.interrupts import Interrupts
    from engine_service.kernel_frames import Frame
    from engine_service.kernel_messages import DisplayData, Progress


class Link:
    """The socket. Threads may send; only the main thread receives."""

    def __init__(self, sock: _socket.socket) -> None:
        """Take over a connected stream socket."""
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._reader = FrameReader()
        self._lock = threading.RLock()
        self._put_off: list[Frame | bytes] = []

    def receive(self) -> Frame | bytes | None:
        """Wait for the next frame; None if the host has gone."""
        while (frame := self._reader.take()) is None:
            self._wait()
            try:
                if not self._reader.receive(self._sock, _socket.MSG_DONTWAIT):
                    return None
            except BlockingIOError:
                continue
        return frame

    def _wait(self) -> None:
        """Wait until there is something to read. What handlers of signals raise meanwhile is printed."""
        while True:
            try:
                self._poll.poll()
                return
            except KeyboardInterrupt:
                raise
            except Exception:  # as of a timer that an earlier command left behind
                traceback.print_exc()

    def send(self, frame: Frame | bytes) -> bool:
        """Send a whole frame; False if a signal's handler calls this amid a frame: then it goes after that."""
        if self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks
            self._put_off.append(frame)
            return False
        with self._lock:
            send(self._sock, frame)
        while self._put_off:  # looked at without the lock: whoever comes from now on puts nothing off
            with self._lock:
                if self._put_off:
                    send(self._sock, self._put_off.pop(0))
        return True


_NOTHING = bytes(4)  # what FIONREAD says of an empty pipe


class Reports:
    """What user code says while it runs, from any thread: progress, and objects to display."""

    def __init__(self, link: Link, acknowledgements: int, interrupts: Interrupts, page: memoryview) -> None:
        """Send over `link`; `acknowledgements` is the pipe on which the host says what it has taken in."""
        self._link = link
        self._acknowledgements = acknowledgements
        self._interrupts = interrupts
        self._page = page
        self._stdout, self._stderr = os.dup(1), os.dup(2)  # as they are now: user code may put others there
        self._pid = os.getpid()
        self._lock = threading.RLock()  # one display at a time
        self._put_off: list[DisplayData] = []
        self._number = 0
        self._taken = 0

    def progress(self, progress: Progress) -> None:
        """Pass on how far it is."""
        if os.getpid() == self._pid:  # a forked child speaks for nobody
            with self._interrupts.shielded():
                self._link.send(write_progress(progress))

    def display(self, display: DisplayData) -> None:
        """Pass on an object, and wait until the host has it, and all that was written before.

        So it has its place among the output. Of a signal's handler amid another display it comes right after
        that. ValueTooLarge if it fits no frame.
        """
        if os.getpid() != self._pid:
            return
        if self._lock._is_owned():  # type: ignore[attr-defined]  # a signal's handler, amid another display
            self._put_off.append(display)
            return
        process.flush()
        with self._interrupts.shielded(), self._lock:
            self._show(display)
        while self._put_off:  # looked at without the lock: whoever comes from now on puts nothing off
            with self._interrupts.shielded(), self._lock:
                if self._put_off:
                    self._show(self._put_off.pop(0))

    def _show(self, display: DisplayData) -> None:
        self._number += 1
        try:
            was_sent = self._link.send(write_shown(Shown(self._number, display)))
        except WireError as error:
            raise ValueTooLarge(f"what is displayed is too large: {error}") from None
        while was_sent and self._taken < self._number:  # those that an exception kept from waiting come first
            if not self._take():
                return

    def _take(self) -> bool:
        """Wait for an acknowledgement; False if the host has gone."""
        data = os.read(self._acknowledgements, 8)
        if data:
            self._taken = int.from_bytes(data, "little")
        return bool(data)

    def is_output_read(self) -> bool:
        """Return whether the host has read all that was written so far, and knows whose output it is."""
        try:  # first the pipes: what is read there is noted on the page before
            return (
                fcntl.ioctl(self._stdout, termios.FIONREAD, _NOTHING) == _NOTHING
                and fcntl.ioctl(self._stderr, termios.FIONREAD, _NOTHING) == _NOTHING
                and not self._page[READING]
            )
        except OSError:  # user code closed everything that it did not open
            return False

    def answer(self, send_answer: Callable[[int], None]) -> None:
        """Send an answer with the number of its acknowledgement, and wait for that. On the main thread."""
        with self._lock:
            self._number += 1
            send_answer(self._number)
            while self._taken < self._number:
                try:
                    if not self._take():
                        return
                except KeyboardInterrupt:
                    raise
                except Exception:  # as in `Link._wait`
                    traceback.print_exc()
