"""The queue of one engine, against its rules and against a plain model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine_service.queue import GATE_SECONDS, OperationQueue, QueueFullError
from tests.unit.made import operation

if TYPE_CHECKING:
    from engine_service.operation import Operation


A, B = b"sessionA", b"sessionB"


def submit(queue: OperationQueue, item: Operation, now: float = 0.0) -> None:
    queue.admit(item.operation_id, item.session_id, item.size, now)
    queue.submit(item)


def test_one_at_a_time_in_order() -> None:
    """The next begins when the one before has finished, in the order of submission."""
    queue = OperationQueue()
    first, second = operation(), operation()
    submit(queue, first)
    submit(queue, second)
    assert queue.begin() is first
    assert queue.begin() is None
    assert queue.finish(first, failed=False) == []
    assert queue.begin() is second


def test_a_failure_takes_out_its_own_session_alone() -> None:
    """What the same session queued behind it is returned; the others keep their order."""
    queue = OperationQueue()
    failing, mine, other, anonymous, mine_too = map(operation, (A, A, B, b"", A))
    for item in (failing, mine, other, anonymous, mine_too):
        submit(queue, item)
    queue.begin()
    assert queue.finish(failing, failed=True) == [mine, mine_too]
    assert list(queue) == [other, anonymous]


@pytest.mark.parametrize("failing", [operation(b""), operation(A, keep=True)])
def test_a_failure_without_session_or_that_keeps_the_queue_clears_nothing(failing: Operation) -> None:
    """Calls without a session neither clear nor are cleared; `keep_queue` leaves the queue alone."""
    queue = OperationQueue()
    behind = [operation(b""), operation(A)]
    for item in (failing, *behind):
        submit(queue, item)
    queue.begin()
    assert queue.finish(failing, failed=True) == []
    assert list(queue) == behind


def test_bounds_name_size_and_option() -> None:
    """Too many calls, or too many bytes, are refused; a single large one is not."""
    queue = OperationQueue(max_calls=2, max_bytes=10)
    submit(queue, operation(size=100))
    with pytest.raises(QueueFullError, match="--queue-bytes"):
        submit(queue, operation(size=1))
    queue.clear()
    submit(queue, operation())
    submit(queue, operation())
    with pytest.raises(QueueFullError, match="2 calls; --queue-limit"):
        submit(queue, operation())
    assert len(queue) == 2


def test_clear_leaves_the_running_one() -> None:
    """`clear` returns all that wait; what runs goes on, and room is there again."""
    queue = OperationQueue(max_calls=1)
    running, waiting = operation(), operation()
    submit(queue, running)
    queue.begin()
    submit(queue, waiting)
    assert queue.clear() == [waiting]
    assert queue.running is running
    submit(queue, operation())


def test_the_sessions_later_calls_wait_for_one_that_was_refused() -> None:
    """What was on its way behind a refused call does not overtake it; other sessions are not held up."""
    queue = OperationQueue(max_calls=1)
    refused, later, later_too = operation(A), operation(A), operation(A)
    first = operation()
    submit(queue, first)
    with pytest.raises(QueueFullError, match="1 calls"):
        submit(queue, refused)
    queue.begin()
    with pytest.raises(QueueFullError, match="an earlier call of the session"):
        submit(queue, later)
    with pytest.raises(QueueFullError, match="an earlier call of the session"):
        submit(queue, later_too)
    submit(queue, refused)
    queue.finish(first, failed=False)
    queue.begin()
    submit(queue, later)
    queue.clear()
    submit(queue, operation())
    queue.clear()
    submit(queue, operation(B))


def test_whoever_gives_a_refused_call_up_waits_no_longer_than_the_gate() -> None:
    """Each time that it is refused again the gate stays; then it opens, and never without a session."""
    queue = OperationQueue(max_calls=1)
    given_up, later = operation(A), operation(A)
    submit(queue, operation())
    for now in (0.0, 5.0):
        with pytest.raises(QueueFullError):
            submit(queue, given_up, now)
    with pytest.raises(QueueFullError):
        submit(queue, operation())
    queue.begin()
    with pytest.raises(QueueFullError):
        submit(queue, later, 5.0 + GATE_SECONDS - 0.1)
    submit(queue, later, 5.0 + GATE_SECONDS)


def test_a_queued_operation_is_taken_out_alone() -> None:
    """The others keep their order, and there is room again."""
    queue = OperationQueue(max_calls=3)
    items = [operation(A) for _ in range(3)]
    for item in items:
        submit(queue, item)
    queue.remove(items[1])
    assert list(queue) == [items[0], items[2]]
    submit(queue, operation())


def test_what_takes_any_kernel_stays() -> None:
    """Clearing for a kernel that has ended leaves what may run on the next."""
    queue = OperationQueue()
    bound, moved = operation(), operation(any_incarnation=True)
    submit(queue, bound)
    submit(queue, moved)
    assert queue.clear(all_incarnations=False) == [bound]
    assert list(queue) == [moved]


class AgainstAModel(RuleBasedStateMachine):
    """The queue does what a list does."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = OperationQueue(max_calls=5, max_bytes=20)
        self.waiting: list[Operation] = []
        self.running: Operation | None = None
        self.refused: dict[bytes, Operation] = {}

    @rule(session=st.sampled_from([b"", A, B]), keep=st.booleans(), size=st.integers(0, 12))
    def submit(self, session: bytes, keep: bool, size: int) -> None:
        self.try_to_submit(operation(session, keep=keep, size=size))

    @precondition(lambda self: self.refused)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        self.try_to_submit(data.draw(st.sampled_from(list(self.refused.values()))))

    def try_to_submit(self, item: Operation) -> None:
        first = self.refused.get(item.session_id, item)
        total = sum(other.size for other in self.waiting)
        is_full = len(self.waiting) >= 5 or (self.waiting and total + item.size > 20)
        if is_full or first is not item:
            with pytest.raises(QueueFullError):
                submit(self.queue, item)
            if item.session_id:
                self.refused[item.session_id] = first
        else:
            submit(self.queue, item)
            self.waiting.append(item)
            self.refused.pop(item.session_id, None)

    @rule()
    def begin(self) -> None:
        begun = self.queue.begin()
        if self.running is None and self.waiting:
            self.running = self.waiting.pop(0)
            assert begun is self.running
        else:
            assert begun is None

    @precondition(lambda self: self.running is not None)
    @rule(failed=st.booleans())
    def finish(self, failed: bool) -> None:
        assert self.running is not None
        taken = []
        if failed and not self.running.context.keep_queue and self.running.session_id:
            taken = [item for item in self.waiting if item.session_id == self.running.session_id]
        assert self.queue.finish(self.running, failed=failed) == taken
        self.waiting = [item for item in self.waiting if item not in taken]
        self.running = None

    @rule()
    def clear(self) -> None:
        assert self.queue.clear() == self.waiting
        self.waiting = []

    @invariant()
    def same(self) -> None:
        assert list(self.queue) == self.waiting
        assert self.queue.running is self.running


AgainstAModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstAModel = AgainstAModel.TestCase


@given(st.lists(st.sampled_from([b"", A, B]), max_size=30))
def test_nothing_is_lost_or_run_twice(sessions: list[bytes]) -> None:
    """Every operation is run or taken out, exactly once, whatever fails."""
    queue = OperationQueue()
    items = [operation(session) for session in sessions]
    for item in items:
        submit(queue, item)
    seen = []
    while (running := queue.begin()) is not None:
        seen.append(running)
        seen += queue.finish(running, failed=running.operation_id[-1] % 3 == 0)
    assert sorted(item.operation_id for item in seen) == sorted(item.operation_id for item in items)
