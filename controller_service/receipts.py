"""Receipts: which answers of one stream a host need not keep any more, because the journal has them for good.

A synchronous machine without I/O. Answers are counted as they are taken; now and then it is noted how many
records the journal had been given by then; once it has committed that many, the host is told the count.
"""

from __future__ import annotations

from collections import deque

EVERY = 4_096
"""Answers after which a note is due before its time."""
MAX_NOTES = 64
"""Notes that wait for the journal. With more, the newest is replaced: the host is told later, never wrongly."""


class Receipts:
    """The answers of one stream."""

    def __init__(self) -> None:
        """Begin with none."""
        self.taken = 0
        """Replies and `ended` that came on this stream."""
        self._notes: deque[tuple[int, int]] = (
            deque()
        )  # records given to the journal by then, answers taken by then
        self._noted = 0
        self._told = 0

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Receipts(taken={self.taken}, told={self._told}, notes={len(self._notes)})"

    @property
    def is_due(self) -> bool:
        """Whether so much was taken that the next note should not wait for the clock."""
        return self.taken - self._noted >= EVERY

    def settle(self, *, appended: int, committed: int) -> int | None:
        """Note how far the journal is; return the count to tell the host, None if there is no news."""
        if self.taken > self._noted:
            if len(self._notes) == MAX_NOTES:
                self._notes.pop()
            self._notes.append((appended, self.taken))
            self._noted = self.taken
        told = self._told
        while self._notes and self._notes[0][0] <= committed:
            self._told = self._notes.popleft()[1]
        return self._told if self._told > told else None
