"""Tasks that may be on an engine already: those that clients send again, and those of an earlier controller.

They are held until it is known where they are, or that they are nowhere: an engine names them in its inventory,
the one that they were placed on comes back or is gone, the journal knows how they ended, or every engine of the
earlier controller has come back without them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from typing import TYPE_CHECKING

from controller_service.answers import Answer, Answers, reply_of
from controller_service.scheduler import LOST, NOT_DELIVERED, OK, USER_ERROR, VERDICTS, Verdict
from controller_service.task import State
from enginery import _ids
from enginery._reasons import DeliveryError
from enginery._replies import undelivered
from enginery._status import from_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from controller_service.journal_records import Result
    from controller_service.task import Task
    from controller_service.tasks import Tasks
    from controller_service.work import Attempt
    from enginery.v1 import frame_pb2

MAX_KNOWN = 65_536
"""Operations of inventories that are remembered, the newest."""
_AT_ONCE = 256  # tasks that are let go before the loop does something else
_BEGUN = frozenset((OK, USER_ERROR, LOST))
_MAX_ATTEMPTS = 8  # by whose ids a task that was sent again is known in an inventory


class TaskRecovery:
    """The tasks that are held."""

    def __init__(self, tasks: Tasks, answers: Answers, controller_epoch: int, settling: float) -> None:
        """Hold for `tasks`; for at most `settling` seconds, unless `expect` says for which engines."""
        self._tasks = tasks
        self._answers = answers
        self._epoch = controller_epoch
        self._expected: set[int] = set()  # engines that the journal knows, and that have not come back
        self._has_expected = False
        self._settles_at = time.monotonic() + settling
        self._is_settled = False
        self._missing: DeliveryError | None = None  # why an engine does not come back
        self._nowhere: dict[bytes, tuple[Task, int]] = {}  # by attempt: those of which nothing is known
        self._somewhere: dict[tuple[int, int], list[Task]] = {}  # by engine id and epoch
        self._known: dict[bytes, int] = {}  # operations of inventories, and their engines
        self._free: deque[Task] = deque()  # those that were looked for everywhere

    def __repr__(self) -> str:
        """Show the counts."""
        return f"TaskRecovery({len(self._nowhere)}, {sum(map(len, self._somewhere.values()))})"

    def expect(self, engine_ids: Collection[int]) -> None:
        """Those engines were registered with an earlier controller, and come back or are gone."""
        self._expected = set(engine_ids)
        self._has_expected = bool(self._expected)

    def restored(self, task: Task) -> None:
        """Hold a task of the journal, which says where it is, if it is anywhere. `expect` comes first."""
        now = time.monotonic()
        self._tasks.scheduler.hold(task, now)
        if task.engine_id is None:
            self._let_go(task)
        elif task.engine_id in self._expected:
            task.attempts -= 1  # found, it is placed once more
            self._somewhere.setdefault((task.engine_id, task.epoch), []).append(task)
        else:
            task.attempts -= 1
            cause = "it was not there any more when the controller was started again"
            self._lose(task, DeliveryError("ENGINE_LOST", engine_id=task.engine_id, cause=cause))

    def came_again(self, task: Task, sent_epoch: int) -> None:
        """Hold a task that was sent before, at the time of that controller; 0 if that is not known."""
        self._tasks.scheduler.hold(task, time.monotonic())
        self._answers.ask(task.task_id, lambda answer: self._asked(task, sent_epoch, answer))

    def _asked(self, task: Task, sent_epoch: int, answer: Answer) -> None:
        if task.state is not State.HELD:
            return  # it was cancelled
        known = self._tasks.ended(task.task_id)
        if answer is not None and not isinstance(answer, DeliveryError) and _is_one_attempt(task, answer):
            self._answers.forget((task.task_id,))  # how the task ends is still to come
            if answer.outcome == LOST:
                self._lose(task, from_bytes(answer.error))
                return
            task.attempts, answer = 1, None
        if isinstance(answer, DeliveryError):
            self._end(task, undelivered(0, answer))
        elif answer is not None:
            task.engine_id = answer.engine_id
            # What an engine tells by itself is of the first: others have ids of their own.
            task.attempts = answer.attempts or int(answer.outcome in _BEGUN)
            self._end(task, reply_of(answer, task.payload.call.method))
        elif known is not None and (known.attempts or known.outcome != NOT_DELIVERED):  # else it has not run
            self._ask_again(task, known)
        elif self._find_in_inventories(task):
            pass
        elif sent_epoch == self._epoch or (not sent_epoch and not self._expected):
            self._let_go(task)
        elif self._is_settled:
            self._settle(task)
        else:
            for attempt, operation_id in _attempts(task):
                self._nowhere[operation_id] = task, attempt

    # Engines

    def connected(self, engine_id: int, epoch: int, inventory: Collection[bytes]) -> None:
        """An engine is here; its host knows the operations of the `inventory`."""
        for task in self._somewhere.pop((engine_id, epoch), ()):
            self._find(task, engine_id)
        for key in [one for one in self._somewhere if one[0] == engine_id]:
            cause = "its registration has ended"  # the journal was behind, and names the one before
            for task in self._somewhere.pop(key):
                self._lose(task, DeliveryError("ENGINE_LOST", engine_id=engine_id, cause=cause))
        self._remember(engine_id, inventory)
        self._expected.discard(engine_id)
        self._settle_all()

    def gone(self, engine_id: int, cause: DeliveryError) -> None:
        """An engine is unregistered."""
        for operation_id in [one for one, known in self._known.items() if known == engine_id]:
            del self._known[operation_id]
        for key in [one for one in self._somewhere if one[0] == engine_id]:
            for task in self._somewhere.pop(key):
                self._lose(task, cause)
        if engine_id in self._expected:
            self._expected.discard(engine_id)
            self._missing = cause
            self._settle_all()

    def tick(self, now: float) -> None:
        """Some time has passed."""
        if now >= self._settles_at:
            self._settle_all(is_late=True)

    def _settle_all(self, *, is_late: bool = False) -> None:
        """Decide on those of which nothing is known, once nothing more will be known."""
        if self._is_settled or self._expected or not (self._has_expected or is_late):
            return
        self._is_settled = True
        nowhere, self._nowhere = self._nowhere, {}
        for task, attempt in nowhere.values():
            if attempt == 1 and task.state is State.HELD:
                self._settle(task)

    # How it is done

    def _settle(self, task: Task) -> None:
        """Go on with a task that no engine which is here has."""
        if self._missing is None:
            self._let_go(task)
        else:
            self._lose(task, self._missing)  # it may have run there

    def _remember(self, engine_id: int, inventory: Collection[bytes]) -> None:
        """Find what an engine has, now and when it is asked for later."""
        for operation_id in inventory:
            self._known[operation_id] = engine_id
            if operation_id in self._nowhere:
                task, attempt = self._nowhere[operation_id]
                task.attempts = attempt - 1
                self._find(task, engine_id)
        for operation_id in list(itertools.islice(self._known, max(0, len(self._known) - MAX_KNOWN))):
            del self._known[operation_id]

    def _find_in_inventories(self, task: Task) -> bool:
        for attempt, operation_id in _attempts(task):
            engine_id = self._known.get(operation_id)
            if engine_id is not None:
                task.attempts = attempt - 1
                self._find(task, engine_id)
                return True
        return False

    def _find(self, task: Task, engine_id: int) -> None:
        if task.state is State.HELD:
            self._tasks.act(self._tasks.scheduler.found(task, engine_id, time.monotonic()))

    def _ask_again(self, task: Task, known: Attempt) -> None:
        """Have the engine that ran a task answer again: its first answer did not arrive."""
        if known.engine_id is not None and self._tasks.has_engine(known.engine_id, known.epoch):
            task.attempts, task.retries = known.attempts - 1, 0  # whatever it says, that is the end
            self._find(task, known.engine_id)
        else:
            shown = _ids.show(task.task_id)
            self._end(task, undelivered(0, DeliveryError("OPERATION_RELEASED", operation_id=shown)))

    def _lose(self, task: Task, cause: DeliveryError) -> None:
        if task.state is State.HELD:
            task.payload.reply = undelivered(0, cause)
            self._tasks.act(self._tasks.scheduler.gone(task, cause, time.monotonic()))

    def _end(self, task: Task, reply: frame_pb2.Reply) -> None:
        """End a task that had ended before."""
        known = self._tasks.ended(task.task_id)
        task.payload.reply = reply
        task.payload.is_released = True  # what is kept of it stays as it is
        self._tasks.act(self._tasks.scheduler.known_end(task, reply.outcome, time.monotonic()))
        self._tasks.forget_ended(task.task_id)
        if known is not None:
            self._tasks.remember(known)

    def _let_go(self, task: Task) -> None:
        """Go on with a task as with a new one, soon: there may be too many for one go."""
        self._free.append(task)
        if len(self._free) == 1:
            asyncio.get_running_loop().call_soon(self._let_some_go)

    def _let_some_go(self) -> None:
        for _ in range(min(_AT_ONCE, len(self._free))):
            task = self._free.popleft()
            if task.state is State.HELD:
                self._tasks.begin(task, self._tasks.scheduler.let_go(task, time.monotonic()))
        if self._free:
            asyncio.get_running_loop().call_soon(self._let_some_go)


def _is_one_attempt(task: Task, answer: Result) -> bool:
    """Return whether that is told by an engine alone, of the first attempt of a task that may run again."""
    return not answer.attempts and bool(task.retries) and VERDICTS.get(answer.outcome) is Verdict.RETRY


def _attempts(task: Task) -> Iterator[tuple[int, bytes]]:
    """Iterate over the attempts by which an engine may know a task, the last first, with their operations."""
    for attempt in range(min(task.retries + 1, _MAX_ATTEMPTS), 0, -1):
        yield attempt, _ids.attempt_id(task.task_id, attempt)
