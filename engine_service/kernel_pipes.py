"""What a kernel writes to its stdout and stderr, as the host reads it: at once, and to its end when asked."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_READ_SIZE = 64 << 10
_PIPE_SIZE = 256 << 10
_WORDS = 2000


class OutputPipes:
    """Two pipes, read on an event loop. `last_words` is the end of what came on stderr since it was emptied."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[str, bytes], None]) -> None:
        """Make the pipes; `take` gets the stream's name and bytes as they were read, and must not raise."""
        self.last_words = b""
        self._loop = loop
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
                with suppress(BlockingIOError):  # user code may read what it wrote itself, before us
                    self._pass_on(name, os.read(fd, size))

    def _read(self, name: str) -> None:
        try:
            data = os.read(self._read_ends[name], _READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        if data:
            self._pass_on(name, data)
        else:  # it closed the stream itself
            self._loop.remove_reader(self._read_ends[name])

    def _pass_on(self, name: str, data: bytes) -> None:
        if name == "stderr":
            self.last_words = (self.last_words + data)[-_WORDS:]
        self._take(name, data)

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
