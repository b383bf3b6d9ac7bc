"""What a kernel writes to one of its streams, within a bound."""

from __future__ import annotations

from collections import deque

_BLOCK = 64 << 10


class OutputBuffer:
    """Keeps the first and the last half of what one operation writes; counts what it drops between."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes."""
        self._head = bytearray()
        self._tail: deque[bytearray] = deque()
        self._tail_size = 0
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        self.dropped = 0

    def write(self, data: bytes) -> None:
        """Take in what was read."""
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        if self._tail and len(self._tail[-1]) < _BLOCK:  # else single bytes would each be an object
            self._tail[-1] += data
        else:
            self._tail.append(bytearray(data))
        self._tail_size += len(data)
        while self._tail and self._tail_size - len(self._tail[0]) >= self._tail_limit:
            gone = len(self._tail.popleft())
            self._tail_size -= gone
            self.dropped += gone

    def take(self) -> tuple[bytes, int]:
        """Return what was kept, a mark where something was dropped, and how much; begin anew."""
        tail = b"".join(self._tail)
        excess = max(0, len(tail) - self._tail_limit)
        dropped = self.dropped + excess
        head = bytes(self._head)
        self._head = bytearray()
        self._tail.clear()
        self._tail_size = self.dropped = 0
        if not dropped:
            return head + tail if tail else head, 0
        return head + b"\n[... %d bytes dropped ...]\n" % dropped + tail[excess:], dropped
