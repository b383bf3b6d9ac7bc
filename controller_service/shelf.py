"""Tasks that wait for the same engines, and those engines. Without I/O; the scheduler's alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from controller_service.task import Task

Where: TypeAlias = tuple[tuple[str, bytes], ...]
"""Properties that an engine must have, by rising name; values in a form in which equal ones are the same."""
AHEAD = 0.05
"""Seconds of work that an engine is given ahead of time."""
MAX_PLACED = 512
"""Tasks that an engine is given at the same time: enough for tasks that take 100 us."""
MAX_PLACED_BYTES = 16 << 20
"""Bytes of such tasks, unless one alone is larger."""
IN_KERNEL = 8
"""Tasks that its kernel may have already: those it cannot give back at once."""
MAX_WAY = 1.0
"""Seconds that a task and its answer are on their way at most, as far as this is made up for."""
STUCK_AFTER = 4 * AHEAD
"""Seconds without an answer that is due after which an engine gives back what others could run."""
REFUSED_FOR = 0.25
"""Seconds for which an engine that refused a task is offered none."""
NOT_STARTING_FOR = 30.0
"""The same if its kernel does not start; that it has started ends it."""
_WAYS = 4  # a task that takes fewer of them is worth one that waits behind it
_SHARE = 0.2  # of the newest duration in the average
_CLOSED_FOR = {"QUEUE_FULL": REFUSED_FOR, "ENGINE_AWAY": REFUSED_FOR, "KERNEL_NOT_STARTING": NOT_STARTING_FOR}
_MOST_STALE = 64  # tasks that have ended and are in the midst of a shelf, unless more than half of it is left


@dataclass(slots=True, eq=False)
class Engine:
    """One engine, as far as tasks go by it."""

    engine_id: int
    epoch: int
    operation_count: Callable[[], int]
    """How many operations are on it, tasks included."""
    properties: Mapping[str, bytes] = field(default_factory=dict)
    is_known: bool = False
    """Whether its properties were told."""
    is_open: bool = False
    closed_until: float = 0.0
    """Until when it is offered nothing, since it refused."""
    tasks: dict[Task, None] = field(default_factory=dict)
    """Those that it was given, the oldest first."""
    placed_bytes: int = 0
    turn: int = 0
    """The how-manieth placing its last one was, so that equals take turns."""
    window: int = 1
    """How many tasks it is given at the same time."""
    shelves: dict[Shelf, None] = field(default_factory=dict)
    """Those with tasks that it may run."""
    _duration: float | None = None
    _answered_at: float = 0.0
    _way: float | None = None  # seconds that a task and its answer are on their way, the least that was seen

    def has_room(self, now: float) -> bool:
        """Return whether it may be given a task: it has few, and nothing else to do."""
        return (
            self.is_open
            and len(self.tasks) < self.window
            and (self.placed_bytes < MAX_PLACED_BYTES or not self.tasks)
            and now >= self.closed_until
            and self.operation_count() <= len(self.tasks)
        )

    def may_queue(self, now: float) -> bool:
        """Return whether it may be given a task behind what others called, since those calls go on."""
        return self.is_open and not self.tasks and now >= self.closed_until

    def is_stuck(self, now: float) -> bool:
        """Return whether tasks that it could give back wait behind one that takes long."""
        if len(self.tasks) <= IN_KERNEL:
            return False
        oldest = next(iter(self.tasks))
        return now - max(oldest.placed_at + (self._way or 0.0), self._answered_at) > STUCK_AFTER

    def to_give_back(self) -> list[Task]:
        """Return what can be taken back from it; it is given no more until it has answered again."""
        self.window = 1
        return list(self.tasks)[IN_KERNEL:]

    def refused(self, reason: str, now: float) -> None:
        """It answered a task with an error of that reason: offer it nothing for as long as that says."""
        if reason == "ENGINE_STOPPED":
            self.is_open = False  # its goodbye is on its way
        self.closed_until = max(self.closed_until, now + _CLOSED_FOR.get(reason, 0.0))

    def is_back(self) -> None:
        """It is connected anew, perhaps from elsewhere."""
        self._way = None

    def answered(self, placed_at: float, run_time: float, now: float) -> None:
        """It has run a task, one after another as it does, and that took `run_time`: learn how long one takes.

        That is from one answer to the next, but for the time in which the next task was still on its way. A
        `run_time` of 0 is not known: then nothing is learned of the way.
        """
        if run_time:
            way = min(max(0.0, now - placed_at - run_time), MAX_WAY)
            self._way = way if self._way is None else min(way, self._way)
        begun_at = max(placed_at + (self._way or 0.0), self._answered_at)
        duration = now - begun_at
        if run_time:  # some answers come late, and others together with them
            duration = max(run_time, min(duration, run_time + AHEAD))
        self._answered_at = now
        before = self._duration
        self._duration = duration if before is None else before + _SHARE * (duration - before)
        self.window = 1 + self._ahead(self._duration, self._way or 0.0)

    @staticmethod
    def _ahead(duration: float, way: float) -> int:
        """Return how many tasks, beside one, it is to have that take so long each."""
        if duration * (MAX_PLACED - 1) <= AHEAD + way:
            return MAX_PLACED - 1
        ahead = int((AHEAD + way) / duration)
        return 1 if not ahead and duration < _WAYS * way else ahead


class Shelf:
    """The ready tasks that may go to the same engines: those of one `where`, rejected by the same engines."""

    def __init__(self, where: Where, excluded: frozenset[int]) -> None:
        """Begin empty."""
        self._where = where
        self._excluded = excluded
        self._heap: list[tuple[int, int, Task]] = []
        self._stale = 0  # tasks of it that have ended
        self._matching: dict[int, Engine] = {}  # the excluded ones too
        self.engines: dict[int, Engine] = {}
        """Those that may run them."""

    def __len__(self) -> int:
        """Return how many tasks wait."""
        return len(self._heap) - self._stale

    @property
    def is_hopeless(self) -> bool:
        """Whether every engine that matches has rejected the tasks."""
        return bool(self._excluded) and bool(self._matching) and not self.engines

    def consider(self, engine: Engine) -> None:
        """Note whether an engine, which is new or has changed, matches."""
        self.forget(engine)
        if all(engine.properties.get(name) == value for name, value in self._where):
            self._matching[engine.engine_id] = engine
            if engine.engine_id not in self._excluded:
                self.engines[engine.engine_id] = engine
                if self:
                    engine.shelves[self] = None

    def forget(self, engine: Engine) -> None:
        """An engine is gone."""
        engine.shelves.pop(self, None)
        self._matching.pop(engine.engine_id, None)
        self.engines.pop(engine.engine_id, None)

    def least_loaded(self, now: float) -> Engine | None:
        """Return the engine with room that has least to do; of equals the one that waited longest."""
        best: Engine | None = None
        for engine in self.engines.values():
            if engine.has_room(now) and (
                best is None or (len(engine.tasks), engine.turn) < (len(best.tasks), best.turn)
            ):
                best = engine
        return best

    def add(self, task: Task) -> None:
        """Let a task wait."""
        if not self:
            self._show()
        heappush(self._heap, (-task.priority, task.arrival, task))

    def discard(self) -> None:
        """A task that waited here has ended."""
        self._stale += 1
        if not self:
            self._hide()
        if self._stale > max(_MOST_STALE, len(self)):
            self._heap = [one for one in self._heap if one[2].is_ready]
            heapify(self._heap)
            self._stale = 0

    def head(self) -> tuple[int, int]:
        """Return the place of the task that comes first; there must be one."""
        while not self._heap[0][2].is_ready:
            heappop(self._heap)
            self._stale -= 1
        return self._heap[0][:2]

    def first(self) -> Task:
        """Return the task that comes first; there must be one."""
        self.head()
        return self._heap[0][2]

    def pop(self) -> Task:
        """Take out the task that comes first; there must be one."""
        heap = self._heap
        task = heappop(heap)[2]
        while not task.is_ready:
            self._stale -= 1
            task = heappop(heap)[2]
        if len(heap) == self._stale:
            self._hide()
        return task

    def _show(self) -> None:
        for engine in self.engines.values():
            engine.shelves[self] = None

    def _hide(self) -> None:
        self._heap.clear()
        self._stale = 0
        for engine in self.engines.values():
            engine.shelves.pop(self, None)
