"""Recent operations by id: none runs twice. A repeated call awaits the first or gets its answer again.

Answers are kept for the newest operations only, but that an operation was here is remembered for longer: a
session counts its operations, so that one bit says it of each. An id that the bits cannot tell, since it is far
older than the session's newest, counts as one that was here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from enginery import _ids
from enginery._engine import CallReply
from enginery._reasons import DeliveryError

Answer = CallReply | DeliveryError
Done = Callable[[Answer], None]

_MAX_SESSIONS = 256
_WINDOW = 1 << 16  # operations of one session: 8 KiB of bits
_HELD_MAX = 16_384  # answers while they cannot be sent; by default a queue takes 10,000 calls
_RELEASED_AT_ONCE = 64  # answers, so that the end of holding does not keep the event loop


@dataclass(slots=True, eq=False)
class _Entry:
    fingerprint: int
    waiting: list[Done] = field(default_factory=list)
    answer: Answer | None = None


class RecentOperations:
    """A table of the last operations and their answers. Those that still wait or run are always in it."""

    def __init__(self, max_count: int = 2_048, max_bytes: int = 64 << 20) -> None:
        """Keep the answers of so many operations, and so many bytes of answers, the newest."""
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._entries: dict[bytes, _Entry] = {}
        self._answered: dict[bytes, int] = {}  # operation to bytes of its answer, oldest first
        self._bytes = 0
        self._seen: dict[bytes, _Seen] = {}  # sessions, least recently used first
        self.is_holding = False
        """While true, answers are not released by count: they cannot reach whoever waits for them."""

    def join(self, operation_id: bytes, method: int, request: bytes, done: Done) -> bool:
        """Return False if the operation is new, and note it; `done` is called with its answer either way.

        Raises DeliveryError if the id was used for another request, or its answer was released.
        """
        fingerprint = hash((method, request))
        entry = self._entries.get(operation_id)
        if entry is None:
            if self._was_here(operation_id):
                raise DeliveryError("OPERATION_RELEASED", operation_id=_ids.show(operation_id))
            self._entries[operation_id] = _Entry(fingerprint, [done])
            return False
        if entry.fingerprint != fingerprint:
            raise DeliveryError(
                "BAD_REQUEST",
                field="operation_id",
                cause=f"{_ids.show(operation_id)} named another call before",
            )
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
        self._bytes += size
        max_count = _HELD_MAX if self.is_holding else self._max_count
        for _ in range(_RELEASED_AT_ONCE):
            if len(self._answered) <= max_count and self._bytes <= self._max_bytes:
                break
            self._release(next(iter(self._answered)))
        for done in waiting:
            done(answer)

    def _release(self, operation_id: bytes) -> None:
        self._bytes -= self._answered.pop(operation_id)
        del self._entries[operation_id]
        session = operation_id[:8]
        seen = self._seen.pop(session, None) or _Seen()
        self._seen[session] = seen
        seen.add(_counter(operation_id))
        if len(self._seen) > _MAX_SESSIONS:
            del self._seen[next(iter(self._seen))]

    def _was_here(self, operation_id: bytes) -> bool:
        seen = self._seen.get(operation_id[:8])
        return seen is not None and _counter(operation_id) in seen


def _counter(operation_id: bytes) -> int:
    return int.from_bytes(operation_id[8:], "big")


class _Seen:
    """Which of a session's counters were here: bits for the newest of them, all older ones count as seen."""

    __slots__ = ("_bits", "_newest")

    def __init__(self) -> None:
        self._bits = bytearray(_WINDOW // 8)  # a ring
        self._newest = -1

    def __contains__(self, counter: int) -> bool:
        if counter > self._newest:
            return False
        return counter <= self._newest - _WINDOW or bool(self._bits[_place(counter)] & _bit(counter))

    def add(self, counter: int) -> None:
        if counter <= self._newest - _WINDOW:
            return
        if counter > self._newest:
            self._clear(max(self._newest + 1, counter - _WINDOW + 1), counter)
            self._newest = counter
        self._bits[_place(counter)] |= _bit(counter)

    def _clear(self, first: int, last: int) -> None:
        """Clear the bits from `first` to `last`: their places held counters of a window ago."""
        while first <= last and first % 8:
            self._bits[_place(first)] &= ~_bit(first)
            first += 1
        while first <= last and last % 8 != 7:
            self._bits[_place(last)] &= ~_bit(last)
            last -= 1
        if first > last:
            return
        start, end = _place(first), _place(last)
        if start <= end:
            self._bits[start : end + 1] = bytes(end + 1 - start)
        else:
            self._bits[start:] = bytes(len(self._bits) - start)
            self._bits[: end + 1] = bytes(end + 1)


def _place(counter: int) -> int:
    return counter % _WINDOW >> 3


def _bit(counter: int) -> int:
    return 1 << (counter & 7)
