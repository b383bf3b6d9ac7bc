"""Tasks: calls to any engine. What the scheduler decides is carried out here, on the references of engines."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controller_service import placement
from controller_service.answers import FINAL, undelivered
from controller_service.events import EngineEvent, EventKind, Registration
from controller_service.lease import State as LeaseState
from controller_service.scheduler import NOT_RUN, Action, Place, Scheduler
from enginery import _ids, _logs
from enginery._reasons import DeliveryError
from enginery._status import from_bytes
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controller_service.answers import Answers
    from controller_service.reference import EngineFromReference
    from controller_service.router import Receiver
    from controller_service.task import Task

logger = logging.getLogger(__name__)

METHODS = frozenset((frame_pb2.METHOD_EXECUTE, frame_pb2.METHOD_APPLY))
"""What a task may call."""
_WITH_ERROR = frozenset((frame_pb2.OUTCOME_LOST, frame_pb2.OUTCOME_NOT_DELIVERED, frame_pb2.OUTCOME_CANCELLED))


@dataclass(slots=True, eq=False)
class Work:
    """What a task carries: the call that is sent for it, and who waits for the answer."""

    call: frame_pb2.Call
    options: frame_pb2.TaskOptions
    submitted_ns: int
    receivers: list[tuple[Receiver, int]] = field(default_factory=list)
    """With the call id that each gave."""
    reply: frame_pb2.Reply | None = None
    """The last that came."""


class Tasks:
    """All tasks of a controller."""

    def __init__(self, references: Mapping[int, EngineFromReference], answers: Answers) -> None:
        """Place tasks on the engines of `references`, which others keep up to date."""
        self.scheduler = Scheduler()
        self._references = references
        self._answers = answers
        self._journal = answers.journal
        self._closed: DeliveryError | None = None
        self._actions: deque[Action] = deque()
        self._is_acting = False

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Tasks({self.scheduler.statistics()})"

    # As callers see it

    def submit(self, call: frame_pb2.Call, receiver: Receiver) -> None:
        """Take a task, whose `call` is changed, and have its reply, or an error as such, delivered."""
        try:
            self._submit(call, receiver)
        except DeliveryError as error:
            receiver.deliver(undelivered(call.call_id, error))

    def _submit(self, call: frame_pb2.Call, receiver: Receiver) -> None:
        if self._closed is not None:
            raise self._closed
        now = time.monotonic()
        known = self.scheduler.find(call.operation_id)
        if known is not None:
            _join(known, call, receiver)
            return
        if call.method not in METHODS:
            cause = f"a task is a call of Execute or Apply, not of method {call.method}"
            raise DeliveryError("BAD_REQUEST", field="method", cause=cause)
        task = placement.task(call)
        if not self.scheduler.has_room(task.size):
            size = self.scheduler.statistics()
            raise DeliveryError(
                "QUEUE_FULL", engine_id=-1, size=f"{size.waiting} tasks, {size.size} bytes", option="nothing"
            )
        work = Work(call, call.task, time.time_ns(), [(receiver, call.call_id)])
        task.payload = work
        _prepare(call)
        self._carry_out(self.scheduler.add(task, now))

    # As engines see it

    def observe(self, event: EngineEvent) -> None:
        """Take note of what happened to an engine; before its reference is lost."""
        if event.kind is EventKind.GONE:
            self._carry_out(self.scheduler.engine_gone(event.engine.engine_id, time.monotonic()))
        elif event.kind is not EventKind.REGISTERED:  # its calls do not flow yet
            self.engine_is(event.engine)

    def engine_is(self, engine: Registration) -> None:
        """Take note of how an engine is that is registered."""
        reference = self._references.get(engine.engine_id)
        if reference is None:
            return
        is_open = (
            reference.is_connected and engine.state is LeaseState.CONNECTED and engine.draining_since is None
        )
        properties = placement.properties(engine.properties)
        now = time.monotonic()
        self._carry_out(
            self.scheduler.engine_is(engine.engine_id, engine.epoch, properties, is_open=is_open, now=now)
        )

    def tick(self) -> None:
        """Some time has passed."""
        self._carry_out(self.scheduler.tick(time.monotonic()))

    def close(self, error: DeliveryError) -> None:
        """Take no more, and tell callers that still wait. What is on engines goes on there."""
        self._closed = error
        for task in self.scheduler.newest_first():
            _tell(task.payload, undelivered(0, error))

    # How it is done

    def _carry_out(self, actions: Iterable[Action]) -> None:
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
                else:
                    self._end(action.task, action.error)
        finally:
            self._is_acting = False

    def _place(self, task: Task) -> None:
        assert task.engine_id is not None
        work: Work = task.payload
        work.reply = None
        call = work.call
        call.engine_id = task.engine_id
        call.operation_id = _ids.attempt_id(task.task_id, task.attempts)
        if logger.isEnabledFor(logging.DEBUG):
            about = _logs.about(engine=task.engine_id, operation=task.task_id, client=task.session_id)
            logger.debug("task is placed, attempt %d", task.attempts, extra=about)
        self._references[task.engine_id].submit_task(call, _Attempt(self, task))

    def replied(self, task: Task, reply: frame_pb2.Reply) -> None:
        """Take the reply of the engine that a task was placed on."""
        if self._closed is not None:
            return
        task.payload.reply = reply
        problem = from_bytes(reply.error) if reply.error and reply.outcome in _WITH_ERROR else None
        has_run = problem is None or not (
            problem.reason in NOT_RUN or problem.metadata.get("has_run") == "false"
        )
        now = time.monotonic()
        self._carry_out(self.scheduler.replied(task, reply.outcome, problem, has_run=has_run, now=now))

    def _end(self, task: Task, error: DeliveryError | None) -> None:
        work: Work = task.payload
        reply = work.reply if error is None else undelivered(0, error)
        assert reply is not None
        if task.engine_id is not None:
            reply.engine_id = task.engine_id
        reply.attempts = task.attempts
        _tell(work, reply)
        if reply.outcome in FINAL:
            self._journal.add_result(
                task.task_id,
                -1 if task.engine_id is None else task.engine_id,
                work.call.method,
                task.session_id,
                reply.outcome,
                reply.response,
                reply.error,
            )


class _Attempt:
    """Receives the reply of one engine to one attempt of a task."""

    __slots__ = ("_task", "_tasks")
    is_gone = False

    def __init__(self, tasks: Tasks, task: Task) -> None:
        self._tasks = tasks
        self._task = task

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Take it."""
        self._tasks.replied(self._task, reply)


def _prepare(call: frame_pb2.Call) -> None:
    """Make of the call of a client one that any engine may run."""
    label = call.task.label
    call.ClearField("task")
    call.task.label = label
    call.task.SetInParent()
    call.options.any_incarnation = True
    call.session_id = b""


def _join(task: Task, call: frame_pb2.Call, receiver: Receiver) -> None:
    """Let the caller of a task that is here wait for it too; OPERATION_EXISTS if it asks for another."""
    work: Work = task.payload
    if (call.method, call.request) != (work.call.method, work.call.request):
        raise DeliveryError("OPERATION_EXISTS", operation_id=_ids.show(task.task_id))
    work.receivers = [one for one in work.receivers if not one[0].is_gone]
    work.receivers.append((receiver, call.call_id))


def _tell(work: Work, reply: frame_pb2.Reply) -> None:
    for receiver, call_id in work.receivers:
        own = reply
        if len(work.receivers) > 1:
            own = frame_pb2.Reply()
            own.CopyFrom(reply)
        own.call_id = call_id
        receiver.deliver(own)
