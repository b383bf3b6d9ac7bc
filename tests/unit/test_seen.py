"""Operations that were here are remembered by one bit each."""

from __future__ import annotations

import random
import uuid

from hypothesis import given
from hypothesis import strategies as st

from engine_service.seen import SeenOperations
from enginery._ids import operation_id


@given(st.lists(st.tuples(st.sampled_from([b"session1", b"session2"]), st.integers(0, 300_000)), max_size=60))
def test_what_was_here_is_never_forgotten_while_its_session_is_known(calls: list[tuple[bytes, int]]) -> None:
    """In any order and over any gaps; what is new may seem to have been here, never the other way round."""
    seen = SeenOperations()
    here: set[bytes] = set()
    for session, number in calls:
        seen.add(operation_id(session, number))
        here.add(operation_id(session, number))
        assert all(seen.has(identifier) for identifier in here)


def test_a_session_that_counts_up_is_told_apart_exactly() -> None:
    """Far more operations than there are bits: what did not come is still new, within the newest."""
    seen = SeenOperations()
    for number in range(0, 200_000, 7):
        assert not seen.has(operation_id(b"session1", number))
        seen.add(operation_id(b"session1", number))
    for number in (199_997, 199_997 - 7 * 100, 0):
        assert seen.has(operation_id(b"session1", number))
    assert not seen.has(operation_id(b"session1", 199_997 - 7 * 100 + 1))


def test_sessions_are_bounded() -> None:
    """The one that was not used for longest is forgotten."""
    seen = SeenOperations()
    sessions = [number.to_bytes(8, "big") for number in range(257)]
    for session in sessions[:256]:
        seen.add(operation_id(session, 0))
        seen.add(operation_id(session, 1))
    seen.add(operation_id(sessions[0], 2))
    seen.add(operation_id(sessions[256], 0))
    seen.add(operation_id(sessions[256], 1))
    assert seen.has(operation_id(sessions[0], 1))
    assert not seen.has(operation_id(sessions[1], 1))


def test_random_ids_push_no_session_out() -> None:
    """Any UUID will do as an id. Those that are one of a kind are remembered one by one, the newest 32,768."""
    seen = SeenOperations()
    for number in (1, 2):
        seen.add(operation_id(b"session1", number))
    others = [uuid.UUID(int=random.getrandbits(128), version=4).bytes for _ in range(33_000)]
    for other in others:
        seen.add(other)
    assert seen.has(operation_id(b"session1", 2))
    assert all(seen.has(other) for other in others[-32_768:])
    assert not seen.has(others[0])


def test_what_comes_late_is_told_exactly_if_asked() -> None:
    """A task may wait long behind those that were called with it: it is new, though too old for the bits."""
    seen = SeenOperations()
    for number in (200_000, 7):  # the second is too old from its first moment
        assert not seen.has(operation_id(b"session1", number), exactly=True)
        seen.add(operation_id(b"session1", number))
    for number in (5, 6):
        late = operation_id(b"session1", number)
        assert seen.has(late)
        assert not seen.has(late, exactly=True)
        seen.add(late)
    assert all(seen.has(operation_id(b"session1", number), exactly=True) for number in (5, 6, 7, 200_000))
    assert not seen.has(operation_id(b"session1", 199_999), exactly=True)
    for number in range(10, 33_000):
        seen.add(operation_id(b"session1", number))
    assert not seen.has(operation_id(b"session1", 5), exactly=True)  # only so many are remembered
