"""What a kernel writes to its stdout and stderr, as the host reads it: at once, and to its end when asked.

While what was read has not been passed on, the page says so: the kernel, which may have the next command
already, does not leave the one that wrote it before.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

from engine_service.kernel_page import READING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_READ_SIZE = 64 << 10
_PIPE_SIZE = 256 << 10


class OutputPipes:
    """Two pipes, read on an event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, page: memoryview, take: Callable[[str, bytes], None]
    ) -> None:
        """Make the pipes; `take` gets the stream's name and bytes as they were read, and must not raise."""
        self._loop = loop
        self._page = page
        self._take = take
        self._read_ends: dict[str, int] = {}
        self._write_ends: dict[str, int] = {}
        for name in ("stdout", "stderr"):
            self._read_ends[name], self._write_ends[name] = os.pipe()
            os.set_blocking(self._read_ends[name], False)
            if sys.platform == "linux":
                with suppress(PermissionError):  # over what a user may have: then the pipe stays as it is
                    fcntl.fcntl(self._read_ends[name], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def write_end(self, name: str) -> int:
        """Return the end to which the kernel writes."""
        return self._write_ends[name]

    def follow(self) -> None:
        """Read from now on; the kernel has its ends."""
        self._close_write_ends()
        for name, fd in self._read_ends.items():
            self._loop.add_reader(fd, self._read, name)

    def drain(self) -> None:
        """Read exactly what the pipes hold now: a chatty grandchild cannot keep us."""
        for name, fd in self._read_ends.items():
            waiting = bytearray(4)
            fcntl.ioctl(fd, termios.FIONREAD, waiting)
            (size,) = struct.unpack("i", waiting)
            if size:
                self._read(name, size)

    def _read(self, name: str, size: int = _READ_SIZE) -> None:
        self._page[READING] = 1
        try:
            data = os.read(self._read_ends[name], size)
        except (BlockingIOError, InterruptedError):  # user code may read what it wrote itself, before us
            self._page[READING] = 0
            return
        if data:
            self._take(name, data)
        else:  # it closed the stream itself
            self._loop.remove_reader(self._read_ends[name])
        self._page[READING] = 0

    def close(self) -> None:
        """Close everything. What the pipes still hold is lost: see `drain`."""
        self._close_write_ends()
        for fd in self._read_ends.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        self._read_ends.clear()

    def _close_write_ends(self) -> None:
        for fd in self._write_ends.values():
            os.close(fd)
        self._write_ends.clear()
