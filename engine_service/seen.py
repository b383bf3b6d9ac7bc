"""Which operations were here, remembered for longer than their answers, so that none runs twice.

A session counts its operations, so that one bit says it of each. An id that the bits cannot tell, since it is
far older than the session's newest, counts as one that was here, unless its call is one that may come late.
Such ids, and those that share their first half with no other, such as random ones, are remembered one by one:
they must not push the sessions out.
"""

from __future__ import annotations

from collections import OrderedDict

_MAX_SESSIONS = 256
_MAX_SINGLE = 1 << 15  # operations that are the only one of their session, and as many that came late
_WINDOW = 1 << 16  # operations of one session: 8 KiB of bits


class SeenOperations:
    """The operations of the sessions that were here last."""

    def __init__(self) -> None:
        """Begin with none."""
        self._sessions: OrderedDict[bytes, _Counters] = OrderedDict()  # the least recently used first
        self._single: OrderedDict[bytes, int] = OrderedDict()
        self._late: OrderedDict[bytes, None] = OrderedDict()  # added when the bits could not tell any more

    def has(self, operation_id: bytes, *, exactly: bool = False) -> bool:
        """Return whether that operation was here, as far as is remembered.

        One that is too old to tell counts as one that was, but not if it is to be known `exactly`.
        """
        session, counter = operation_id[:8], _counter(operation_id)
        counters = self._sessions.get(session)
        if counters is None:
            return self._single.get(session) == counter
        if exactly and counters.is_too_old(counter):
            return operation_id in self._late
        return counter in counters

    def add(self, operation_id: bytes) -> None:
        """Remember an operation, and forget the session that was not used for longest if there are too many."""
        session, counter = operation_id[:8], _counter(operation_id)
        counters = self._sessions.get(session)
        if counters is not None:
            self._sessions.move_to_end(session)
            self._count(counters, counter, operation_id)
            return
        other = self._single.pop(session, counter)
        if other == counter:
            self._single[session] = counter
            if len(self._single) > _MAX_SINGLE:
                self._single.popitem(last=False)
            return
        counters = self._sessions[session] = _Counters()
        counters.add(other)
        self._count(counters, counter, operation_id)
        if len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def _count(self, counters: _Counters, counter: int, operation_id: bytes) -> None:
        if not counters.is_too_old(counter):
            counters.add(counter)
            return
        self._late[operation_id] = None
        if len(self._late) > _MAX_SINGLE:
            self._late.popitem(last=False)


def _counter(operation_id: bytes) -> int:
    return int.from_bytes(operation_id[8:], "big")


class _Counters:
    """Which of a session's counters were here: bits for the newest of them, all older ones count as seen."""

    __slots__ = ("_bits", "_newest")

    def __init__(self) -> None:
        self._bits = bytearray(_WINDOW // 8)  # a ring
        self._newest = -1

    def __contains__(self, counter: int) -> bool:
        if counter > self._newest:
            return False
        return self.is_too_old(counter) or bool(self._bits[_place(counter)] & _bit(counter))

    def is_too_old(self, counter: int) -> bool:
        """Return whether there is no bit any more that would tell."""
        return counter <= self._newest - _WINDOW

    def add(self, counter: int) -> None:
        """Remember one that is not too old."""
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
