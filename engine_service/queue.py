"""The queue of one engine: operations run one at a time, in the order in which they were submitted.

Tasks, whose failure takes out nobody, are taken up to `AHEAD` at a time: so the kernel has the next at hand.
A synchronous machine without I/O: time is an argument, in seconds of any clock that only rises, and whoever is
taken out is returned.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from engine_service.kernel_page import AHEAD
from engine_service.operation import QUEUED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from engine_service.operation import Operation

GATE_SECONDS = 10.0
"""How long the later operations of a session are refused after one was, unless that one comes again."""
_MAX_GATES = 1_024


class QueueFullError(Exception):
    """The queue is at its limit: `size` says of what, `option` what raises it."""

    def __init__(self, size: str, option: str) -> None:
        """Take what the reader needs to know."""
        super().__init__(f"{size}; {option}")
        self.size = size
        self.option = option


class OperationQueue:
    """First in, first out, with bounds; a failure takes out what the same session queued behind it.

    Once an operation of a session was refused, so are the session's later ones until that one comes again: any
    that was on their way must not overtake it. Whoever gives it up waits for `GATE_SECONDS`.
    """

    def __init__(self, max_calls: int = 10_000, max_bytes: int = 256 << 20) -> None:
        """Bound what waits, in operations and in bytes."""
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._waiting: OrderedDict[bytes, Operation] = OrderedDict()
        self._bytes = 0
        self._sessions: Counter[bytes] = Counter()  # waiting operations of each session
        self._gates: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()  # session to who was refused, when
        self._taken: dict[bytes, Operation] = {}  # the first runs, or is the next to
        self._takes_tasks = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Operation]:
        """Return those that wait, first to run first."""
        return iter(self._waiting.values())

    @property
    def running(self) -> Operation | None:
        """The oldest of those that were taken and have not finished: it runs, or is about to."""
        return next(iter(self._taken.values()), None)

    @property
    def ahead(self) -> list[Operation]:
        """Those that were taken and have not begun, as far as is known."""
        return [operation for operation in self._taken.values() if operation.state == QUEUED]

    def admit(self, operation_id: bytes, session_id: bytes, size: int, now: float) -> None:
        """Raise QueueFullError unless an operation of `size` bytes has room. An empty queue takes any size."""
        try:
            self._check_gate(operation_id, session_id, now)
            self._check_room(size)
        except QueueFullError:
            if session_id and session_id not in self._gates:
                self._gates[session_id] = (operation_id, now)
                if len(self._gates) > _MAX_GATES:
                    self._gates.popitem(last=False)
            raise

    def _check_gate(self, operation_id: bytes, session_id: bytes, now: float) -> None:
        if session_id not in self._gates:
            return
        refused, since = self._gates[session_id]
        if refused != operation_id and now - since < GATE_SECONDS:
            raise QueueFullError("an earlier call of the session waits for room", "--queue-limit")
        del self._gates[session_id]

    def _check_room(self, size: int) -> None:
        if len(self._waiting) >= self._max_calls:
            raise QueueFullError(f"{len(self._waiting)} calls", "--queue-limit")
        if self._waiting and self._bytes + size > self._max_bytes:
            raise QueueFullError(f"{self._bytes} bytes", "--queue-bytes")

    def submit(self, operation: Operation) -> None:
        """Append an operation that was admitted."""
        self._waiting[operation.operation_id] = operation
        self._bytes += operation.size
        if operation.session_id:
            self._sessions[operation.session_id] += 1

    def begin(self) -> Operation | None:
        """Take the next operation to run; None if there is none, or it waits for those that were taken."""
        if not self._waiting:
            return None
        operation = next(iter(self._waiting.values()))
        if self._taken and not (self._takes_tasks and operation.may_go_ahead and len(self._taken) < AHEAD):
            return None
        del self._waiting[operation.operation_id]
        self._forget(operation)
        self._taken[operation.operation_id] = operation
        self._takes_tasks = operation.context.is_task
        return operation

    def finish(self, operation: Operation, *, failed: bool) -> list[Operation]:
        """End an operation that was taken, and return those that its failure takes out."""
        del self._taken[operation.operation_id]
        if not failed or operation.context.keep_queue or not self._sessions[operation.session_id]:
            return []
        return self._take([other for other in self if other.session_id == operation.session_id])

    def give_back(self, operations: Iterable[Operation]) -> None:
        """Put operations that were taken, and did not begin, before those that wait, in the order given."""
        for operation in reversed(list(operations)):
            del self._taken[operation.operation_id]
            self.submit(operation)
            self._waiting.move_to_end(operation.operation_id, last=False)

    def remove(self, operation: Operation) -> bool:
        """Take out one that waits; False if it does not, since it was taken to be run."""
        is_waiting = operation.operation_id in self._waiting
        if is_waiting:
            self._take([operation])
        return is_waiting

    def clear(self, *, all_incarnations: bool = True) -> list[Operation]:
        """Take out and return all that wait, or only those that do not take a new kernel; what runs goes on."""
        return self._take([other for other in self if all_incarnations or not other.context.any_incarnation])

    def _take(self, operations: list[Operation]) -> list[Operation]:
        for operation in operations:
            del self._waiting[operation.operation_id]
            self._forget(operation)
        return operations

    def _forget(self, operation: Operation) -> None:
        self._bytes -= operation.size
        if operation.session_id:
            self._sessions[operation.session_id] -= 1
            if not self._sessions[operation.session_id]:
                del self._sessions[operation.session_id]
