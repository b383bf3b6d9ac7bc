"""The page of memory that host and kernel share: words of 64 bits, each written by one side alone.

| word | written by | meaning |
| --- | --- | --- |
| TARGET | host | serial number of the command that the next SIGINT is for |
| RUNNING | kernel | serial number of the command that it has begun last |
| READING | host | not 0 while output that was read has not been given to its operation |
| REVOKED, and the words behind it | host | serial numbers of commands that must not begin, each in its place |

User code can write there too: what the host reads may decide whose output something is, and nothing else.
"""

from __future__ import annotations

import mmap
import os

AHEAD = 8
"""Commands that the kernel may have at a time: the one that runs, and those behind it."""
TARGET, RUNNING, READING, REVOKED = 0, 1, 2, 8


def make_page() -> int:
    """Return a file of one page, which a child may inherit."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("enginery-page", os.MFD_CLOEXEC)
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, mmap.PAGESIZE)
    return fd


def open_page(fd: int) -> memoryview:
    """Map the page of that file descriptor, which stays the caller's to close."""
    return memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")


def revoke(page: memoryview, serial: int) -> None:
    """Keep the kernel from beginning that command, unless it has begun it already."""
    page[REVOKED + serial % AHEAD] = serial


def is_revoked(page: memoryview, serial: int) -> bool:
    """Return whether that command must not begin. `AHEAD` commands in a row have places of their own."""
    revoked: int = page[REVOKED + serial % AHEAD]
    return revoked == serial
