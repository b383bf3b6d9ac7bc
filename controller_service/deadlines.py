"""By when tasks must have been placed. Without I/O; the scheduler's alone."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from controller_service.task import State

if TYPE_CHECKING:
    from controller_service.task import Task


class Deadlines:
    """When tasks that wait must have been placed, the earliest first."""

    def __init__(self) -> None:
        """Begin with none."""
        self._heap: list[tuple[float, int, Task]] = []

    def add(self, at: float, task: Task, most: int) -> None:
        """Take one more; at most so many tasks wait, so that of more some need not be kept."""
        if len(self._heap) > 2 * most:
            self._heap = [one for one in self._heap if waits(one[2])]
            heapify(self._heap)
        heappush(self._heap, (at, task.arrival, task))

    def due(self, now: float) -> list[Task]:
        """Take out and return those whose time has passed, among them some that do not wait any more."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heappop(self._heap)[2])
        return due


def waits(task: Task) -> bool:
    """Return whether a task was never placed to be run."""
    return task.state in (State.READY, State.BLOCKED, State.HELD) and not task.attempts
