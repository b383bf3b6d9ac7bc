"""Recent operations by id: none runs twice. A repeated call awaits the first or gets its answer again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from enginery import _ids
from enginery._engine import CallReply
from enginery._reasons import DeliveryError

Answer = CallReply | DeliveryError
Done = Callable[[Answer], None]


@dataclass(slots=True, eq=False)
class _Entry:
    fingerprint: int
    waiting: list[Done] = field(default_factory=list)
    answer: Answer | None = None
    released: bool = False


class RecentOperations:
    """A table of the last operations and their answers. Those that still wait or run are always in it."""

    def __init__(self, max_count: int = 2_048, max_bytes: int = 64 << 20) -> None:
        """Keep so many answered operations, and so many bytes of answers, the newest."""
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._entries: dict[bytes, _Entry] = {}
        self._answered: dict[bytes, int] = {}  # operation to bytes of its answer, oldest first
        self._held: dict[bytes, int] = {}  # those of them whose answer is still there
        self._bytes = 0

    def join(self, operation_id: bytes, method: int, request: bytes, done: Done) -> bool:
        """Return False if the operation is new, and note it; `done` is called with its answer either way.

        Raises DeliveryError if the id was used for another request, or its answer was released.
        """
        fingerprint = hash((method, request))
        entry = self._entries.get(operation_id)
        if entry is None:
            self._entries[operation_id] = _Entry(fingerprint, [done])
            return False
        if entry.fingerprint != fingerprint:
            raise DeliveryError(
                "BAD_REQUEST",
                field="operation_id",
                cause=f"{_ids.show(operation_id)} named another call before",
            )
        if entry.released:
            raise DeliveryError("OPERATION_RELEASED", operation_id=_ids.show(operation_id))
        if entry.answer is None:
            entry.waiting.append(done)
        else:
            done(entry.answer)
        return True

    def forget(self, operation_id: bytes) -> None:
        """Take out an operation that was refused before it was queued."""
        del self._entries[operation_id]

    def answer(self, operation_id: bytes, answer: Answer) -> None:
        """Keep the answer of an operation and give it to all who wait."""
        entry = self._entries[operation_id]
        entry.answer = answer
        waiting, entry.waiting = entry.waiting, []
        size = len(answer.response) if isinstance(answer, CallReply) else 0
        self._answered[operation_id] = size
        self._held[operation_id] = size
        self._bytes += size
        self._make_room()
        for done in waiting:
            done(answer)

    def _make_room(self) -> None:
        while self._bytes > self._max_bytes:
            oldest = next(iter(self._held))
            self._bytes -= self._held.pop(oldest)
            entry = self._entries[oldest]
            entry.answer, entry.released = None, True
        while len(self._answered) > self._max_count:
            oldest = next(iter(self._answered))
            del self._answered[oldest]
            del self._entries[oldest]
            self._bytes -= self._held.pop(oldest, 0)
