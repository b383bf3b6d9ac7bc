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
        assert all(identifier in seen for identifier in here)


def test_a_session_that_counts_up_is_told_apart_exactly() -> None:
    """Far more operations than there are bits: what did not come is still new, within the newest."""
    seen = SeenOperations()
    for number in range(0, 200_000, 7):
        assert operation_id(b"session1", number) not in seen
        seen.add(operation_id(b"session1", number))
    for number in (199_997, 199_997 - 7 * 100, 0):
        assert operation_id(b"session1", number) in seen
    assert operation_id(b"session1", 199_997 - 7 * 100 + 1) not in seen


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
    assert operation_id(sessions[0], 1) in seen
    assert operation_id(sessions[1], 1) not in seen


def test_random_ids_push_no_session_out() -> None:
    """Any UUID will do as an id. Those that are one of a kind are remembered one by one, the newest 32,768."""
    seen = SeenOperations()
    for number in (1, 2):
        seen.add(operation_id(b"session1", number))
    others = [uuid.UUID(int=random.getrandbits(128), version=4).bytes for _ in range(33_000)]
    for other in others:
        seen.add(other)
    assert operation_id(b"session1", 2) in seen
    assert all(other in seen for other in others[-32_768:])
    assert others[0] not in seen
