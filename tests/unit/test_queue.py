"""The queue of one engine, against its rules and against a plain model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine_service.queue import OperationQueue, Queued, QueueFullError

_counter = iter(range(1_000_000))


def operation(session: bytes = b"", *, keep: bool = False, size: int = 1) -> Queued[str]:
    number = next(_counter)
    return Queued(number.to_bytes(16, "big"), session, keep, size, f"work {number}", 0.0)


def test_one_at_a_time_in_order() -> None:
    """The next begins when the one before has finished, in the order of submission."""
    queue: OperationQueue[str] = OperationQueue()
    first, second = operation(), operation()
    queue.submit(first)
    queue.submit(second)
    assert queue.begin(5.0) is first
    assert first.started_at == 5.0
    assert queue.begin(6.0) is None
    assert queue.finish(failed=False) == []
    assert queue.begin(7.0) is second


def test_a_failure_takes_out_its_own_session_alone() -> None:
    """What the same session queued behind it is returned; the others keep their order."""
    queue: OperationQueue[str] = OperationQueue()
    failing, mine, other, anonymous, mine_too = map(operation, (b"a", b"a", b"b", b"", b"a"))
    for item in (failing, mine, other, anonymous, mine_too):
        queue.submit(item)
    queue.begin(0.0)
    assert queue.finish(failed=True) == [mine, mine_too]
    assert list(queue) == [other, anonymous]


@pytest.mark.parametrize("failing", [operation(b""), operation(b"a", keep=True)])
def test_a_failure_without_session_or_that_keeps_the_queue_clears_nothing(failing: Queued[str]) -> None:
    """Calls without a session neither clear nor are cleared; `keep_queue` leaves the queue alone."""
    queue: OperationQueue[str] = OperationQueue()
    behind = [operation(b""), operation(b"a")]
    for item in (failing, *behind):
        queue.submit(item)
    queue.begin(0.0)
    assert queue.finish(failed=True) == []
    assert list(queue) == behind


def test_bounds_name_size_and_option() -> None:
    """Too many calls, or too many bytes, are refused; a single large one is not."""
    queue: OperationQueue[str] = OperationQueue(max_calls=2, max_bytes=10)
    queue.submit(operation(size=100))
    with pytest.raises(QueueFullError, match="--queue-bytes"):
        queue.submit(operation(size=1))
    queue.clear()
    queue.submit(operation())
    queue.submit(operation())
    with pytest.raises(QueueFullError, match="2 calls; --queue-limit"):
        queue.submit(operation())
    assert len(queue) == 2


def test_clear_leaves_the_running_one() -> None:
    """`clear` returns all that wait; what runs goes on, and room is there again."""
    queue: OperationQueue[str] = OperationQueue(max_calls=1)
    running, waiting = operation(), operation()
    queue.submit(running)
    queue.begin(0.0)
    queue.submit(waiting)
    assert queue.clear() == [waiting]
    assert queue.running is running
    queue.submit(operation())


class AgainstAModel(RuleBasedStateMachine):
    """The queue does what a list does."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: OperationQueue[str] = OperationQueue(max_calls=5, max_bytes=20)
        self.waiting: list[Queued[str]] = []
        self.running: Queued[str] | None = None

    @rule(session=st.sampled_from([b"", b"a", b"b"]), keep=st.booleans(), size=st.integers(0, 12))
    def submit(self, session: bytes, keep: bool, size: int) -> None:
        item = operation(session, keep=keep, size=size)
        total = sum(other.size for other in self.waiting)
        if len(self.waiting) >= 5 or (self.waiting and total + size > 20):
            with pytest.raises(QueueFullError):
                self.queue.submit(item)
        else:
            self.queue.submit(item)
            self.waiting.append(item)

    @rule()
    def begin(self) -> None:
        begun = self.queue.begin(1.0)
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
        if failed and not self.running.keep_queue and self.running.session_id:
            taken = [item for item in self.waiting if item.session_id == self.running.session_id]
        assert self.queue.finish(failed=failed) == taken
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


@given(st.lists(st.sampled_from([b"", b"a", b"b"]), max_size=30))
def test_nothing_is_lost_or_run_twice(sessions: list[bytes]) -> None:
    """Every operation is run or taken out, exactly once, whatever fails."""
    queue: OperationQueue[str] = OperationQueue()
    items = [operation(session) for session in sessions]
    for item in items:
        queue.submit(item)
    seen = []
    while (running := queue.begin(0.0)) is not None:
        seen.append(running)
        seen += queue.finish(failed=running.operation_id[-1] % 3 == 0)
    assert sorted(item.operation_id for item in seen) == sorted(item.operation_id for item in items)
