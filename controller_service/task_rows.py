"""Tasks in the journal: which are kept there, and which must be before they are sent.

A task that ends within a second never touches the journal. One that waits or runs for longer is kept, so that
it outlives controller and client. If the journal says of a task that it is on no engine, that must be true
after a crash: such a task is sent to its engine only when the journal names that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from controller_service import placement
from controller_service.journal_records import KeptTask
from controller_service.task import State
from controller_service.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from controller_service.journal import AnyJournal
    from controller_service.task import Task

YOUNG = 1.0
"""Seconds after which a task is kept in the journal."""
_AT_ONCE = 1_000  # tasks that are given to the journal at a time: 2 ms


class TaskRows:
    """What the journal knows of tasks."""

    def __init__(
        self,
        journal: AnyJournal,
        find: Callable[[bytes], Task | None],
        send: Callable[[Task], None],
    ) -> None:
        """Keep tasks in `journal`. `find` returns one that has not ended, `send` sends it to its engine."""
        self._journal = journal
        self._send = send
        self._find = find
        self._young: deque[tuple[float, bytes]] = deque()
        self._unsent: deque[tuple[int, Task]] = deque()  # with the count of records that must be written
        journal.on_commit = self.committed

    def __repr__(self) -> str:
        """Show the counts."""
        return f"TaskRows(young={len(self._young)}, unsent={len(self._unsent)})"

    def added(self, task: Task, now: float) -> None:
        """A task has come."""
        self._young.append((now, task.task_id))

    def restored(self, row: KeptTask) -> Task:
        """Return the task of a row; DeliveryError if it makes no sense."""
        task = placement.task(row.task_id, row.session_id, Work(row.call, row.options, row.submitted_ns))
        task.arrival, task.attempts, task.excluded = row.arrival, row.attempts, row.excluded
        if row.epoch:
            task.engine_id, task.epoch = row.engine_id, row.epoch
        task.payload.is_kept = True
        return task

    def placed(self, task: Task) -> bool:
        """A task that is kept has an engine; return whether it may be sent now, or is once that is safe."""
        self._put(task)
        if not self._journal.is_task_written(task.task_id):
            return True
        self._unsent.append((self._journal.appended, task))
        self._journal.hurry()
        return False

    def changed(self, task: Task) -> None:
        """A task waits again."""
        if task.payload.is_kept:
            self._put(task)

    def ended(self, task: Task) -> None:
        """A task that is kept has ended."""
        self._journal.drop_task(task.task_id)

    def withdraw(self, task: Task) -> bool:
        """Take back a task that is placed and was not sent yet; return whether that is so."""
        for one in self._unsent:
            if one[1] is task:
                self._unsent.remove(one)
                return True
        return False

    def committed(self) -> None:
        """The journal has written something: send what waited for that."""
        while self._unsent and self._unsent[0][0] <= self._journal.committed:
            self._send(self._unsent.popleft()[1])

    def tick(self, now: float) -> None:
        """Give the journal what has become old; and wait for a broken one no longer."""
        self._age(now)
        if self._unsent and self._journal.statistics().is_broken:
            unsent, self._unsent = self._unsent, deque()
            for _, task in unsent:
                self._send(task)

    def _age(self, now: float) -> None:
        """Look at some of the tasks that are old now, and at the rest soon."""
        for _ in range(_AT_ONCE):
            if not self._young or self._young[0][0] >= now - YOUNG:
                return
            task = self._find(self._young.popleft()[1])
            if task is not None and task.state is State.HELD and not task.payload.is_kept:
                self._young.append((now, task.task_id))  # it may be on an engine: a row would say on none
            elif task is not None:
                task.payload.is_kept = True
                self._put(task)
        asyncio.get_running_loop().call_soon(self._age, now)

    def _put(self, task: Task) -> None:
        work: Work = task.payload
        is_placed = task.state is State.PLACED and task.engine_id is not None
        row = KeptTask(
            task_id=task.task_id,
            session_id=task.session_id,
            call=work.call,
            options=work.options,
            submitted_ns=work.submitted_ns,
            arrival=task.arrival,
            attempts=task.attempts,
            engine_id=task.engine_id if is_placed and task.engine_id is not None else -1,
            epoch=task.epoch if is_placed else 0,
            excluded=task.excluded,
        )
        self._journal.put_task(row)
