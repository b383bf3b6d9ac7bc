"""The scheduler: which task goes where, and that each ends once."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from controller_service.scheduler import Action, End, Place, Scheduler, TakeBack
from controller_service.shelf import AHEAD, IN_KERNEL, MAX_PLACED, MAX_PLACED_BYTES, MAX_WAY, STUCK_AFTER
from controller_service.task import State, Task
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2

OK = frame_pb2.OUTCOME_OK
RAISED = frame_pb2.OUTCOME_USER_ERROR
LOST = frame_pb2.OUTCOME_LOST
REJECTED = frame_pb2.OUTCOME_REJECTED
RELEASED = frame_pb2.OUTCOME_RELEASED
GONE = DeliveryError("ENGINE_LOST", engine_id=0, cause="it is gone")
FULL = DeliveryError("QUEUE_FULL", engine_id=0, size="1", option="-")
GPU = (("gpu", b"true"),)
_numbers = itertools.count(1)


def made(**fields: Any) -> Task:
    """Return a new task."""
    return Task(next(_numbers).to_bytes(16, "big"), fields.pop("size", 100), **fields)


class Engines:
    """A scheduler with engines that do nothing else, unless `others` says so."""

    def __init__(self, *ids: int, **limits: int) -> None:
        self.scheduler = Scheduler(**limits)
        self.others: Counter[int] = Counter()
        self.on: dict[int, set[Task]] = {}
        self.ends: list[End] = []
        self.taken_back: list[TakeBack] = []
        for engine_id in ids:
            self.open(engine_id)

    def open(
        self, engine_id: int, *, is_open: bool = True, now: float = 0.0, **properties: bytes
    ) -> list[Task]:
        on = self.on.setdefault(engine_id, set())
        return self.do(
            self.scheduler.engine_is(
                engine_id,
                1,
                properties,
                lambda: len(on) + self.others[engine_id],
                is_open=is_open,
                now=now,
            )
        )

    def do(self, actions: list[Action]) -> list[Task]:
        """Carry out what was decided; return what was placed."""
        placed = []
        for action in actions:
            if isinstance(action, Place):
                assert action.task.engine_id is not None
                self.on[action.task.engine_id].add(action.task)
                placed.append(action.task)
            elif isinstance(action, TakeBack):
                self.taken_back.append(action)
            else:
                self.ends.append(action)
        return placed

    def add(self, task: Task, now: float = 0.0) -> list[Task]:
        return self.do(self.scheduler.add(task, now))

    def reply(
        self,
        task: Task,
        outcome: int = OK,
        problem: DeliveryError | None = None,
        *,
        has_run: bool = True,
        run_time: float = 0.0,
        now: float = 1.0,
    ) -> list[Task]:
        assert task.engine_id is not None
        self.on[task.engine_id].discard(task)
        return self.do(
            self.scheduler.replied(task, outcome, problem, has_run=has_run, run_time=run_time, now=now)
        )


def test_those_that_came_first_go_first_but_for_priority() -> None:
    """Of one priority in the order in which they came; one that runs again keeps its place."""
    engines = Engines(0)
    first = made(retries=1)
    engines.add(first)
    later, low, high = made(), made(priority=-1), made(priority=5)
    for task in (later, low, high):
        assert engines.add(task) == []
    assert engines.reply(first, RAISED) == [high]
    order = [high]
    for _ in range(3):
        order += engines.reply(order[-1])
    assert order == [high, first, later, low]


def test_equals_take_turns() -> None:
    """Idle engines get one task after another, each in its turn, though they are equally free."""
    engines = Engines(0, 1, 2)
    turns = []
    for _ in range(6):
        (task,) = engines.add(made())
        turns.append(task.engine_id)
        engines.reply(task)
    assert turns == [0, 1, 2] * 2


def test_short_tasks_are_placed_ahead_of_time_long_ones_are_not() -> None:
    """An engine is given as much as takes it 50 ms, and one more; 512 at most."""
    engines = Engines(0)
    now = 0.0
    engines.add(made(), now)
    for _ in range(MAX_PLACED):
        engines.add(made(), now)
    for seconds, window in ((0.02, 1 + int(AHEAD / 0.02)), (5e-5, MAX_PLACED), (10.0, 1)):
        for _ in range(60):
            now += seconds
            (placed, *_) = [*engines.on[0]]
            engines.reply(placed, now=now)
            engines.add(made(), now)
        assert len(engines.on[0]) == window or (window == 1 and len(engines.on[0]) < MAX_PLACED)


def swift(engines: Engines, *ids: int) -> float:
    """Let engines learn that tasks are short; return the time."""
    now = 0.0
    for _ in range(60):
        for _ in ids:
            engines.add(made(), now)
        now += 1e-4
        for engine_id in ids:
            for task in [*engines.on[engine_id]]:
                engines.reply(task, now=now)
    return now


class Far(Engines):
    """An engine that is `way` seconds away, there and back, and runs one task after another."""

    def __init__(self, way: float) -> None:
        super().__init__(0)
        self.way = way
        self.now = 0.0
        self.most = 0  # tasks on it at a time
        self.loss = 0.0  # seconds for which each tenth answer is held up, and so those behind it
        self._free_at = self._arrived_at = 0.0
        self._count = 0
        self._answers: deque[tuple[float, Task, float]] = deque()

    def send(self, placed: list[Task], run_time: float) -> None:
        """Let tasks that were placed run there, so long each."""
        for task in placed:
            self._free_at = max(self._free_at, self.now + self.way / 2) + run_time
            self._count += 1
            held_up = 0.0 if self._count % 10 else self.loss
            self._arrived_at = max(self._arrived_at, self._free_at + self.way / 2 + held_up)
            self._answers.append((self._arrived_at, task, run_time))
        self.most = max(self.most, len(self.on[0]))

    def run(self, count: int, run_time: float) -> float:
        """Run so many tasks; return how long that took."""
        began, self.most = self.now, 0
        for _ in range(count):
            self.send(self.add(made(), self.now), run_time)
        while self._answers:
            self.now, task, ran = self._answers.popleft()
            self.send(self.reply(task, run_time=ran, now=self.now), run_time)
        return self.now - began


@pytest.mark.parametrize("run_time", [1e-4, 0.02, 0.15, 1.0, 2.0])
@pytest.mark.parametrize("way", [0.0, 0.01, 0.3])
def test_the_way_to_an_engine_is_made_up_for(way: float, run_time: float) -> None:
    """It is given what it runs while a task and an answer are on their way, so it is never idle; no more."""
    far = Far(way)
    count = 400
    far.run(1, run_time)  # nothing is known before
    is_long = run_time > max(4 * way, AHEAD)  # that is not worth another one that waits behind it
    idle = way * count if is_long else way
    assert far.run(count, run_time) <= count * run_time + idle + 0.001
    assert far.most <= max(1 if is_long else 2, min(1 + int((AHEAD + way) / run_time + 0.001), MAX_PLACED))


def test_an_engine_may_come_nearer_or_go_farther() -> None:
    """The least way that was seen counts; it is learned again when the engine is connected anew."""
    far = Far(0.3)
    far.run(40, 0.02)
    assert far.most == 1 + int(0.35 / 0.02)
    far.way = 0.0
    far.run(100, 0.02)
    far.run(100, 0.02)
    assert far.most == 1 + int(AHEAD / 0.02)
    far.way = 0.3
    for is_open in (False, True):
        far.open(0, is_open=is_open, now=far.now)
    far.run(40, 0.02)
    far.run(100, 0.02)
    assert far.most == 1 + int(0.35 / 0.02)


def test_answers_that_were_held_up_and_come_together_tell_nothing_of_how_long_tasks_take() -> None:
    """As over a link that loses packets: each has run as long as its engine says."""
    engines = Engines(0)
    now = 0.0
    for _ in range(20):
        for _ in range(6):
            engines.add(made(), now)
        now += 1.0
        for task in [*engines.on[0]]:
            engines.reply(task, run_time=0.1, now=now)
    for _ in range(100):
        engines.add(made(), now)
    assert len(engines.on[0]) <= 1 + (AHEAD + MAX_WAY) / 0.1


def test_a_link_that_loses_packets_slows_only_what_waits_for_them() -> None:
    """An answer that comes late is not taken for that of a long task, or few would be sent ahead for long."""
    far = Far(0.2)
    far.loss = 0.3
    far.run(10, 0.02)
    assert far.run(400, 0.02) < 2 * 400 * 0.02


def test_what_a_far_engine_has_is_not_taken_back_before_it_could_answer() -> None:
    """Only what is due is late."""
    far = Far(0.5)
    far.run(30, 1e-4)
    for _ in range(IN_KERNEL + 2):
        far.add(made(), far.now)
    far.open(1, now=far.now)
    far.do(far.scheduler.tick(far.now + 0.5 + STUCK_AFTER / 2))
    assert far.taken_back == []
    far.do(far.scheduler.tick(far.now + 0.5 + 2 * STUCK_AFTER))
    assert len(far.taken_back) == 1


def test_no_more_bytes_are_placed_ahead_than_an_engine_should_hold() -> None:
    """Large tasks are not placed by the hundred, however short they are; a single one may have any size."""
    engines = Engines(0)
    now = swift(engines, 0)
    for _ in range(20):
        engines.add(made(size=MAX_PLACED_BYTES // 4), now)
    assert len(engines.on[0]) == 4
    for task in [*engines.on[0]][:3]:
        engines.reply(task, now=now)
    assert len(engines.on[0]) == 4


def test_what_lies_behind_a_long_task_is_taken_back_for_a_free_engine() -> None:
    """Not what the kernel has; not before the engine is late; it is given no more before it has answered."""
    engines = Engines(0, 1)
    now = swift(engines, 0, 1)
    tasks = [made() for _ in range(80)]
    for task in tasks:
        engines.add(task, now)
    for task in [*engines.on[1]]:
        engines.reply(task, now=now)
    behind = sorted(engines.on[0], key=lambda task: task.arrival)[IN_KERNEL:]
    assert len(behind) == 32
    engines.do(engines.scheduler.tick(now + STUCK_AFTER / 2))
    assert engines.taken_back == []
    now += 2 * STUCK_AFTER
    engines.do(engines.scheduler.tick(now))
    assert engines.taken_back == [TakeBack(0, behind)]
    cleared = DeliveryError("QUEUE_CLEARED", engine_id=0, cause="another engine is free")
    for task in behind:
        engines.reply(task, frame_pb2.OUTCOME_CANCELLED, cleared, has_run=False, now=now)
    assert {task.engine_id for task in behind} == {1}
    assert all(task.attempts == 1 for task in behind)
    engines.add(made(), now)
    assert len(engines.on[0]) == IN_KERNEL


def test_nothing_is_taken_back_that_no_free_engine_may_run() -> None:
    """Nor while all engines are busy."""
    engines = Engines()
    engines.open(0, gpu=b"true")
    engines.open(1)
    now = 0.0
    for _ in range(60):
        engines.add(made(where=GPU), now)
        now += 1e-4
        for task in [*engines.on[0]]:
            engines.reply(task, now=now)
    for _ in range(20):
        engines.add(made(where=GPU), now)
    assert len(engines.on[0]) == 20
    engines.do(engines.scheduler.tick(now + 1))
    assert engines.taken_back == []
    engines.open(1, gpu=b"true")
    engines.add(made(), now)
    assert len(engines.on[1]) == 1
    engines.do(engines.scheduler.tick(now + 2))
    assert engines.taken_back == []


def test_where() -> None:
    """A task waits for an engine that has the properties; one that gets them is given it at once."""
    engines = Engines(0)
    task = made(where=GPU)
    assert engines.add(task) == []
    assert engines.add(made()) != []
    assert engines.open(1, cores=b"4") == []
    assert engines.open(1, gpu=b"true") == [task]


def test_a_rejected_task_goes_elsewhere_until_nobody_is_left() -> None:
    """No attempt is used, and it is never offered to the same engine twice; a new engine may take it."""
    engines = Engines(0, 1)
    task = made()
    engines.add(task)
    assert engines.reply(task, REJECTED) == [task]
    assert (task.engine_id, task.attempts) == (1, 1)
    engines.reply(task, REJECTED)
    assert engines.ends == [End(task, None)]
    busy, rejected = made(), made()
    engines.add(busy)
    engines.add(rejected)
    engines.reply(rejected, REJECTED)
    assert rejected.is_ready  # the other is busy
    engines.do(engines.scheduler.engine_gone(busy.engine_id or 0, 1.0))
    assert rejected.state is State.ENDED


@pytest.mark.parametrize(("retries", "runs_again"), [(1, True), (0, False)])
def test_an_answer_that_was_released_is_lost(retries: int, runs_again: bool) -> None:
    """A controller that was killed may have had an attempt released before it wrote that it is to run again."""
    engines = Engines(0)
    task = made(retries=retries)
    engines.add(task)
    released = DeliveryError("OPERATION_RELEASED", operation_id="x")
    placed = engines.reply(task, frame_pb2.OUTCOME_RELEASED, released)
    assert placed == ([task] if runs_again else [])
    assert engines.ends == ([] if runs_again else [End(task, None)])


def test_an_engine_that_refuses_is_left_alone_for_a_while() -> None:
    """Its refusal uses no attempt; it is offered nothing before its time, or before something changes."""
    engines = Engines(0)
    task = made()
    engines.add(task)
    assert engines.reply(task, frame_pb2.OUTCOME_NOT_DELIVERED, FULL, has_run=False) == []
    assert task.attempts == 0
    assert engines.do(engines.scheduler.tick(1.1)) == []
    assert engines.do(engines.scheduler.tick(1.3)) == [task]


def test_an_engine_whose_kernel_does_not_start_is_passed_over() -> None:
    """What it was given goes elsewhere, no attempt used; it is offered nothing until its kernel has started."""
    engines = Engines(0, 1)
    task = made()
    engines.add(task)
    problem = DeliveryError("KERNEL_NOT_STARTING", engine_id=0, cause="no memory")
    assert engines.reply(task, frame_pb2.OUTCOME_NOT_DELIVERED, problem) == [task]
    assert (task.engine_id, task.attempts) == (1, 1)
    other = made()
    assert engines.add(other, 2.0) == []
    assert engines.do(engines.scheduler.tick(2.9)) == []
    assert engines.open(0, now=3.0) == [other]
    engines.reply(other, frame_pb2.OUTCOME_NOT_DELIVERED, problem)
    engines.reply(task)
    assert other.engine_id == 1
    engines.reply(other, frame_pb2.OUTCOME_NOT_DELIVERED, problem)
    assert engines.ends[1:] == [End(other, None)]  # with that error: every engine has it


def test_an_engine_that_stops_is_offered_nothing_more() -> None:
    """Its answer says so before its goodbye does: what it were given would count as lost."""
    engines = Engines(0)
    tasks = [made(), made()]
    for task in tasks:
        engines.add(task)
    stopped = DeliveryError("ENGINE_STOPPED", engine_id=0, cause="told to", has_run="false")
    assert engines.reply(tasks[0], LOST, stopped, has_run=False) == []
    assert engines.do(engines.scheduler.tick(100.0)) == []
    assert engines.open(1) == tasks[:1]


def test_calls_of_views_come_first() -> None:
    """A task does not queue behind them; each that ends lets one in, so that a busy view keeps none away."""
    engines = Engines(0)
    engines.others[0] = 2
    tasks = [made(), made()]
    for task in tasks:
        assert engines.add(task) == []
    engines.others[0] = 1
    assert engines.do(engines.scheduler.engine_goes_on(0, 1.0)) == tasks[:1]
    assert engines.do(engines.scheduler.engine_goes_on(0, 1.0)) == []
    engines.others[0] = 0
    assert engines.reply(tasks[0]) == tasks[1:]


def test_a_cancelled_task_does_not_run_again() -> None:
    """A waiting one ends; one on an engine ends as it says, though it could be run again."""
    engines = Engines(0)
    running, waiting = made(retries=3), made()
    engines.add(running)
    engines.add(waiting)
    engines.do(engines.scheduler.cancel(waiting, 1.0))
    ((ended, error),) = engines.ends
    assert (ended, error and error.reason) == (waiting, "OPERATION_CANCELLED")
    engines.do(engines.scheduler.cancel(running, 1.0))
    assert running.state is State.PLACED
    engines.reply(running, LOST, GONE)
    assert engines.ends[1:] == [End(running, None)]


def test_dependencies() -> None:
    """A task follows when all have succeeded, or with `after_any_outcome` ended; else it fails."""
    engines = Engines(0)
    first = made()
    engines.add(first)
    follows = made(after=frozenset([first.task_id]))
    anyway = made(after=frozenset([first.task_id]), after_any_outcome=True)
    last = made(after=frozenset([follows.task_id]))
    for task in (follows, anyway, last):
        assert engines.add(task) == []
    assert engines.reply(first, RAISED) == [anyway]
    reasons = {end.task: end.error and end.error.reason for end in engines.ends}
    assert reasons == {first: None, follows: "DEPENDENCY_FAILED", last: "DEPENDENCY_FAILED"}


@pytest.mark.parametrize("is_chain", [True, False])
def test_any_number_of_tasks_ends_with_the_one_before_them(is_chain: bool) -> None:
    """In a chain, however deep that is, or all behind the same: some at a time, so others have their turn."""
    engines = Engines(0)
    first = before = made()
    engines.add(first)
    for _ in range(3_000):
        task = made(after=frozenset({before.task_id}))
        engines.add(task)
        before = task if is_chain else first
    engines.reply(first, RAISED)
    while engines.scheduler.has_more:
        count = len(engines.ends)
        assert engines.do(engines.scheduler.go_on(1.0)) == []
        assert 0 < len(engines.ends) - count <= 128
    assert len(engines.ends) == 3_001
    assert engines.ends[-1].task is task
    assert len(engines.scheduler) == 0


@pytest.mark.parametrize(
    ("outcome", "reason"), [(OK, None), (LOST, "DEPENDENCY_FAILED"), (None, "OPERATION_NOT_FOUND")]
)
def test_what_is_no_task_may_be_waited_for(outcome: int | None, reason: str | None) -> None:
    """The end of another operation lets a task go on, or ends it; one that nobody knows ends it, too."""
    engines = Engines(0)
    task = made(after=frozenset([b"another operation"]))
    engines.add(task)
    assert engines.scheduler.is_awaited(b"another operation")
    placed = engines.do(engines.scheduler.ended_elsewhere(b"another operation", outcome, 1.0))
    assert placed == ([task] if reason is None else [])
    assert [end.error and end.error.reason for end in engines.ends] == ([] if reason is None else [reason])
    assert not engines.scheduler.is_awaited(b"another operation")


def test_bounds() -> None:
    """So many tasks, and so many bytes; what has ended leaves room."""
    engines = Engines(0, max_tasks=2, max_bytes=10_000)
    first = made()
    engines.add(first)
    assert not engines.scheduler.has_room(10_000)
    engines.add(made())
    assert not engines.scheduler.has_room(1)
    engines.reply(first)
    assert engines.scheduler.has_room(1)


def test_what_was_held() -> None:
    """A held task is placed where it is found, lost with the engine that had it, or goes on as a new one."""
    engines = Engines(0)
    scheduler = engines.scheduler
    found, lost, again, free = made(), made(), made(retries=1), made()
    for task in (found, lost, again, free):
        scheduler.hold(task, 0.0)
    assert engines.do(scheduler.found(found, 0, 1.0)) == [found]
    engines.do(scheduler.gone(lost, GONE, 1.0))
    assert engines.ends == [End(lost, None)]
    assert engines.do(scheduler.gone(again, GONE, 1.0)) == []
    assert engines.do(scheduler.let_go(free, 1.0)) == []
    assert engines.reply(found)[0] is again
    assert again.attempts == 2


def test_a_held_task_is_stopped_when_it_is_known_where_it_is() -> None:
    """It may run: found, it is for its engine to stop it; found nowhere, it does not begin; lost, not again."""
    engines = Engines(0)
    scheduler = engines.scheduler
    found, lost, free = made(retries=1), made(retries=1), made()
    for task in (found, lost, free):
        scheduler.hold(task, 0.0)
        assert scheduler.cancel(task, 0.0) == []
    assert engines.do(scheduler.found(found, 0, 1.0)) == [found]
    engines.do(scheduler.gone(lost, GONE, 1.0))
    engines.do(scheduler.let_go(free, 1.0))
    ((_, _), (_, error)) = engines.ends
    assert error is not None
    assert error.reason == "OPERATION_CANCELLED"
    engines.reply(found, LOST, GONE)
    assert [end.task for end in engines.ends] == [lost, free, found]


class Machine(RuleBasedStateMachine):
    """Anything in any order."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.engines = Engines(0)
        self.properties: dict[int, dict[str, bytes]] = {0: {}}
        self.opened = {0}
        self.lost: list[Task] = []  # placed on engines that are gone: their replies are still to come
        self.tasks: list[Task] = []
        self.now = 0.0

    def do(self, actions: list[Action]) -> None:
        running = [task for on in self.engines.on.values() for task in on] + self.lost
        placed = self.engines.do(actions)
        assert not set(placed) & set(running), "placed twice"

    @rule(
        target=known, data=st.data(), priority=st.integers(-1, 1), gpu=st.booleans(), retries=st.integers(0, 2)
    )
    def add(self, data: st.DataObject, priority: int, gpu: bool, retries: int) -> Task:
        after = data.draw(st.lists(st.sampled_from(self.tasks), max_size=2)) if self.tasks else []
        task = made(
            priority=priority,
            where=GPU if gpu else (),
            retries=retries,
            after=frozenset(one.task_id for one in after if one.state is not State.ENDED),
            after_any_outcome=data.draw(st.booleans()),
            placement_timeout=data.draw(st.sampled_from([None, 3.0])),
        )
        self.tasks.append(task)
        self.do(self.engines.scheduler.add(task, self.now))
        return task

    @rule(target=known, retries=st.integers(0, 2))
    def hold(self, retries: int) -> Task:
        task = made(retries=retries)
        self.tasks.append(task)
        self.engines.scheduler.hold(task, self.now)
        return task

    @rule(data=st.data(), how=st.sampled_from(["found", "gone", "let go", "known"]))
    def resolve(self, data: st.DataObject, how: str) -> None:
        scheduler = self.engines.scheduler
        held = [task for task in self.tasks if task.state is State.HELD]
        if not held or (how == "found" and not self.properties):
            return
        task = data.draw(st.sampled_from(held))
        match how:
            case "found":
                self.do(scheduler.found(task, data.draw(st.sampled_from(sorted(self.properties))), self.now))
            case "gone":
                self.do(scheduler.gone(task, GONE, self.now))
            case "let go":
                self.do(scheduler.let_go(task, self.now))
            case _:
                self.do(scheduler.known_end(task, OK, self.now))

    @rule(engine_id=st.integers(0, 3), gpu=st.booleans(), is_open=st.booleans())
    def engine(self, engine_id: int, gpu: bool, is_open: bool) -> None:
        self.properties[engine_id] = {"gpu": b"true"} if gpu else {}
        (self.opened.add if is_open else self.opened.discard)(engine_id)
        placed = self.engines.open(engine_id, is_open=is_open, now=self.now, **self.properties[engine_id])
        assert all(task.state is State.PLACED for task in placed)

    @rule(engine_id=st.integers(0, 3))
    def engine_goes(self, engine_id: int) -> None:
        if engine_id in self.properties:
            del self.properties[engine_id]
            self.opened.discard(engine_id)
            self.lost += self.engines.on.pop(engine_id)
            self.do(self.engines.scheduler.engine_gone(engine_id, self.now))

    @rule(engine_id=st.integers(0, 3), count=st.integers(0, 2))
    def views(self, engine_id: int, count: int) -> None:
        self.engines.others[engine_id] = count
        self.do(self.engines.scheduler.engine_goes_on(engine_id, self.now))

    @rule(
        data=st.data(),
        outcome=st.sampled_from([OK, RAISED, LOST, REJECTED, RELEASED]),
        has_run=st.booleans(),
        run_time=st.sampled_from([0.0, 1e-6, 0.05, 9e9]),
    )
    def reply(self, data: st.DataObject, outcome: int, has_run: bool, run_time: float) -> None:
        running = sorted({task.task_id for on in self.engines.on.values() for task in on})
        if running:
            task = self.engines.scheduler.find(data.draw(st.sampled_from(running)))
            assert task is not None
            assert task.engine_id is not None
            self.engines.on[task.engine_id].discard(task)
            problem = GONE if outcome == LOST else None if has_run else FULL
            self.do(
                self.engines.scheduler.replied(
                    task, outcome, problem, has_run=has_run, run_time=run_time, now=self.now
                )
            )

    @rule(data=st.data())
    def late_loss(self, data: st.DataObject) -> None:
        if self.lost:
            task = self.lost.pop(data.draw(st.integers(0, len(self.lost) - 1)))
            self.do(self.engines.scheduler.replied(task, LOST, GONE, has_run=True, now=self.now))

    @rule(task=consumes(known))
    def cancel(self, task: Task) -> None:
        if task.state is not State.ENDED:
            self.do(self.engines.scheduler.cancel(task, self.now))

    @rule(seconds=st.sampled_from([0.01, 0.3, 5.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.engines.scheduler.tick(self.now))

    @invariant()
    def each_ends_once(self) -> None:
        ended = Counter(end.task.task_id for end in self.engines.ends)
        assert set(ended.values()) <= {1}
        assert {task.task_id for task in self.tasks if task.state is State.ENDED} == set(ended)

    @invariant()
    def attempts_are_bounded(self) -> None:
        assert all(0 <= task.attempts <= task.retries + 1 for task in self.tasks)

    @invariant()
    def counts_are_true(self) -> None:
        alive = [task for task in self.tasks if task.state is not State.ENDED]
        placed = [task for task in alive if task.state is State.PLACED]
        counts = self.engines.scheduler.statistics()
        assert (counts.waiting, counts.placed) == (len(alive) - len(placed), len(placed))
        assert counts.size == 1_124 * len(alive)
        on = sum(map(len, self.engines.on.values()))
        assert len(placed) == on + len(self.lost)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        for task in self.tasks:
            if task.state is State.READY:
                for engine_id in self.opened:
                    engine = self.engines.scheduler._engines[engine_id]
                    matches = all(self.properties[engine_id].get(k) == v for k, v in task.where)
                    if matches and engine_id not in task.excluded and engine.has_room(self.now):
                        assert self.engines.others[engine_id] == 0
                        raise AssertionError(f"{task} could run on {engine_id}")

    @invariant()
    def what_is_blocked_has_something_before_it(self) -> None:
        ids = {task.task_id for task in self.tasks if task.state is not State.ENDED}
        assert all(task.after <= ids for task in self.tasks if task.state is State.BLOCKED)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, phases=(Phase.generate,)
)
