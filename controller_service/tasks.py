"""Tasks: calls to any engine. What the scheduler decides is carried out here, on the references of engines."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from controller_service import placement, task_errors
from controller_service.answers import FINAL
from controller_service.gates import Gates
from controller_service.lease import State as LeaseState
from controller_service.scheduler import Action, Place, Scheduler, TakeBack
from controller_service.task import State, Task
from controller_service.task_call import TaskCall
from controller_service.task_recovery import TaskRecovery
from controller_service.task_rows import TaskRows
from controller_service.work import Attempt, Work, last_attempt
from enginery import _ids, _logs
from enginery._methods import ANY_ENGINE, METHODS
from enginery._outcomes import has_not_run
from enginery._reasons import DeliveryError
from enginery._replies import undelivered
from enginery._status import from_bytes
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from controller_service.answers import Answers
    from controller_service.events import Registration
    from controller_service.journal_records import KeptTask
    from controller_service.reference import EngineFromReference
    from controller_service.router import Receiver
    from enginery._function_window import Function

logger = logging.getLogger(__name__)

RUN = frozenset((METHODS["Execute"], METHODS["Apply"]))
"""What a task may call."""
MAX_ENDED = 32_768
"""Tasks that have ended and are remembered, the newest."""
_AT_ONCE = 256  # tasks that are restored before the loop does something else
_FINAL_ERRORS = frozenset({"DEPENDENCY_FAILED", "TASK_REJECTED"})
_WITH_ERROR = frozenset((frame_pb2.OUTCOME_LOST, frame_pb2.OUTCOME_NOT_DELIVERED, frame_pb2.OUTCOME_CANCELLED))


class Tasks:
    """All tasks of a controller."""

    def __init__(
        self,
        references: Mapping[int, EngineFromReference],
        answers: Answers,
        *,
        controller_epoch: int,
        settling: float,
    ) -> None:
        """Place tasks on the engines of `references`, which others keep up to date.

        Engines of an earlier controller may still be on their way for `settling` seconds, if the journal does
        not say which.
        """
        self.scheduler = Scheduler()
        self.look_up: Callable[[bytes], None] = lambda _operation_id: None
        """Finds out how an operation ends that tasks come after and that is none itself."""
        self._references = references
        self._journal = answers.journal
        self._rows = TaskRows(answers.journal, self.scheduler.find, self._send)
        self._recovery = TaskRecovery(self, answers, controller_epoch, settling)
        self._gates = Gates()
        self._ended: OrderedDict[bytes, Attempt] = (
            OrderedDict()
        )  # a dict looks longer and longer for its oldest
        self._closed: DeliveryError | None = None
        self._actions: deque[Action] = deque()
        self._is_acting = False
        self._is_going_on = False

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Tasks({self.scheduler.statistics()}, {self._recovery}, {self._rows})"

    # As callers see it

    def submit(
        self,
        call: frame_pb2.Call,
        receiver: Receiver,
        function: Function | None = None,
        *,
        is_named: bool = False,
    ) -> None:
        """Take a task, and have its reply, or an error as such, delivered.

        `function` is the one that it names, if it does; `is_named` says that its caller has named it, so that
        it may have come before without saying so.
        """
        try:
            self._submit(call, receiver, function, is_named)
        except DeliveryError as error:
            receiver.deliver(undelivered(call.call_id, error))

    def _submit(
        self, call: frame_pb2.Call, receiver: Receiver, function: Function | None, is_named: bool
    ) -> None:
        if self._closed is not None:
            raise self._closed
        task_id = call.operation_id
        options = placement.options_of(call)
        own = TaskCall.of(call, "" if options is placement.NO_OPTIONS else options.label, function)
        known = self.scheduler.find(task_id)
        if known is not None:
            if not own.asks_the_same_as(known.payload.call):
                raise DeliveryError("OPERATION_EXISTS", operation_id=_ids.show(task_id))
            known.payload.join(receiver, call.call_id)
            return
        ended = self._ended.get(task_id)
        if ended is not None and ended.mark is not None and own.is_another_than(ended.mark):
            raise DeliveryError("OPERATION_EXISTS", operation_id=_ids.show(task_id))
        if own.method not in RUN:
            cause = f"a task is a call of Execute or Apply, not of method {own.method}"
            raise DeliveryError("BAD_REQUEST", field="method", cause=cause)
        now = time.monotonic()
        work = Work(own, options, time.time_ns(), [(receiver, call.call_id)])
        task = placement.task(task_id, call.session_id, work)
        self._admit(task, now)
        sent_epoch = call.sent_epoch
        self._rows.added(task, now)
        if sent_epoch or is_named:
            self._recovery.came_again(task, sent_epoch)
        else:
            self.begin(task, self.scheduler.add(task, now))

    def _admit(self, task: Task, now: float) -> None:
        """Raise QUEUE_FULL if there is no room; then what its session sends behind it has none either."""
        is_behind = bool(self._gates) and self._gates.hold_back(task.session_id, task.task_id, now)
        if self.scheduler.has_room(task.size) and not is_behind:
            if self._gates:
                self._gates.open(task.session_id)
            return
        if not is_behind and task.session_id:
            self._gates.close(task.session_id, task.task_id, now)
        counts = self.scheduler.statistics()
        size = f"{counts.waiting + counts.placed} tasks, {counts.size} bytes"
        raise DeliveryError("QUEUE_FULL", engine_id=ANY_ENGINE, size=size, option="the number of engines")

    def cancel(self, task: Task, how: bytes = b"") -> None:
        """Stop a task, unless it is on an engine: that must be told, and then it is not run again.

        `how` is the CancelRequest, for an engine that is found to have it.
        """
        now = time.monotonic()
        task.payload.cancel = how
        self.act(self.scheduler.cancel(task, now))
        if self._rows.withdraw(task):
            outcome = frame_pb2.OUTCOME_NOT_DELIVERED
            self.act(self.scheduler.replied(task, outcome, None, has_run=False, now=now))

    def release(self, operation_id: bytes) -> bool:
        """Keep no answer of a task that has not ended; return whether it is one."""
        task = self.scheduler.find(operation_id)
        if task is None:
            return False
        task.payload.is_released = True
        return True

    def ended(self, operation_id: bytes) -> Attempt | None:
        """Return what is remembered of a task that has ended."""
        return self._ended.get(operation_id)

    def after_operation(self, operation_id: bytes, outcome: int | None) -> None:
        """An operation that tasks come after has ended so; None: nobody knows it."""
        self.act(self.scheduler.ended_elsewhere(operation_id, outcome, time.monotonic()))

    def remember(self, ended: Attempt) -> None:
        """Remember a task that has ended."""
        self._ended[ended.task_id] = ended
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def forget_ended(self, operation_id: bytes) -> None:
        """Remember nothing of a task that has ended."""
        self._ended.pop(operation_id, None)

    def has_engine(self, engine_id: int, epoch: int) -> bool:
        """Return whether that engine is registered."""
        return engine_id in self._references and self._references[engine_id].epoch == epoch

    # As engines see it

    def expect(self, engine_ids: Collection[int]) -> None:
        """Those engines of an earlier controller are still to come back."""
        self._recovery.expect(engine_ids)

    async def restore(self, kept: Iterable[KeptTask]) -> None:
        """Take over the tasks of an earlier controller."""
        for number, row in enumerate(kept):
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
            try:
                task = self._rows.restored(row)
            except DeliveryError as error:
                logger.error("a task of the journal cannot be read, and is dropped: %s", error)
            else:
                self._recovery.restored(task)

    def connected(self, engine: Registration, inventory: Collection[bytes]) -> None:
        """The calls of an engine flow; its host knows the operations of the `inventory`."""
        self.engine_is(engine)
        self._recovery.connected(engine.engine_id, engine.epoch, inventory)

    def engine_is(self, engine: Registration) -> None:
        """Take note of how an engine is that is registered."""
        reference = self._references[engine.engine_id]
        is_open = (
            reference.is_connected and engine.state is LeaseState.CONNECTED and engine.draining_since is None
        )
        self.act(
            self.scheduler.engine_is(
                engine.engine_id,
                engine.epoch,
                placement.properties(engine.properties),
                reference.operation_count,
                is_open=is_open,
                now=time.monotonic(),
            )
        )

    def engine_gone(self, engine_id: int, cause: DeliveryError) -> None:
        """An engine is unregistered; its reference is not lost yet."""
        self.act(self.scheduler.engine_gone(engine_id, time.monotonic()))
        self._recovery.gone(engine_id, cause)

    def engine_goes_on(self, engine_id: int) -> None:
        """An engine has ended an operation that was no task."""
        if self.scheduler.has_ready(engine_id):
            self.act(self.scheduler.engine_goes_on(engine_id, time.monotonic()))

    def tick(self) -> None:
        """Some time has passed, a second at most."""
        now = time.monotonic()
        self.act(self.scheduler.tick(now))
        self._recovery.tick(now)
        self._rows.tick(now)

    def close(self, error: DeliveryError) -> None:
        """Take no more, and tell callers that still wait. What is on engines goes on there."""
        self._closed = error
        for task in self.scheduler.newest_first():
            task.payload.tell(undelivered(0, error))

    # How it is done

    def begin(self, task: Task, actions: Iterable[Action]) -> None:
        """Begin with a task: find out about what it comes after and is none of the tasks."""
        self.act(actions)
        for one in task.after if task.state is State.BLOCKED else ():
            if self.scheduler.find(one) is None:
                known = self._ended.get(one)
                if known is None:
                    self.look_up(one)
                else:
                    self.after_operation(one, known.outcome)

    def act(self, actions: Iterable[Action]) -> None:
        """Do what was decided; what that leads to at once, such as a refusal, comes behind it."""
        self._actions.extend(actions)
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._actions:
                action = self._actions.popleft()
                if isinstance(action, Place):
                    self._place(action.task)
                elif isinstance(action, TakeBack):
                    self._take_back(action.engine_id, action.tasks)
                else:
                    self._end(action.task, action.error)
        finally:
            self._is_acting = False
        if self.scheduler.has_more and not self._is_going_on:
            self._is_going_on = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_going_on = False
        if self._closed is None:  # else everybody was told
            self.act(self.scheduler.go_on(time.monotonic()))

    def _place(self, task: Task) -> None:
        work: Work = task.payload
        work.reply = None
        if not work.is_kept or self._rows.placed(task):
            self._send(task)
        work.note_change()

    def _send(self, task: Task) -> None:
        """Send a task to the engine that it is placed on."""
        assert task.engine_id is not None
        reference = self._references.get(task.engine_id)
        if reference is None or reference.epoch != task.epoch:  # it left while the journal was written
            outcome = frame_pb2.OUTCOME_NOT_DELIVERED
            self.act(self.scheduler.replied(task, outcome, None, has_run=False, now=time.monotonic()))
            return
        operation_id = _ids.attempt_id(task.task_id, task.attempts)
        reference.submit_task(task.payload.call, operation_id, _Receiver(self, task))
        if task.is_stopping:  # it was cancelled before it was found here
            reference.cancel(operation_id, task.payload.cancel)

    def _take_back(self, engine_id: int, tasks: list[Task]) -> None:
        """Ask an engine for tasks behind a long one, which others could run."""
        logger.info("takes back %d tasks behind a long one", len(tasks), extra=_logs.about(engine=engine_id))
        self._references[engine_id].recall([last_attempt(task).operation_id for task in tasks])

    def replied(self, task: Task, reply: frame_pb2.Reply) -> None:
        """Take the reply of the engine that a task was placed on."""
        if self._closed is not None:
            return  # it is asked for again by the next controller
        outcome = reply.outcome
        problem = from_bytes(reply.error) if outcome in _WITH_ERROR and reply.error else None
        has_run = problem is None or not has_not_run(problem)
        if has_run:
            task.payload.reply = reply
            if outcome == frame_pb2.OUTCOME_REJECTED:
                task.payload.rejection = reply
        attempt, engine_id, epoch = task.attempts, task.engine_id, task.epoch
        run_time, now = reply.run_us / 1e6, time.monotonic()
        self.act(self.scheduler.replied(task, outcome, problem, has_run=has_run, run_time=run_time, now=now))
        if task.state is not State.ENDED:
            self._rows.changed(task)
            if has_run and engine_id is not None and self.has_engine(engine_id, epoch):
                # An attempt that is not the last must not be taken for its task.
                self._references[engine_id].forget(_ids.attempt_id(task.task_id, attempt))

    def _end(self, task: Task, error: DeliveryError | None) -> None:
        work: Work = task.payload
        reply = work.reply or work.rejection
        if reply is None and error is None:  # it was rejected before this controller began
            error = task_errors.rejected(task)
        if error is not None:
            reply = undelivered(0, error)
        assert reply is not None
        if task.engine_id is not None:
            reply.engine_id = task.engine_id
        reply.attempts = task.attempts
        work.reply = reply
        work.tell(reply)
        if work.is_kept:
            self._rows.ended(task)
        self.remember(last_attempt(task, reply.outcome, work.call.mark))
        if not work.is_released and (reply.outcome in FINAL or (error and error.reason in _FINAL_ERRORS)):
            self._journal.add_result(
                task.task_id,
                ANY_ENGINE if task.engine_id is None else task.engine_id,
                work.call.method,
                task.session_id,
                reply.outcome,
                reply.response,
                reply.error,
                task.attempts,
                work.options.label,
            )
        work.note_change()


class _Receiver:
    """Receives the reply of one engine to one attempt of a task."""

    __slots__ = ("_task", "_tasks")
    is_gone = False

    def __init__(self, tasks: Tasks, task: Task) -> None:
        self._tasks = tasks
        self._task = task

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Take it."""
        self._tasks.replied(self._task, reply)
