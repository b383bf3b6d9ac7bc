"""Output that belongs to no operation, such as that of a thread which an operation left behind.

It goes to the host's log, but no more than a log can bear: a thread that prints without end would fill the
disk, and keep the event loop from everything else. No I/O; time is an argument, in seconds.
"""

from __future__ import annotations

LINES = 200
"""Lines in each second that are passed on, of one engine."""
BYTES = 32 << 10
"""Bytes of these."""
_SECOND = 1.0


class LateOutput:
    """What of it goes to the log."""

    def __init__(self) -> None:
        """Begin with all the room of a second."""
        self._since = float("-inf")
        self._lines = self._bytes = 0  # that were passed on since then
        self._dropped = 0

    def take(self, data: bytes, now: float) -> tuple[list[str], int]:
        """Return the lines to pass on, and how many bytes before them were dropped without a word so far."""
        told = 0
        if now - self._since >= _SECOND:
            self._since, self._lines, self._bytes = now, 0, 0
            told, self._dropped = self._dropped, 0
        lines = data[: max(0, BYTES - self._bytes)].splitlines(keepends=True)[: LINES - self._lines]
        size = sum(map(len, lines))
        self._lines += len(lines)
        self._bytes += size
        self._dropped += len(data) - size
        return [line.rstrip(b"\r\n").decode("utf-8", "backslashreplace") for line in lines], told
