"""What a task carries: its call, who waits for it, and how it is shown."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from controller_service.task import State
from enginery import _ids
from enginery._methods import ANY_ENGINE, PYTHON_NAMES
from enginery._outcomes import STATES
from enginery.v1 import frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from controller_service.router import Receiver
    from controller_service.task import Task
    from controller_service.task_call import TaskCall


@dataclass(slots=True, eq=False)
class Work:
    """The payload of a Task."""

    call: TaskCall
    options: frame_pb2.TaskOptions
    """As the client gave them. Not to be changed: tasks without options share theirs."""
    submitted_ns: int
    receivers: list[tuple[Receiver, int]] = field(default_factory=list)
    """Who waits, each with the call id that it gave."""
    reply: frame_pb2.Reply | None = None
    """The last that came, if it may be how the task ends."""
    rejection: frame_pb2.Reply | None = None
    """The last by which an engine said that another is to run it."""
    cancel: bytes = b""
    """The CancelRequest of one that is being stopped."""
    is_released: bool = False
    """Whether somebody released it: its answer is not kept."""
    is_kept: bool = False
    """Whether the journal is told of it."""
    _changed: asyncio.Event | None = None

    def join(self, receiver: Receiver, call_id: int) -> None:
        """Let one more caller wait."""
        self.receivers = [one for one in self.receivers if not one[0].is_gone]
        self.receivers.append((receiver, call_id))

    def tell(self, reply: frame_pb2.Reply) -> None:
        """Give everybody who waits the reply, which is changed."""
        if len(self.receivers) == 1:
            receiver, reply.call_id = self.receivers[0]
            receiver.deliver(reply)
            return
        for receiver, call_id in self.receivers:
            own = frame_pb2.Reply()
            own.CopyFrom(reply)
            own.call_id = call_id
            receiver.deliver(own)

    def note_change(self) -> None:
        """Wake those that wait for a change of the task."""
        if self._changed is not None:
            self._changed.set()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition` holds, which is looked at with each change, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    if self._changed is None:
                        self._changed = asyncio.Event()
                    self._changed.clear()
                    await self._changed.wait()


class Attempt(NamedTuple):
    """The last attempt of a task, as far as it is remembered: a tuple, since there are many."""

    task_id: bytes
    session_id: bytes
    label: str
    attempts: int
    engine_id: int | None
    epoch: int
    outcome: int
    submitted_ns: int
    mark: int | None = None
    """Of what was asked for, once it has ended; see `TaskCall.mark`."""

    @property
    def operation_id(self) -> bytes:
        """What its engine knows it by."""
        return _ids.attempt_id(self.task_id, max(self.attempts, 1))


def last_attempt(task: Task, outcome: int = frame_pb2.OUTCOME_UNSPECIFIED, mark: int | None = None) -> Attempt:
    """Return the last attempt of a task, or the next one if it was not placed yet."""
    work: Work = task.payload
    return Attempt(
        task.task_id,
        task.session_id,
        work.options.label,
        task.attempts,
        task.engine_id,
        task.epoch,
        outcome,
        work.submitted_ns,
        mark,
    )


def show(task: Task) -> operation_pb2.Operation:
    """Return a task as the controller alone knows it."""
    work: Work = task.payload
    operation = operation_pb2.Operation(
        state=operation_pb2.OPERATION_STATE_QUEUED,
        engine_id=ANY_ENGINE,
        method=PYTHON_NAMES[work.call.method],
        stopping=task.is_stopping,
    )
    if task.state is State.PLACED and task.engine_id is not None:
        operation.engine_id = task.engine_id
    elif task.state is State.ENDED:
        outcome = frame_pb2.OUTCOME_CANCELLED if work.reply is None else work.reply.outcome
        operation.state = STATES.get(outcome, operation_pb2.OPERATION_STATE_FAILED)
    overlay(operation, last_attempt(task))
    return operation


def overlay(operation: operation_pb2.Operation, attempt: Attempt) -> None:
    """Make of the operation of an attempt, as its engine shows it, that of its attempt."""
    operation.operation_id = _ids.show(attempt.task_id)
    operation.session_id = attempt.session_id.hex()
    operation.attempts = attempt.attempts
    operation.label = attempt.label
    operation.submit_time.FromNanoseconds(attempt.submitted_ns)
