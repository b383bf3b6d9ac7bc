"""Whether an engine has more memory than it may. No I/O: the engine measures, this decides."""

from __future__ import annotations

OWN_INTERVAL = 0.1
"""Seconds between measurements of the kernel itself, which are cheap."""
GROUP_INTERVAL = 1.0
"""Seconds between measurements of the kernel with all processes that it started."""


class MemoryWatch:
    """The memory limit of one kernel."""

    def __init__(self, limit: int) -> None:
        """Allow the kernel and the processes that it started `limit` bytes together."""
        self.limit = limit
        self._was_over = False

    def observe(self, own_bytes: int, group_bytes: int | None = None) -> int:
        """Take in what was measured, and return its size in bytes if that is too much, else 0.

        `group_bytes` is the kernel with all that it started, None if that was not measured this time. Alone a
        kernel is over its limit at once. With others it must be twice in a row, since a process that has just
        been forked seems to hold all its parent's memory once more, until it runs a program of its own.
        """
        if own_bytes > self.limit:
            return own_bytes
        if group_bytes is None:
            return 0
        is_over = group_bytes > self.limit
        was_over, self._was_over = self._was_over, is_over
        return group_bytes if is_over and was_over else 0
