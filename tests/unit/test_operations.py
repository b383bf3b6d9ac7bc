"""The operations of an engine: none runs twice, and what has ended is kept within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine_service.operations import Operations
from enginery._engine import CallReply
from enginery._ids import operation_id
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2
from tests.unit.made import OK, operation

if TYPE_CHECKING:
    from engine_service.operation import Operation

SECOND = 1_000_000_000


def add(table: Operations, **made: object) -> Operation:
    item = operation(**made)  # type: ignore[arg-type]
    assert table.join(item.operation_id, known=False) is None
    table.add(item)
    return item


def run(table: Operations, answer: CallReply | DeliveryError = OK, *, at: int = 1, **made: object) -> Operation:
    item = add(table, **made)
    item.begin(at, "kernel")
    item.end(answer, at)
    table.ended(item)
    return item


def is_known(table: Operations, item: Operation) -> bool:
    try:
        return table.find(item.operation_id) is item
    except DeliveryError:
        return False


def refusal(table: Operations, item: Operation, *, known: bool = False) -> str:
    with pytest.raises(DeliveryError) as caught:
        table.join(item.operation_id, known=known)
    return caught.value.reason


def test_a_call_under_a_known_id_joins() -> None:
    """While it waits, runs and after: the same operation, with or without its request."""
    table = Operations()
    item = add(table)
    assert table.join(item.operation_id, known=False) is item
    item.begin(1, "kernel")
    item.end(OK, 2)
    table.ended(item)
    assert table.join(item.operation_id, known=False) is item
    assert table.join(item.operation_id, known=True) is item


def test_a_call_without_request_must_be_known() -> None:
    """The host cannot run what it does not have."""
    assert refusal(Operations(), operation(), known=True) == "OPERATION_RELEASED"


def test_a_released_operation_is_an_error_not_a_second_run() -> None:
    """Its answer is gone for all who refer to it; that it was here is remembered."""
    table = Operations()
    item = run(table)
    assert table.release([item.operation_id, bytes(16)]) == 1
    assert refusal(table, item) == "OPERATION_RELEASED"
    assert not is_known(table, item)
    assert item.answer is None
    assert table.statistics()["kept_bytes"] == 0


def test_what_runs_is_released_when_it_ends() -> None:
    """Release never stops anything."""
    table = Operations()
    item = add(table)
    assert table.release([item.operation_id]) == 1
    assert is_known(table, item)
    item.begin(1, "kernel")
    item.end(OK, 2)
    table.ended(item)
    assert refusal(table, item) == "OPERATION_RELEASED"


def test_settled_answers_are_bounded_by_count_bytes_and_age() -> None:
    """The oldest go first."""
    by_count, by_bytes = Operations(max_count=2), Operations(max_bytes=8_000)
    for table in (by_count, by_bytes):
        items = [run(table, CallReply(1, bytes(1_500))) for _ in range(3)]
        table.settle(item.operation_id for item in items)
        table.expire(1)
        assert [is_known(table, item) for item in items] == [False, True, True]
    by_age = Operations(max_age=10)
    old, new = run(by_age, at=SECOND), run(by_age, at=5 * SECOND)
    by_age.settle([old.operation_id, new.operation_id])
    by_age.expire(12 * SECOND)
    assert (is_known(by_age, old), is_known(by_age, new)) == (False, True)


def test_answers_that_no_journal_has_are_kept_for_longer() -> None:
    """The ordinary bounds do not hold for them; larger ones do."""
    table = Operations(max_count=1, max_age=1, max_unsettled=3)
    items = [run(table, at=number * SECOND) for number in range(4)]
    table.expire(1_000 * SECOND)
    assert [is_known(table, item) for item in items] == [False, True, True, True]
    assert table.unsettled() == items[1:]
    table.settle([items[2].operation_id, bytes(16)])
    assert table.unsettled() == [items[1], items[3]]
    by_bytes = Operations(max_unsettled_bytes=8_000)
    items = [run(by_bytes, CallReply(1, bytes(1_500))) for _ in range(3)]
    assert [is_known(by_bytes, item) for item in items] == [False, True, True]


def test_the_newest_stays_however_large_it_is() -> None:
    """Else the answer of whoever writes a lot were gone at once, journaled or not."""
    table = Operations(max_bytes=8_000, max_unsettled_bytes=8_000)
    small, large = run(table), run(table, CallReply(1, bytes(10_000)))
    assert table.unsettled() == [large]
    table.settle([small.operation_id, large.operation_id])
    table.expire(1)
    assert is_known(table, large)
    newer = run(table)
    table.settle([newer.operation_id])
    table.expire(1)
    assert (is_known(table, large), is_known(table, newer)) == (False, True)


def test_what_was_not_delivered_waits_for_no_journal() -> None:
    """No journal takes it, so nobody will ever acknowledge it."""
    table = Operations()
    item = run(table, DeliveryError("INTERNAL"))
    assert is_known(table, item)
    assert not table.unsettled()


def test_the_inventory_is_what_the_controller_may_ask_for() -> None:
    """What waits, what runs, and what has ended unless its answer is settled."""
    table = Operations()
    waiting, settled, ended = add(table), run(table), run(table)
    table.settle([settled.operation_id])
    assert table.inventory() == [waiting.operation_id, ended.operation_id]


def test_times_of_submission_rise_whatever_the_clock_does() -> None:
    """So the order of listing is that of submission, and a position names one operation."""
    table = Operations()
    times = [table.submission_time(now) for now in (5, 5, 3, 9)]
    assert times == [5, 6, 7, 9]


@given(st.lists(st.tuples(st.sampled_from([b"session1", b"session2"]), st.integers(0, 300_000)), max_size=60))
def test_whatever_comes_nothing_runs_twice(calls: list[tuple[bytes, int]]) -> None:
    """In any order, over any gaps, with room for two answers: an operation that ran is never new again."""
    table = Operations(max_unsettled=2)
    ran: set[bytes] = set()
    for session, number in calls:
        identifier = operation_id(session, number)
        try:
            is_new = table.join(identifier, known=False) is None
        except DeliveryError:
            continue
        assert not (is_new and identifier in ran)
        if is_new:
            run(table, session=session, number=number)
        ran.add(identifier)


class AgainstTheRules(RuleBasedStateMachine):
    """Submit, end, settle, release, in any order: bounds hold, what runs is known, nothing is new twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Operations(max_count=3, max_bytes=8_000, max_age=50, max_unsettled=4)
        self.made: list[Operation] = []
        self.now = 1

    @rule()
    def submit(self) -> None:
        self.made.append(add(self.table, submitted_at=self.table.submission_time(self.now)))

    @precondition(lambda self: any(not item.has_ended for item in self.made))
    @rule(
        data=st.data(), answer=st.sampled_from([OK, DeliveryError("QUEUE_CLEARED"), DeliveryError("INTERNAL")])
    )
    def end(self, data: st.DataObject, answer: CallReply | DeliveryError) -> None:
        item = data.draw(st.sampled_from([item for item in self.made if not item.has_ended]))
        item.begin(self.now, "kernel")
        item.end(answer, self.now)
        self.table.ended(item)

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.table.settle([data.draw(st.sampled_from(self.made)).operation_id])
        self.table.expire(self.now)

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.table.release([data.draw(st.sampled_from(self.made)).operation_id])

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND
        self.table.expire(self.now)

    @invariant()
    def holds(self) -> None:
        known = [item for item in self.made if is_known(self.table, item)]
        assert all(item in known for item in self.made if not item.has_ended)
        assert list(self.table.newest_first()) == known[::-1]
        ended = [item for item in known if item.has_ended]
        unsettled = self.table.unsettled()
        assert set(map(id, unsettled)) <= set(map(id, ended))
        assert len(unsettled) <= 4
        assert len(ended) - len(unsettled) <= 3
        statistics = self.table.statistics()
        assert statistics["kept_bytes"] == sum(item.kept_bytes for item in ended)
        assert (statistics["operations"], statistics["ended"]) == (len(known), len(ended))
        for item in self.made:
            if item not in known:
                assert refusal(self.table, item) == "OPERATION_RELEASED"


AgainstTheRules.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAgainstTheRules = AgainstTheRules.TestCase


def test_the_outcome_of_a_request_that_was_refused_is_not_delivered() -> None:
    """What the table asks of an answer is what a reply would say."""
    item = run(Operations(), DeliveryError("INTERNAL"))
    assert item.outcome == frame_pb2.OUTCOME_NOT_DELIVERED
