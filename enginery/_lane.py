"""The calls of one engine that wait at the client, in order: for an upload, or until it takes calls again."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginery._entry import Entry
    from enginery._reasons import DeliveryError

FIRST_DELAY = 0.1  # seconds before calls that were refused are sent again
LONGEST_DELAY = 2.0
_GROWTH = 1.5
_FIRST_WINDOW = 64  # calls that are sent again at first
_LARGEST_WINDOW = 1 << 16

by_call_id = attrgetter("call_id")


@dataclass(slots=True)
class Hold:
    """The engine refused a call: nothing goes to it but, now and then, some of what waits.

    Each round sends the first `window` calls. A round in which one was refused halves the window and lengthens
    the delay; one without doubles the window. So a full queue is asked neither for all nor all the time.
    Between rounds each answer lets one call go: where a queue was full, there is room for it now.
    """

    refusal: DeliveryError
    since: float
    """When an answer of the engine last came, or this began."""
    due: float = 0.0
    """When the next round begins."""
    delay: float = FIRST_DELAY
    window: int = _FIRST_WINDOW
    behind: set[int] = field(default_factory=set)
    """Calls that were sent after the first one that waits, and are not answered. To keep the order they must be
    before that one is sent again."""
    refused: bool = False
    """Whether a call was refused in this round."""
    answered: bool = False
    """Whether one was answered since `since`."""
    room: int = 0
    """Calls that may go before the next round, since as many were answered."""
    rounds: int = 0

    def refuse(self, error: DeliveryError, hint: float, now: float) -> None:
        """Take note that a call was refused; `hint` is how long it asked to wait, in seconds."""
        self.refusal = error
        if not self.refused and self.rounds:
            self.window = max(1, self.window // 2)
            self.delay = min(self.delay * _GROWTH, LONGEST_DELAY)
        self.refused = True
        self.due = now + max(self.delay, hint)

    def answer(self) -> None:
        """Take note that a call was answered."""
        self.answered = True
        if self.refusal.reason == "QUEUE_FULL":
            self.room += 1

    @property
    def next_at(self) -> float:
        """When something of the lane is to be sent; 0 for now."""
        return 0.0 if self.room and not self.behind else self.due

    def begin_round(self, now: float) -> None:
        """Begin a round of sending again."""
        self.rounds += 1
        self.room = 0
        if not self.refused:
            self.window = min(2 * self.window, _LARGEST_WINDOW)
            self.delay = FIRST_DELAY
        self.refused = False
        self.due = now + self.delay


@dataclass(slots=True, eq=False)
class Lane:
    """What waits for one engine, the first to go first."""

    entries: list[Entry] = field(default_factory=list)
    uploading: Entry | None = None
    """The entry whose values are on their way: at most one at a time, or its order would not hold."""
    hold: Hold | None = None

    def insert(self, entry: Entry) -> bool:
        """Put `entry` where it belongs among the others; return whether it is the first now."""
        bisect.insort(self.entries, entry, key=by_call_id)
        return self.entries[0] is entry

    def release(self, limit: int | None = None) -> list[Entry]:
        """Take out what may be sent: at most `limit` calls, and none behind one that has uploads."""
        count = 0
        for entry in self.entries[:limit]:
            if entry.uploads:
                break
            count += 1
        released = self.entries[:count]
        del self.entries[:count]
        return released

    def next_upload(self) -> list[Entry]:
        """Return the entry whose upload is to be started now, if there is one, and count it as uploading."""
        if self.uploading is not None or not self.entries or not self.entries[0].uploads:
            return []
        self.uploading = self.entries[0]
        return [self.uploading]
