"""The queue of one engine: operations run one at a time, in the order in which they were submitted.

A synchronous machine without I/O: time is an argument, and whoever is taken out is returned. What an operation
does is its `work`, which the queue never looks at.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

Work = TypeVar("Work")


@dataclass(slots=True, eq=False)
class Queued(Generic[Work]):
    """One operation. `size` counts bytes against the queue's limit; times are Unix seconds, 0 until then."""

    operation_id: bytes
    session_id: bytes
    keep_queue: bool
    size: int
    work: Work
    submitted_at: float
    started_at: float = 0.0


class QueueFullError(Exception):
    """The queue is at its limit: `size` says of what, `option` what raises it."""

    def __init__(self, size: str, option: str) -> None:
        """Take what the reader needs to know."""
        super().__init__(f"{size}; {option}")
        self.size = size
        self.option = option


class OperationQueue(Generic[Work]):
    """First in, first out, with bounds; a failure takes out what the same session queued behind it."""

    def __init__(self, max_calls: int = 10_000, max_bytes: int = 256 << 20) -> None:
        """Bound what waits, in operations and in bytes."""
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._waiting: deque[Queued[Work]] = deque()
        self._bytes = 0
        self._sessions: Counter[bytes] = Counter()  # waiting operations of each session
        self.running: Queued[Work] | None = None

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Queued[Work]]:
        """Return those that wait, first to run first."""
        return iter(self._waiting)

    def check_room(self, size: int) -> None:
        """Raise QueueFullError if an operation of `size` bytes does not fit. An empty queue takes any one."""
        if len(self._waiting) >= self._max_calls:
            raise QueueFullError(f"{len(self._waiting)} calls", "--queue-limit")
        if self._waiting and self._bytes + size > self._max_bytes:
            raise QueueFullError(f"{self._bytes} bytes", "--queue-bytes")

    def submit(self, operation: Queued[Work]) -> None:
        """Append an operation; QueueFullError if it does not fit."""
        self.check_room(operation.size)
        self._waiting.append(operation)
        self._bytes += operation.size
        if operation.session_id:
            self._sessions[operation.session_id] += 1

    def begin(self, now: float) -> Queued[Work] | None:
        """Take the next operation to run; None if there is none or one still runs."""
        if self.running is not None or not self._waiting:
            return None
        operation = self._waiting.popleft()
        self._forget(operation)
        operation.started_at = now
        self.running = operation
        return operation

    def finish(self, *, failed: bool) -> list[Queued[Work]]:
        """End the running operation and return those that its failure takes out."""
        operation = self.running
        assert operation is not None
        self.running = None
        if not failed or operation.keep_queue or not self._sessions[operation.session_id]:
            return []
        return self._take_out(operation.session_id)

    def clear(self) -> list[Queued[Work]]:
        """Take out and return all that wait; the running one goes on."""
        cleared = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        self._sessions.clear()
        return cleared

    def _take_out(self, session_id: bytes) -> list[Queued[Work]]:
        taken = [operation for operation in self._waiting if operation.session_id == session_id]
        self._waiting = deque(operation for operation in self._waiting if operation.session_id != session_id)
        for operation in taken:
            self._forget(operation)
        return taken

    def _forget(self, operation: Queued[Work]) -> None:
        self._bytes -= operation.size
        if operation.session_id:
            self._sessions[operation.session_id] -= 1
            if not self._sessions[operation.session_id]:
                del self._sessions[operation.session_id]
