"""The scheduler: which task waits, and which engine runs it. A synchronous machine without I/O.

Tasks, engines and replies go in, and actions come out: place a task on an engine, or end it. Time is an
argument, in seconds of any steady clock. After every event this holds: no task that is ready has an engine that
would take it.
docs/machines/scheduler.md tells all of it.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from controller_service import task_errors
from controller_service.deadlines import Deadlines, waits
from controller_service.shelf import Engine, Shelf
from controller_service.task import TRANSITIONS, State, Task
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from controller_service.shelf import Where
    from enginery._reasons import DeliveryError

TASK_OVERHEAD = 1_024
"""Bytes that a task costs beside its request."""
MAX_TASKS = 100_000
MAX_BYTES = 256 << 20
"""How many tasks may be here, and how many bytes; more are refused, to come again later."""
_AT_ONCE = 128  # tasks that are let go on, or end, since what they come after has ended: 5 ms
_MAX_SHELVES = 64  # beyond which empty ones are removed


class Verdict(enum.Enum):
    """What a reply means for its task."""

    END = "that is how it ended"
    RETRY = "it is run again if it may be"
    ELSEWHERE = "that engine is not offered it again; it has not run"
    AGAIN = "it has not run, and is placed again"

    __hash__ = object.__hash__  # Enum's is Python


OK = frame_pb2.OUTCOME_OK
USER_ERROR = frame_pb2.OUTCOME_USER_ERROR
LOST = frame_pb2.OUTCOME_LOST
CANCELLED = frame_pb2.OUTCOME_CANCELLED
NOT_DELIVERED = frame_pb2.OUTCOME_NOT_DELIVERED
VERDICTS: dict[int, Verdict] = {
    OK: Verdict.END,
    USER_ERROR: Verdict.RETRY,
    LOST: Verdict.RETRY,
    frame_pb2.OUTCOME_REJECTED: Verdict.ELSEWHERE,
    NOT_DELIVERED: Verdict.END,
    CANCELLED: Verdict.END,
    frame_pb2.OUTCOME_TIMED_OUT: Verdict.END,
    frame_pb2.OUTCOME_RELEASED: Verdict.RETRY,  # it has run, and how it ended is lost
}
"""What each outcome means, unless the error says that it has not run."""
_NOT_RUN = frozenset({Verdict.ELSEWHERE, Verdict.AGAIN})


class Place(NamedTuple):
    """Send `task` to the engine that it names."""

    task: Task


class End(NamedTuple):
    """Tell that `task` has ended: with `error`, or else with the reply that came last."""

    task: Task
    error: DeliveryError | None


class TakeBack(NamedTuple):
    """Ask an engine for those of its `tasks` that have not begun; its replies say that they have not run."""

    engine_id: int
    tasks: list[Task]


Action: TypeAlias = Place | End | TakeBack


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts as they are now."""

    waiting: int
    placed: int
    size: int


