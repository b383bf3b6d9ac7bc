"""One operation: where it may go from each state, and what it keeps once it has ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.kernel_messages import Failure
from engine_service.ladder import Ladder
from engine_service.operation import (
    CANCELLED,
    FAILED,
    LOST,
    QUEUED,
    RUNNING,
    SMALL_REQUEST,
    SUCCEEDED,
    TIMED_OUT,
    TRANSITIONS,
    Answer,
    Operation,
    State,
    StopCause,
)
from engine_service.requests import LARGE, ROWS
from enginery import _outcomes
from enginery._engine import CallReply
from enginery._reasons import TABLE, DeliveryError
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2
from tests.unit.made import OK, operation

RAISED, REJECTED = Failure((), "", "USER"), Failure((), "", "REJECTED")
REPLIES = [frame_pb2.OUTCOME_OK, frame_pb2.OUTCOME_USER_ERROR, frame_pb2.OUTCOME_CANCELLED]
REPLIES += [frame_pb2.OUTCOME_TIMED_OUT]
ENDS: list[Answer] = [CallReply(outcome, b"x") for outcome in REPLIES]
ENDS += [DeliveryError(reason) for reason in TABLE if reason != "OPERATION_RELEASED"]


def state_of(answer: Answer) -> State:
    outcome = answer.outcome if isinstance(answer, CallReply) else _outcomes.outcome_of(answer)
    return _outcomes.STATES[outcome]


def test_the_table_is_the_contracts() -> None:
    """From QUEUED to RUNNING or to an end, from RUNNING to any end, and never on from an end."""
    ends = {SUCCEEDED, FAILED, CANCELLED, TIMED_OUT, LOST}
    table = {QUEUED: {RUNNING, FAILED, CANCELLED, LOST}, RUNNING: ends}
    assert table == TRANSITIONS
    assert {QUEUED, RUNNING, *ends} == set(operation_pb2.OperationState.values()) - {0}


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("answer", ENDS, ids=str)
def test_every_answer_ends_it_as_the_table_allows(begins: bool, answer: Answer) -> None:
    """What the table does not have is a defect, and changes nothing."""
    item = operation()
    if begins:
        item.begin(5, "kernel")
    if state_of(answer) not in TRANSITIONS[item.state]:
        with pytest.raises(AssertionError, match="cannot become"):
            item.end(answer, 7)
        assert not item.has_ended
        return
    item.end(answer, 7)
    assert item.has_ended
    assert item.state == state_of(answer)
    assert (item.answer, item.ended_at) == (answer, 7)
    for again in (lambda: item.end(answer, 8), lambda: item.begin(8, "other")):
        with pytest.raises(AssertionError, match="cannot become"):
            again()
    assert item.ended_at == 7


def test_events_have_sequences_from_start_to_outcome() -> None:
    """Started is the first, the outcome the last; one that never began has the outcome alone."""
    ran, cleared = operation(), operation()
    ran.begin(1_500_000_000, "kernel")
    assert [event.kind for event in ran.log.read(0, 100)] == ["started"]
    ran.end(OK, 2)
    assert ran.log.last_sequence == 2
    cleared.end(DeliveryError("QUEUE_CLEARED"), 2)
    assert cleared.log.last_sequence == 1


def test_everybody_who_waits_gets_the_answer_once() -> None:
    """`end` hands over who waits, and keeps nobody."""
    item = operation()
    heard: list[Answer] = []
    item.waiting += [heard.append, heard.append]
    item.begin(1, "kernel")
    for done in item.end(OK, 2):
        done(OK)
    assert heard == [OK, OK]
    assert not item.waiting


@pytest.mark.parametrize("cause", StopCause)
def test_what_raises_after_it_was_asked_to_stop_was_stopped(cause: StopCause) -> None:
    """One that completes all the same is a success; one that raises unasked has failed."""
    item = operation()
    item.begin(1, "kernel")
    assert item.outcome_of_reply(RAISED) == frame_pb2.OUTCOME_USER_ERROR
    assert item.outcome_of_reply(REJECTED) == frame_pb2.OUTCOME_REJECTED
    item.stop(cause, Ladder(1.0, interrupt_only=False))
    assert item.outcome_of_reply(None) == frame_pb2.OUTCOME_OK
    assert item.outcome_of_reply(RAISED) == item.outcome_of_reply(REJECTED) == cause.outcome
    with pytest.raises(AssertionError):
        item.stop(StopCause.CANCEL, Ladder(1.0, interrupt_only=False))
    assert item.stop_cause is cause


def test_only_what_runs_is_stopped() -> None:
    """One that waits is taken out of the queue, one that has ended is left alone."""
    for item in (operation(), operation()):
        with pytest.raises(AssertionError):
            item.stop(StopCause.CANCEL, Ladder(1.0, interrupt_only=False))
        if item.state == QUEUED:
            item.end(DeliveryError("QUEUE_CLEARED"), 1)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_its_arguments_outlive_a_large_request(size: int) -> None:
    """People read what it was asked, and the request itself is not kept if it is large."""
    item = operation(size=size)
    item.begin(1, "kernel")
    item.end(OK, 2)
    assert item.arguments == "1 + 1"
    assert item.message is None
    assert item.fields is None


def test_an_id_names_one_call_in_whatever_order_its_maps_are() -> None:
    """The same bytes, or the same message serialized otherwise, is the same call; while it runs and after."""
    push, *parts = engine_pb2.PushRequest(), engine_pb2.PushRequest(), engine_pb2.PushRequest()
    for message, fields in ((push, {"a": 1, "b": 2}), (parts[0], {"b": 2}), (parts[1], {"a": 1})):
        message.json.update(fields)
    request, other = push.SerializeToString(), b"".join(part.SerializeToString() for part in parts)
    assert request != other
    for size in (len(request), 2_000):
        item = operation(size=size)
        item.method, item.message, item.fingerprint = frame_pb2.METHOD_PUSH, push, hash(request)
        item.row = ROWS[frame_pb2.METHOD_PUSH]
        item.request = request if size <= SMALL_REQUEST else None
        for _ in range(2):
            assert item.is_same(frame_pb2.METHOD_PUSH, engine_pb2.PushRequest.FromString(request), request)
            assert item.is_same(frame_pb2.METHOD_PUSH, engine_pb2.PushRequest.FromString(other), other)
            assert not item.is_same(frame_pb2.METHOD_PUSH, parts[0], parts[0].SerializeToString())
            assert not item.is_same(frame_pb2.METHOD_PULL, push, request)
            if not item.has_ended:
                item.begin(1, "kernel")
                item.end(OK, 2)


def test_a_large_call_is_told_by_its_bytes() -> None:
    """Putting it in canonical form would take too long."""
    item = operation(size=LARGE + 1)
    large = engine_pb2.ExecuteRequest(code="#" * LARGE)
    request = large.SerializeToString()
    item.fingerprint = hash(request)
    item.begin(1, "kernel")
    item.end(OK, 2)
    assert item.is_same(frame_pb2.METHOD_EXECUTE, large, request)
    assert not item.is_same(frame_pb2.METHOD_EXECUTE, large, request + b"\x12\x00")
    small = engine_pb2.ExecuteRequest(code="1")
    assert not item.is_same(frame_pb2.METHOD_EXECUTE, small, small.SerializeToString())


@given(st.lists(st.sampled_from(["begin", "stop", *range(len(ENDS))]), max_size=6))
def test_whatever_comes_it_follows_the_table(events: list[str | int]) -> None:
    """Each step is one of the table's, and an answer once given stays."""
    item: Operation = operation()
    for event in events:
        before, answer = item.state, item.answer
        try:
            if event == "begin":
                item.begin(1, "kernel")
            elif event == "stop":
                item.stop(StopCause.CANCEL, Ladder(1.0, interrupt_only=False))
            else:
                item.end(ENDS[int(event)], 2)
        except AssertionError:
            assert (item.state, item.answer) == (before, answer)
        else:
            assert item.state == before or item.state in TRANSITIONS[before]
        assert item.has_ended == (item.answer is not None)
