"""How many items of a map make one task. No I/O; times are arguments."""

from __future__ import annotations

AIM = 0.02
"""Seconds that a chunk is to take: so long that the cost of a task does not count, so short that engines end a
map together and an interrupt loses little."""
LARGEST = 4096
_BYTES = 256 << 10  # of arguments or of values in one chunk: a message holds it, and is no burden
_GROWTH = 4
_PARTS = 4  # chunks for each engine that finite iterables are divided into at least


class ChunkSize:
    """The size of the next chunk: given, or learned from those that were run."""

    def __init__(self, fixed: int | None) -> None:
        """Always `fixed`; None begins with single items and learns."""
        self._fixed = fixed
        self._size = 1
        self._seconds = 0.0  # of an item
        self._bytes = 0.0  # of an item's arguments or value

    @property
    def is_fixed(self) -> bool:
        """Whether it was given."""
        return self._fixed is not None

    def next(self, engines: int, left: int | None) -> int:
        """Return how many items the next chunk has; at most `left` are there, None if nobody knows."""
        if self._fixed is not None:
            return self._fixed
        size = self._size
        if self._bytes:
            size = min(size, int(_BYTES / self._bytes))
        if left is not None:
            size = min(size, left // (engines * _PARTS))
        return max(1, size)

    def ran(self, items: int, seconds: float) -> None:
        """Learn from a chunk that was run."""
        one = max(seconds / items, 1e-9)
        self._seconds = (self._seconds + one) / 2 if self._seconds else one
        self._size = max(1, min(int(AIM / self._seconds), self._size * _GROWTH, LARGEST))

    def weighed(self, items: int, size: int) -> None:
        """Learn how many bytes the arguments, or the values, of a chunk have."""
        one = size / items
        self._bytes = one if one > self._bytes else 0.9 * self._bytes + 0.1 * one