class Scheduler:
    """All tasks of a controller that have not ended. Events return what is to be done, in order."""

    def __init__(self, *, max_tasks: int = MAX_TASKS, max_bytes: int = MAX_BYTES) -> None:
        """Begin with no task and no engine."""
        self._max_tasks = max_tasks
        self._max_bytes = max_bytes
        self._tasks: dict[bytes, Task] = {}
        self._engines: dict[int, Engine] = {}
        self._shelves: dict[tuple[Where, frozenset[int]], Shelf] = {}
        self._behind: dict[bytes, dict[Task, None]] = {}  # tasks, by what they come after
        self._following: deque[tuple[bytes, int | None, deque[Task]]] = deque()  # what ended, and those behind
        self._deadlines = Deadlines()
        self._arrivals = 0
        self._turns = itertools.count(1)
        self._bytes = 0
        self._placed = 0
        self._actions: list[Action] = []

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Scheduler({self.statistics()}, engines={list(self._engines)})"

    def __len__(self) -> int:
        """Return how many tasks have not ended."""
        return len(self._tasks)

    def statistics(self) -> Statistics:
        """Return counts."""
        return Statistics(len(self._tasks) - self._placed, self._placed, self._bytes)

    def find(self, task_id: bytes) -> Task | None:
        """Return a task that has not ended."""
        return self._tasks.get(task_id)

    def newest_first(self) -> list[Task]:
        """Return the tasks that have not ended."""
        return list(reversed(self._tasks.values()))

    # Tasks

    def has_room(self, size: int) -> bool:
        """Return whether a task of that size can be added."""
        return len(self._tasks) < self._max_tasks and self._bytes + size + TASK_OVERHEAD <= self._max_bytes

    def add(self, task: Task, now: float) -> list[Action]:
        """Take a new task, which knows what of `after` has not ended yet."""
        self._take(task, now)
        self._begin(task, now)
        return self._done()

    def hold(self, task: Task, now: float) -> None:
        """Take a task that may be on an engine already, which is still to come back."""
        self._take(task, now)
        self._move(task, State.HELD)

    def let_go(self, task: Task, now: float) -> list[Action]:
        """No engine has a task that was held: it goes on as a new one."""
        if task.is_stopping:
            self._end(task, task_errors.cancelled(task), now, CANCELLED)
        else:
            self._begin(task, now)
        return self._done()

    def found(self, task: Task, engine_id: int, now: float) -> list[Action]:
        """An engine that is known has a task that was held: it is sent there, and joins."""
        self._place(task, self._engines[engine_id], now)
        return self._done()

    def known_end(self, task: Task, outcome: int, now: float) -> list[Action]:
        """A held task has ended before, and what came then is told again."""
        self._end(task, None, now, outcome)
        return self._done()

    def gone(self, task: Task, problem: DeliveryError, now: float) -> list[Action]:
        """The engine that a held task may have been on does not come back: `problem` says why."""
        task.attempts += 1
        if task.attempts <= task.retries and not task.is_stopping:
            self._again(task, now)
        else:
            self._end(task, task_errors.lost(task, problem) if task.attempts > 1 else None, now, LOST)
        return self._done()

    def ended_elsewhere(self, operation_id: bytes, outcome: int | None, now: float) -> list[Action]:
        """An operation that tasks come after, and that is no task here, has ended so; None: it is not known."""
        self._let_follow(operation_id, outcome, now)
        return self._done()

    def has_ready(self, engine_id: int) -> bool:
        """Return whether tasks wait that an engine may run."""
        engine = self._engines.get(engine_id)
        return engine is not None and bool(engine.shelves)

    def is_awaited(self, operation_id: bytes) -> bool:
        """Return whether tasks come after that operation."""
        return operation_id in self._behind

    def replied(
        self,
        task: Task,
        outcome: int,
        problem: DeliveryError | None,
        *,
        has_run: bool,
        run_time: float = 0.0,
        now: float,
    ) -> list[Action]:
        """The engine that `task` was placed on answered; `problem` is the error of the reply, if it is one.

        `has_run` is False if the reply says that it never began and may begin there yet. `run_time` is for how
        long it ran, in seconds; 0 if that is not known.
        """
        engine = self._leave(task)
        if engine is not None and has_run:
            engine.answered(task.placed_at, run_time, now)
        verdict = _verdict(outcome, problem) if has_run else Verdict.AGAIN
        if engine is not None and problem is not None:
            engine.refused(problem.reason, now)
        if verdict in _NOT_RUN:
            task.attempts -= 1
        if task.is_stopping and verdict in _NOT_RUN:
            self._end(task, task_errors.cancelled(task), now, CANCELLED)
        elif verdict is Verdict.END or task.is_stopping:
            self._end(task, None, now, outcome)
        elif verdict is Verdict.AGAIN:
            self._again(task, now)
        elif verdict is Verdict.ELSEWHERE:
            task.excluded |= {task.engine_id or 0}
            self._again(task, now)
            self._drop_hopeless(self._shelf(task), now)
        elif task.attempts <= task.retries:
            self._again(task, now)
        else:
            is_poison = outcome == LOST and problem is not None and task.attempts > 1
            self._end(task, task_errors.lost(task, problem) if is_poison and problem else None, now, outcome)
        if engine is not None:
            self._fill(engine, now)
        return self._done()

    def cancel(self, task: Task, now: float) -> list[Action]:
        """Stop a task. One that is on an engine, or may be, must be cancelled there; it is not run again."""
        task.is_stopping = True
        if task.state not in (State.PLACED, State.HELD):
            self._end(task, task_errors.cancelled(task), now, CANCELLED)
        return self._done()

    # Engines

    def engine_is(
        self,
        engine_id: int,
        epoch: int,
        properties: Mapping[str, bytes],
        operation_count: Callable[[], int],
        *,
        is_open: bool,
        now: float,
    ) -> list[Action]:
        """An engine is new, or has changed. It is offered tasks while it `is_open`."""
        engine = self._engines.get(engine_id)
        if engine is None:
            engine = self._engines[engine_id] = Engine(engine_id, epoch, operation_count)
        if is_open and not engine.is_open:
            engine.is_back()
        engine.is_open = is_open
        engine.closed_until = 0.0
        if engine.properties != properties or not engine.is_known:
            engine.properties, engine.is_known = properties, True
            for shelf in self._shelves.values():
                shelf.consider(engine)
            self._drop_all_hopeless(now)
        self._fill(engine, now)
        return self._done()

    def engine_goes_on(self, engine_id: int, now: float) -> list[Action]:
        """An engine has answered a call that was no task: a task may have its turn."""
        engine = self._engines.get(engine_id)
        if engine is not None and engine.shelves:
            # Else a view that keeps an engine busy would keep all tasks away from it.
            if not engine.has_room(now) and engine.may_queue(now):
                self._place(_first(engine), engine, now)
            self._fill(engine, now)
        return self._done()

    def engine_gone(self, engine_id: int, now: float) -> list[Action]:
        """An engine is unregistered. Replies to what was placed on it still come."""
        engine = self._engines.pop(engine_id, None)
        if engine is not None:
            engine.is_open = False
            for shelf in self._shelves.values():
                shelf.forget(engine)
            self._drop_all_hopeless(now)
        return self._done()

    def tick(self, now: float) -> list[Action]:
        """Time has passed. At least once a second."""
        for task in filter(waits, self._deadlines.due(now)):  # the end of one may have ended another
            self._end(task, task_errors.not_placed(task, self._obstacle(task)), now, NOT_DELIVERED)
        for engine in self._engines.values():
            self._fill(engine, now)
        self._take_back(now)
        if len(self._shelves) > _MAX_SHELVES:
            self._shelves = {key: shelf for key, shelf in self._shelves.items() if shelf}
        return self._done()

    @property
    def has_more(self) -> bool:
        """Whether `go_on` is to be called soon: more tasks follow from what has ended than fit in one go."""
        return bool(self._following)

    def go_on(self, now: float) -> list[Action]:
        """Do some more of what follows from what has ended."""
        self._follow(now)
        return self._done()

    # How it is done

    def _done(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _take(self, task: Task, now: float) -> None:
        task.arrival = task.arrival or self._arrivals + 1
        self._arrivals = max(self._arrivals, task.arrival)
        self._tasks[task.task_id] = task
        self._bytes += task.size + TASK_OVERHEAD
        if task.placement_timeout is not None:
            self._deadlines.add(now + task.placement_timeout, task, self._max_tasks)

    def _begin(self, task: Task, now: float) -> None:
        if task.after:
            self._move(task, State.BLOCKED)
            for one in task.after:
                self._behind.setdefault(one, {})[task] = None
        else:
            self._again(task, now)

    def _move(self, task: Task, state: State) -> None:
        if state not in TRANSITIONS[task.state]:
            raise AssertionError(f"{task} cannot become {state.name}")
        task.state = state

    def _again(self, task: Task, now: float) -> None:
        self._move(task, State.READY)
        self._offer(task, now)

    def _offer(self, task: Task, now: float) -> None:
        """Give a ready task to the engine that has least to do, or let it wait."""
        shelf = self._shelf(task)
        if not shelf:  # else nobody has room for those that are on it
            engine = shelf.least_loaded(now)
            if engine is not None:
                self._place(task, engine, now)
                return
        shelf.add(task)

    def _fill(self, engine: Engine, now: float) -> None:
        """Give an engine what comes first, while it has room."""
        while engine.shelves and engine.has_room(now):
            self._place(_first(engine), engine, now)

    def _take_back(self, now: float) -> None:
        """Let free engines have what lies behind a long task that nobody foresaw."""
        free = [engine for engine in self._engines.values() if not engine.tasks and engine.has_room(now)]
        for engine in self._engines.values() if free else ():
            if engine.is_stuck(now):
                tasks = [task for task in engine.to_give_back() if self._suits(task, free)]
                if tasks:
                    self._actions.append(TakeBack(engine.engine_id, tasks))

    def _suits(self, task: Task, engines: list[Engine]) -> bool:
        shelf = self._shelf(task)
        return any(engine.engine_id in shelf.engines for engine in engines)

    def _place(self, task: Task, engine: Engine, now: float) -> None:
        self._move(task, State.PLACED)
        task.engine_id, task.epoch, task.placed_at = engine.engine_id, engine.epoch, now
        task.attempts += 1
        self._placed += 1
        engine.tasks[task] = None
        engine.placed_bytes += task.size
        engine.turn = next(self._turns)
        self._actions.append(Place(task))

    def _leave(self, task: Task) -> Engine | None:
        """Take a task from its engine; return that, unless it is gone."""
        self._placed -= 1
        engine = self._engines.get(task.engine_id or 0)
        if engine is None or engine.epoch != task.epoch:
            return None
        engine.tasks.pop(task, None)
        engine.placed_bytes -= task.size
        return engine

    def _end(self, task: Task, error: DeliveryError | None, now: float, outcome: int) -> None:
        self._finish(task, error)
        if self._behind:
            self._let_follow(task.task_id, outcome, now)

    def _finish(self, task: Task, error: DeliveryError | None) -> None:
        """End a task; those that come after it are still to be told."""
        was_ready = task.is_ready
        self._move(task, State.ENDED)
        if was_ready:
            self._shelf(task).discard()
        del self._tasks[task.task_id]
        self._bytes -= task.size + TASK_OVERHEAD
        self._actions.append(End(task, error))
        if self._behind:
            for one in task.after & self._behind.keys():
                self._behind[one].pop(task, None)
                if not self._behind[one]:
                    del self._behind[one]

    def _let_follow(self, operation_id: bytes, outcome: int | None, now: float) -> None:
        """Let those go on that come after an operation, which ended so; None if it is not known."""
        self._note_end(operation_id, outcome)
        self._follow(now)

    def _note_end(self, operation_id: bytes, outcome: int | None) -> None:
        tasks = self._behind.pop(operation_id, None)
        if tasks:
            self._following.append((operation_id, outcome, deque(tasks)))

    def _follow(self, now: float) -> None:
        """Let some go on that come after what has ended.

        What ends with it may end others, in chains as long as there are tasks: so one after another, since each
        within the one before would be too deep, and not all of them in one go.
        """
        for _ in range(_AT_ONCE):
            if not self._following:
                return
            before, how, tasks = self._following[0]
            task = tasks.popleft()
            if not tasks:
                self._following.popleft()
            task.after -= {before}
            if task.state is not State.BLOCKED:
                continue  # it has ended with another of these
            if how is None:
                error = task_errors.not_found(before)
            elif how != OK and not task.after_any_outcome:
                error = task_errors.not_after(task, before, how)
            else:
                if not task.after:
                    self._again(task, now)
                continue
            self._finish(task, error)
            self._note_end(task.task_id, NOT_DELIVERED)

    def _shelf(self, task: Task) -> Shelf:
        key = task.where, task.excluded
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf(task.where, task.excluded)
            for engine in self._engines.values():
                shelf.consider(engine)
        return shelf

    def _drop_all_hopeless(self, now: float) -> None:
        for shelf in list(self._shelves.values()):
            self._drop_hopeless(shelf, now)

    def _drop_hopeless(self, shelf: Shelf, now: float) -> None:
        """End tasks that every engine that could run them has rejected."""
        while shelf.is_hopeless and shelf:
            self._end(shelf.first(), None, now, frame_pb2.OUTCOME_REJECTED)

    def _obstacle(self, task: Task) -> str:
        """Return why a task waits."""
        if task.state is State.BLOCKED:
            return "what it comes after has not ended"
        if task.state is State.HELD:
            return "it may be on an engine that has not come back"
        if not self._engines:
            return "no engine is registered"
        return "those that match were busy" if self._shelf(task).engines else "none has what it asks for"


def _verdict(outcome: int, problem: DeliveryError | None) -> Verdict:
    if problem is not None and problem.reason == "KERNEL_NOT_STARTING":
        return Verdict.ELSEWHERE  # nobody knows when that engine runs anything
    return VERDICTS.get(outcome, Verdict.END)


def _first(engine: Engine) -> Task:
    """Take out the task that an engine runs next."""
    if len(engine.shelves) == 1:
        return next(iter(engine.shelves)).pop()
    return min(engine.shelves, key=Shelf.head).pop()
