"""Room for calls of one client: how much it keeps, and those who wait until that is less."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sized

    from enginery._entry import Entry

UNSENT_CALLS = 20_000
"""How many calls may wait to be sent before submitting waits too."""
KEPT_BYTES = 256 << 20
"""How much may wait for its answer, sent or not, before submitting waits too."""
PATIENT_CALLS = 1_000_000
PATIENT_BYTES = 1 << 30
"""The same two for a caller that must not wait: above these it is refused."""


class Room:
    """Counts calls in and out. Any thread submits; the loop's thread alone ends them."""

    def __init__(self, sent: Sized) -> None:
        """Begin empty; `sent` are the calls that are on their way now."""
        self.inbox: deque[Entry] = deque()
        """Calls that were submitted and that nobody has looked at."""
        self._sent = sent
        self._free = threading.Condition(threading.Lock())
        self._never_waits = False
        self._stalled = 0  # submitters that wait for room, or are about to
        self._submitted_calls = 0  # these two by submitters, with the lock
        self._submitted_bytes = 0
        self._ended_calls = 0  # these two by the loop's thread alone
        self._ended_bytes = 0
        self._is_closed = False

    def never_wait(self) -> None:
        """Have nobody wait, up to limits that are far higher."""
        self._never_waits = True

    @property
    def is_there(self) -> bool:
        """Whether so little is unsent and unanswered that submitting need not wait."""
        return self._is_below(UNSENT_CALLS, KEPT_BYTES)

    @property
    def unsent_count(self) -> int:
        """Calls that were submitted and are not on their way."""
        return self._submitted_calls - self._ended_calls - len(self._sent)

    @property
    def kept_bytes(self) -> int:
        """Bytes of calls that have not ended."""
        return self._submitted_bytes - self._ended_bytes

    def enter(self, entries: list[Entry], *, may_wait: bool, is_urgent: bool) -> None:
        """Put calls into the inbox. Without room this waits, or raises QUEUE_FULL unless it `may_wait`;
        but not if it `is_urgent`. NOT_SENT once it is closed."""
        with self._free:
            if not is_urgent and self._is_full():
                self._wait(entries[0].operation.target, may_wait=may_wait)
            if self._is_closed:
                raise DeliveryError("NOT_SENT", cause="this client was closed")
            for entry in entries:
                self._submitted_bytes += entry.size
            self._submitted_calls += len(entries)
            self.inbox.extend(entries)

    def _wait(self, engine_id: int, *, may_wait: bool) -> None:
        self._stalled += 1  # before it is looked at again: see `wake`
        try:
            while not self._is_closed and self._is_full():
                if self._never_waits or not may_wait:
                    drain = "nothing: `await client.drain()` between so many calls"
                    callback = "nothing: this is a done-callback, which must not wait"
                    raise DeliveryError(
                        "QUEUE_FULL",
                        engine_id=engine_id,
                        size=f"{self.unsent_count} calls of this client are unsent",
                        option=drain if self._never_waits else callback,
                    )
                self._free.wait()
        finally:
            self._stalled -= 1

    def _is_full(self) -> bool:
        if self._never_waits:
            return not self._is_below(PATIENT_CALLS, PATIENT_BYTES)
        return not self.is_there

    def _is_below(self, calls: int, size: int) -> bool:
        return self.unsent_count < calls and self.kept_bytes < size

    def leave(self, size: int) -> None:
        """Count one call out. On the loop's thread."""
        self._ended_calls += 1
        self._ended_bytes += size
        if self._stalled:
            self.wake()

    @property
    def has_stalled(self) -> bool:
        """Whether somebody waits who must be woken when calls were sent."""
        return self._stalled > 0

    def wake(self) -> None:
        """Wake who waits: it has said so before it looked, so what ended after that look is seen here."""
        with self._free:
            self._free.notify_all()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._free:
            self._is_closed = True
            self._free.notify_all()
