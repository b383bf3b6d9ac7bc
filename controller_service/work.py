"""What a task carries: its call, who waits for it, and how it is shown."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from controller_service import frames
from controller_service.task import State
from enginery import _ids
from enginery._methods import ANY_ENGINE, PYTHON_NAMES
from enginery._outcomes import STATES
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from controller_service.router import Receiver
    from controller_service.task import Task
    from enginery._function_window import Function


@dataclass(slots=True, eq=False)
class Work:
    """The payload of a Task."""

    call: frame_pb2.Call
    """What is sent, but for the engine and the operation of an attempt."""
    options: frame_pb2.TaskOptions
    """As the client gave them."""
    submitted_ns: int
    function: Function | None = None
    """The one that the call names by its digest, if it does."""
    receivers: list[tuple[Receiver, int]] = field(default_factory=list)
    """Who waits, each with the call id that it gave."""
    reply: frame_pb2.Reply | None = None
    """The last that came, if it may be how the task ends."""
    rejection: frame_pb2.Reply | None = None
    """The last by which an engine said that another is to run it."""
    is_released: bool = False
    """Whether somebody released it: its answer is not kept."""
    is_kept: bool = False
    """Whether the journal is told of it."""
    _changed: asyncio.Event | None = None

    @classmethod
    def of(cls, call: frame_pb2.Call, submitted_ns: int, function: Function | None = None) -> Work:
        """Return that of the call of a client, of which one is made that any engine may run."""
        options = frame_pb2.TaskOptions()
        options.CopyFrom(call.task)
        call.ClearField("task")
        call.ClearField("sent_epoch")
        call.task.label = options.label
        call.task.SetInParent()
        call.options.any_incarnation = True
        call.session_id = b""
        return cls(call, options, submitted_ns, function)

    def join(self, call: frame_pb2.Call, receiver: Receiver, function: Function | None = None) -> None:
        """Let one more caller wait, who sent `call`; OPERATION_EXISTS if that asks for something else."""
        own = frames.whole_request(self.call.request, self.function)
        if call.method != self.call.method or frames.whole_request(call.request, function) != own:
            raise DeliveryError("OPERATION_EXISTS", operation_id=_ids.show(call.operation_id))
        self.receivers = [one for one in self.receivers if not one[0].is_gone]
        self.receivers.append((receiver, call.call_id))

    def tell(self, reply: frame_pb2.Reply) -> None:
        """Give everybody who waits the reply, which is changed."""
        is_shared = len(self.receivers) > 1
        for receiver, call_id in self.receivers:
            own = reply
            if is_shared:
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


class CallMark(NamedTuple):
    """What is remembered of a call, to tell another under its id from the same that comes again."""

    digest: int
    by_function_digest: bool

    @classmethod
    def of(cls, call: frame_pb2.Call, function: Function | None) -> CallMark:
        """Return that of a call, and of the function that it names, if it does."""
        digest = b"" if function is None else function.digest
        return cls(hash((call.method, call.request, digest)), function is not None)

    def is_another(self, mark: CallMark) -> bool:
        """Return whether that is of another call, unless only one of them names its function by a digest."""
        return self.by_function_digest == mark.by_function_digest and self.digest != mark.digest


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
    mark: CallMark | None = None
    """Of what was asked for, once it has ended."""

    @property
    def operation_id(self) -> bytes:
        """What its engine knows it by."""
        return _ids.attempt_id(self.task_id, max(self.attempts, 1))


def last_attempt(
    task: Task, outcome: int = frame_pb2.OUTCOME_UNSPECIFIED, mark: CallMark | None = None
) -> Attempt:
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
