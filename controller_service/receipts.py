"""Receipts: which answers of one stream a host need not keep any more, because the journal has them for good.

A synchronous machine without I/O. Answers are counted as they are taken; now and then it is noted how many
records the journal had been given by then; once it has committed that many, the host is told the count.
An answer for which the journal had no room ends the counting: the host tells it again on its next stream.
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
        """Replies and `ended` that came on this stream, up to the first for which the journal had no room."""
        self._notes: deque[tuple[int, int]] = (
            deque()
        )  # records given to the journal by then, answers taken by then
        self._noted = 0
        self._told = 0
        self._has_missed = False

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Receipts(taken={self.taken}, told={self._told}, notes={len(self._notes)})"

    def take(self, count: int) -> None:
        """Count answers that came; nothing behind one that was missed counts on this stream."""
        if not self._has_missed:
            self.taken += count

    def miss(self, *, appended: int) -> None:
        """The journal had no room for an answer that came just now: that one must not be told to be safe."""
        if not self._has_missed:
            self._has_missed = True
            self._note(appended)

    @property
    def is_stuck(self) -> bool:
        """Whether the journal goes on, and what it missed comes again on another stream alone."""
        return self._has_missed and not self._notes

    @property
    def is_due(self) -> bool:
        """Whether so much was taken that the next note should not wait for the clock."""
        return self.taken - self._noted >= EVERY

    def settle(self, *, appended: int, committed: int) -> int | None:
        """Note how far the journal is; return the count to tell the host, None if there is no news."""
        if self.taken > self._noted:
            self._note(appended)
        told = self._told
        while self._notes and self._notes[0][0] <= committed:
            self._told = self._notes.popleft()[1]
        return self._told if self._told > told else None

    def _note(self, appended: int) -> None:
        if len(self._notes) == MAX_NOTES:
            self._notes.pop()
        self._notes.append((appended, self.taken))
        self._noted = self.taken
