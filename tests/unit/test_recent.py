"""Recent operations: none runs twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.recent import Answer, RecentOperations
from enginery._engine import CallReply
from enginery._ids import operation_id
from enginery._reasons import DeliveryError

A, B, C = (operation_id(bytes(8), number) for number in range(3))


def test_a_repeated_call_awaits_the_first_and_then_gets_its_answer_again() -> None:
    """Whoever asks under the same id gets the one answer, before and after it is there."""
    recent = RecentOperations()
    first: list[Answer] = []
    second: list[Answer] = []
    third: list[Answer] = []
    assert not recent.join(A, 3, b"request", first.append)
    assert recent.join(A, 3, b"request", second.append)
    answer = CallReply(1, b"response")
    recent.answer(A, answer)
    assert recent.join(A, 3, b"request", third.append)
    assert first == second == third == [answer]


def test_another_request_under_the_same_id_is_refused() -> None:
    """An id names one call."""
    recent = RecentOperations()
    recent.join(A, 3, b"request", print)
    for method, request in ((4, b"request"), (3, b"other")):
        with pytest.raises(DeliveryError) as caught:
            recent.join(A, method, request, print)
        assert caught.value.reason == "BAD_REQUEST"


def test_a_released_answer_is_an_error_not_a_second_run() -> None:
    """Bytes are bounded: the oldest answers go first, and their operations are remembered."""
    recent = RecentOperations(max_bytes=10)
    for operation in (A, B):
        recent.join(operation, 3, b"", lambda answer: None)
        recent.answer(operation, CallReply(1, bytes(8)))
        assert recent.join(operation, 3, b"", lambda answer: None)
    with pytest.raises(DeliveryError) as caught:
        recent.join(A, 3, b"", print)
    assert caught.value.reason == "OPERATION_RELEASED"
    assert recent.join(B, 3, b"", lambda answer: None)


def test_the_table_is_bounded_but_keeps_what_runs() -> None:
    """The oldest answered operations are forgotten; one that runs never is."""
    recent = RecentOperations(max_count=1)
    running: list[Answer] = []
    recent.join(A, 3, b"", running.append)
    for operation in (B, C):
        recent.join(operation, 3, b"", lambda answer: None)
        recent.answer(operation, DeliveryError("SHUTTING_DOWN", process="host"))
    assert recent.join(A, 3, b"", running.append)
    assert recent.join(C, 3, b"", lambda answer: None)
    with pytest.raises(DeliveryError, match="OPERATION_RELEASED"):
        recent.join(B, 3, b"", lambda answer: None)
    recent.answer(A, CallReply(1, b""))
    assert len(running) == 2


def run(recent: RecentOperations, operation: bytes) -> bool:
    """Run an operation, and return whether it was new."""
    try:
        if recent.join(operation, 3, b"", lambda answer: None):
            return False
    except DeliveryError as error:
        if error.reason != "OPERATION_RELEASED":
            raise
        return False
    recent.answer(operation, CallReply(1, b""))
    return True


@given(st.lists(st.tuples(st.sampled_from([b"session1", b"session2"]), st.integers(0, 300_000)), max_size=60))
def test_whatever_comes_nothing_runs_twice(calls: list[tuple[bytes, int]]) -> None:
    """In any order, over any gaps, with room for two answers: an operation that ran is never new again."""
    recent = RecentOperations(max_count=2)
    ran: set[bytes] = set()
    for session, counter in calls:
        operation = operation_id(session, counter)
        is_new = run(recent, operation)
        assert not (is_new and operation in ran)
        ran.add(operation)


def test_operations_of_a_session_that_counts_up_all_run_once() -> None:
    """Far more of them than the bits hold."""
    recent = RecentOperations(max_count=2)
    for counter in range(0, 200_000, 7):
        assert run(recent, operation_id(b"session1", counter))
    for counter in (199_997, 199_997 - 7 * 100, 0):
        assert not run(recent, operation_id(b"session1", counter))
    assert run(recent, operation_id(b"session1", 199_997 - 7 * 100 + 1))


def test_answers_are_held_while_they_cannot_be_sent() -> None:
    """Then their number is no reason to release them; afterwards it is again."""
    recent = RecentOperations(max_count=2)
    recent.is_holding = True
    for counter in range(10):
        run(recent, operation_id(b"session1", counter))
    assert recent.join(operation_id(b"session1", 0), 3, b"", lambda answer: None)
    recent.is_holding = False
    run(recent, operation_id(b"session1", 10))
    with pytest.raises(DeliveryError, match="OPERATION_RELEASED"):
        recent.join(operation_id(b"session1", 0), 3, b"", print)


def test_a_refused_call_may_be_made_again() -> None:
    """An operation that never was queued is forgotten."""
    recent = RecentOperations()
    recent.join(A, 3, b"", print)
    recent.forget(A)
    assert not recent.join(A, 4, b"", print)
