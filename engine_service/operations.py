"""The operations of one engine by id: those that wait and run, and those that have ended, until released.

A synchronous machine without I/O; time is an argument, in nanoseconds since 1970. None runs twice: a call under
an id that is known joins the operation, and that one was here is remembered for longer than its answer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from engine_service.seen import SeenOperations
from enginery import _ids
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from engine_service.operation import Done, Operation

MAX_AGE = 3600.0
"""Seconds for which an operation that has ended is kept."""
MAX_UNSETTLED = 16_384
"""Operations that have ended and are kept while no journal has their answers."""
MAX_UNSETTLED_BYTES = 256 << 20
"""Bytes of those."""
_RELEASED_AT_ONCE = 256  # so that the event loop is not kept


class Operations:
    """The table. Operations that have ended are unsettled until a journal has taken their answers for good.

    Those that are settled are kept up to the ordinary bounds, those that are not up to larger ones; within each
    the oldest go first, and the newest stays however large it is, since its caller has yet to read it.
    """

    def __init__(
        self,
        *,
        max_count: int = 10_000,
        max_bytes: int = 64 << 20,
        max_age: float = MAX_AGE,
        max_unsettled: int = MAX_UNSETTLED,
        max_unsettled_bytes: int = MAX_UNSETTLED_BYTES,
    ) -> None:
        """Take the bounds: operations, bytes of answers and output, and seconds after their end."""
        self._max_age_ns = round(max_age * 1e9)
        self._known: dict[bytes, Operation] = {}  # in the order in which they were submitted
        self._unsettled = _Ended(max_unsettled, max_unsettled_bytes)
        self._settled = _Ended(max_count, max_bytes)
        self._seen = SeenOperations()
        self._last_time = 0

    def __len__(self) -> int:
        """Return how many are known."""
        return len(self._known)

    def statistics(self) -> dict[str, int]:
        """Return how many there are, and the bytes of those that have ended."""
        unsettled, settled = self._unsettled, self._settled
        return {
            "operations": len(self._known),
            "ended": len(unsettled.operations) + len(settled.operations),
            "unsettled": len(unsettled.operations),
            "kept_bytes": unsettled.bytes + settled.bytes,
        }

    # ---- asking

    def find(self, operation_id: bytes) -> Operation:
        """Return an operation that is known; OPERATION_NOT_FOUND if it is not."""
        operation = self._known.get(operation_id)
        if operation is None:
            raise DeliveryError("OPERATION_NOT_FOUND", operation_id=_ids.show(operation_id))
        return operation

    def get(self, operation_id: bytes) -> Operation | None:
        """Return an operation if it is known."""
        return self._known.get(operation_id)

    def join(self, operation_id: bytes, *, known: bool, is_task: bool = False) -> Operation | None:
        """Return the operation that a call names, None if it is new.

        OPERATION_RELEASED if it was here, or must have been since the call says that it is `known`. A task may
        come long after those that were called with it: it is new unless it is remembered itself.
        """
        operation = self._known.get(operation_id)
        if operation is None and (known or self._seen.has(operation_id, exactly=is_task)):
            raise DeliveryError("OPERATION_RELEASED", operation_id=_ids.show(operation_id))
        return operation

    def desert(self, operation_id: bytes, done: Done) -> None:
        """Whoever passed `done` does not wait any more: callers come again, and would pile up."""
        operation = self._known.get(operation_id)
        if operation is not None and done in operation.waiting:
            operation.waiting.remove(done)

    def newest_first(self) -> Iterator[Operation]:
        """Return all that are known, by falling time of submission."""
        return reversed(self._known.values())

    def unsettled(self) -> list[Operation]:
        """Return those that have ended and whose answers nobody has taken for good, the oldest end first."""
        return list(self._unsettled.operations.values())

    def inventory(self) -> list[bytes]:
        """Return ids of those that have not ended or are not settled, at most 16,384, the newest."""
        settled = self._settled.operations
        ids = [operation_id for operation_id in self._known if operation_id not in settled]
        return ids[-MAX_UNSETTLED:]

    # ---- what happens

    def submission_time(self, now: int) -> int:
        """Return `now`, or a little more: times of submission only rise, whatever the clock does."""
        self._last_time = max(now, self._last_time + 1)
        return self._last_time

    def add(self, operation: Operation) -> None:
        """Note an operation that was accepted."""
        self._known[operation.operation_id] = operation

    def ended(self, operation: Operation) -> None:
        """Keep what has ended, and release what there is no room for.

        A task that has not begun was never here: its controller may place it here again, under the same id.
        """
        if operation.is_unbegun_task:
            del self._known[operation.operation_id]
        elif operation.is_unwanted:
            self._forget(operation)
        elif operation.outcome == frame_pb2.OUTCOME_NOT_DELIVERED:  # which no journal takes
            self._settled.add(operation)
        else:
            self._unsettled.add(operation)
        for _ in range(_RELEASED_AT_ONCE):
            oldest = self._unsettled.first_over() or self._settled.first_over()
            if oldest is None:
                return
            self._drop(oldest)

    def settle(self, operation_ids: Iterable[bytes]) -> list[Operation]:
        """The answers of these are in a journal: the ordinary bounds hold for them now. Ignores others.

        Returns those for which that is news.
        """
        news = []
        for operation_id in operation_ids:
            operation = self._unsettled.operations.get(operation_id)
            if operation is not None:
                self._unsettled.remove(operation)
                self._settled.add(operation)
                news.append(operation)
        return news

    def release(self, operation_ids: Iterable[bytes]) -> int:
        """Drop answers and output, of those that have not ended when they end; return how many were known."""
        count = 0
        for operation_id in operation_ids:
            operation = self._known.get(operation_id)
            if operation is None:
                continue
            count += 1
            if operation.has_ended:
                self._drop(operation)
            else:
                operation.is_unwanted = True
        return count

    def expire(self, now: int) -> None:
        """Release what is over the bounds or too old, the oldest first; at most so many as take no time."""
        for _ in range(_RELEASED_AT_ONCE):
            oldest = self._settled.first_over() or self._settled.first_before(now - self._max_age_ns)
            if oldest is None:
                return
            self._drop(oldest)

    def _drop(self, operation: Operation) -> None:
        kept = self._unsettled if operation.operation_id in self._unsettled.operations else self._settled
        kept.remove(operation)
        self._forget(operation)

    def _forget(self, operation: Operation) -> None:
        del self._known[operation.operation_id]
        if not operation.is_rejected_task:
            self._seen.add(operation.operation_id)
        operation.answer = None  # whoever still refers to it


class _Ended:
    """Operations that have ended, the oldest first, and their bytes."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self.operations: OrderedDict[bytes, Operation] = OrderedDict()
        self.bytes = 0
        self._max_count = max_count
        self._max_bytes = max_bytes

    def add(self, operation: Operation) -> None:
        self.operations[operation.operation_id] = operation
        self.bytes += operation.kept_bytes

    def remove(self, operation: Operation) -> None:
        del self.operations[operation.operation_id]
        self.bytes -= operation.kept_bytes

    def first_over(self) -> Operation | None:
        """Return the first if there are too many, or too many bytes; never the only one."""
        count = len(self.operations)
        if count > 1 and (count > self._max_count or self.bytes > self._max_bytes):
            return next(iter(self.operations.values()))
        return None

    def first_before(self, time: int) -> Operation | None:
        """Return the first if it ended before then."""
        first = next(iter(self.operations.values()), None)
        return first if first is not None and first.ended_at < time else None
