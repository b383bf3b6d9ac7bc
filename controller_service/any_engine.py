"""Calls to any engine, whatever their method: tasks, and calls about tasks."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from controller_service.operations import UNARY, Operations
from controller_service.reference import Future, Nobody, call_reply
from controller_service.task_operations import INTERRUPT
from controller_service.tasks import RUN
from controller_service.work import show
from enginery import _ids
from enginery._engine import CallContext, CallReply, context_options
from enginery._methods import ANY_ENGINE, METHODS, OPERATIONS, PYTHON_NAMES
from enginery._reasons import TABLE, DeliveryError, Retry
from enginery._replies import undelivered
from enginery._requests import parse, read_operation_id
from enginery._status import from_bytes
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from controller_service.router import Receiver
    from controller_service.switchboard import Switchboard
    from controller_service.tasks import Tasks
    from enginery._function_window import Function

logger = logging.getLogger(__name__)

MAX_RUNNING = 10_000
"""Calls about tasks, and operations that tasks come after, that are waited for at the same time."""
_GET = METHODS["GetOperation"]
_SUBMIT = METHODS["Submit"]
_ABOUT_TASKS = UNARY | {INTERRUPT}
_PAUSE = 1.0  # seconds before an operation is asked for again that could not be
_LONGEST_WAIT = 60
_METHODS = {field: method for method, field in OPERATIONS.items()}
_OUTCOMES: dict[int, int] = {
    operation_pb2.OPERATION_STATE_SUCCEEDED: frame_pb2.OUTCOME_OK,
    operation_pb2.OPERATION_STATE_FAILED: frame_pb2.OUTCOME_USER_ERROR,
    operation_pb2.OPERATION_STATE_CANCELLED: frame_pb2.OUTCOME_CANCELLED,
    operation_pb2.OPERATION_STATE_TIMED_OUT: frame_pb2.OUTCOME_TIMED_OUT,
    operation_pb2.OPERATION_STATE_LOST: frame_pb2.OUTCOME_LOST,
}


class AnyEngine:
    """Serves calls to `ANY_ENGINE`. `stop` it."""

    def __init__(self, switchboard: Switchboard, operations: Operations) -> None:
        """Place tasks on the engines of `switchboard`."""
        self._tasks = switchboard.tasks
        self._tasks.look_up = self._look_up
        self._operations = operations
        self._running: set[asyncio.Task[None]] = set()
        self._watched: set[bytes] = set()

    def submit(self, call: frame_pb2.Call, receiver: Receiver, function: Function | None = None) -> None:
        """Take `call`, which is changed, and have its reply, or an error as such, delivered.

        `function` is the one that it names, if it does.
        """
        if call.method in _ABOUT_TASKS:
            method, request = call.method, call.request
            context = CallContext(call.operation_id, call.session_id)
            self._start(self._answer(call.call_id, method, request, context, receiver), receiver, call.call_id)
        else:
            self._tasks.submit(call, receiver, function)

    async def call(
        self, method: int, request: bytes, context: CallContext, options: frame_pb2.TaskOptions
    ) -> CallReply:
        """Call a method; DeliveryError if it is not delivered. Submit answers at once."""
        if method in _ABOUT_TASKS:
            return await self._about(method, request, context)
        if method not in RUN and method != _SUBMIT:
            cause = f"any engine may run Execute, Apply or Submit, not {PYTHON_NAMES.get(method, method)}"
            raise DeliveryError("BAD_REQUEST", field="metadata enginery-engine-id", cause=cause)
        call = frame_pb2.Call(
            engine_id=ANY_ENGINE,
            method=method,  # type: ignore[arg-type]
            operation_id=context.operation_id,
            session_id=context.session_id,
            options=context_options(context),
            sent_epoch=context.epoch,
            task=options,
            request=request,
        )
        is_named = not context.is_new
        if method == _SUBMIT:
            return await self._submit(call, context, is_named=is_named)
        receiver = Future(0)
        self._tasks.submit(call, receiver, is_named=is_named)
        return call_reply(await receiver.future)

    def cancel(self, operation_id: bytes) -> None:
        """Ask for the end of a task, whatever becomes of that."""
        request = operation_pb2.CancelRequest(operation_id=_ids.show(operation_id)).SerializeToString()
        context = CallContext(operation_id)
        self._start(self._answer(0, METHODS["Cancel"], request, context, Nobody()), Nobody(), 0)

    async def stop(self) -> None:
        """End what is waited for."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    # Calls about tasks

    async def _submit(self, call: frame_pb2.Call, context: CallContext, *, is_named: bool) -> CallReply:
        """Begin a task, and answer how it stands."""
        submitted = parse(engine_pb2.SubmitRequest, call.request)
        field = submitted.WhichOneof("call")
        if field is None or _METHODS[field] not in RUN:
            raise DeliveryError("BAD_REQUEST", field="call", cause="any engine may run execute or apply")
        call.method = _METHODS[field]  # type: ignore[assignment]
        call.request = getattr(submitted, field).SerializeToString()
        receiver = _Refusal()
        self._tasks.submit(call, receiver, is_named=is_named)
        task = self._tasks.scheduler.find(context.operation_id)
        if task is None and receiver.error is not None:
            raise receiver.error
        if task is not None:
            operation = show(task)
        else:
            asked = operation_pb2.GetOperationRequest(operation_id=_ids.show(context.operation_id))
            reply = await self._operations.call(None, _GET, asked.SerializeToString(), context)
            operation = parse(operation_pb2.GetOperationResponse, reply.response).operation
        response = engine_pb2.SubmitResponse(operation=operation)
        return CallReply(frame_pb2.OUTCOME_OK, response.SerializeToString())

    async def _about(self, method: int, request: bytes, context: CallContext) -> CallReply:
        if method != INTERRUPT:
            return await self._operations.call(None, method, request, context)
        operation_id = read_operation_id(parse(engine_pb2.InterruptRequest, request).operation_id)
        return CallReply(frame_pb2.OUTCOME_OK, await self._operations.tasks.interrupt(operation_id))

    async def _answer(
        self, call_id: int, method: int, request: bytes, context: CallContext, receiver: Receiver
    ) -> None:
        try:
            found = await self._about(method, request, context)
            reply = frame_pb2.Reply(
                call_id=call_id,
                outcome=found.outcome,  # type: ignore[arg-type]
                response=found.response,
            )
        except DeliveryError as error:
            reply = undelivered(call_id, error)
        receiver.deliver(reply)

    def _start(self, work: Coroutine[Any, Any, None], receiver: Receiver, call_id: int) -> None:
        """Run `work`, unless there is too much of it."""
        if len(self._running) >= MAX_RUNNING:
            work.close()
            size = f"{MAX_RUNNING} calls about operations"
            error = DeliveryError("QUEUE_FULL", engine_id=ANY_ENGINE, size=size, option="nothing")
            receiver.deliver(undelivered(call_id, error))
            return
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a call about a task could not be answered", exc_info=task.exception())

    # Operations that tasks come after

    def _look_up(self, operation_id: bytes) -> None:
        """Tell the tasks how that operation ends, once it has."""
        if operation_id not in self._watched:
            self._watched.add(operation_id)
            self._start(self._watch(operation_id), _Unknown(self._tasks, operation_id), 0)

    async def _watch(self, operation_id: bytes) -> None:
        """Wait for the end of an operation that is no task, while tasks come after it."""
        request = operation_pb2.GetOperationRequest(operation_id=_ids.show(operation_id))
        request.wait.seconds = _LONGEST_WAIT
        outcome: int | None = None
        try:
            while self._tasks.scheduler.is_awaited(operation_id):
                try:
                    reply = await self._operations.call(
                        None, _GET, request.SerializeToString(), CallContext(operation_id)
                    )
                except DeliveryError as error:
                    if TABLE[error.reason].retry is Retry.NEVER:
                        break
                    await asyncio.sleep(_PAUSE)
                    continue
                state = parse(operation_pb2.GetOperationResponse, reply.response).operation.state
                outcome = _OUTCOMES.get(state)
                if outcome is not None:
                    break
        finally:
            self._watched.discard(operation_id)
        self._tasks.after_operation(operation_id, outcome)


class _Refusal:
    """Receives the reply to a task that was submitted; it matters only if it is refused at once."""

    is_gone = True

    def __init__(self) -> None:
        self.error: DeliveryError | None = None

    def deliver(self, reply: frame_pb2.Reply) -> None:
        if reply.error:
            self.error = from_bytes(reply.error)


class _Unknown:
    """Receives that an operation cannot be asked for: to those that come after it, it is not known."""

    is_gone = False

    def __init__(self, tasks: Tasks, operation_id: bytes) -> None:
        self._tasks = tasks
        self._operation_id = operation_id

    def deliver(self, _reply: frame_pb2.Reply) -> None:
        self._tasks.after_operation(self._operation_id, None)
