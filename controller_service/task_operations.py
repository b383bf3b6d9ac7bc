"""Tasks as operations: how they stand, and what stops them, by their ids.

What an engine knows of a task it knows under the id of the attempt; what is asked and answered is translated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller_service.poll import Poll
from controller_service.task import State
from controller_service.work import last_attempt, overlay, show
from enginery import _ids
from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery.v1 import engine_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller_service.reference import EngineFromReference
    from controller_service.task import Task
    from controller_service.tasks import Tasks
    from controller_service.work import Attempt

CANCEL = METHODS["Cancel"]
GET = METHODS["GetOperation"]
INTERRUPT = METHODS["Interrupt"]
_LIVE = frozenset((operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_RUNNING))


class TaskOperations:
    """Answers for the tasks of `tasks`, by asking the engines that they are on."""

    def __init__(self, tasks: Tasks, references: Mapping[int, EngineFromReference]) -> None:
        """Ask the engines of `references`."""
        self._tasks = tasks
        self._references = references

    async def find(self, operation_id: bytes, method: int, request: bytes, seconds: float) -> bytes | None:
        """Return the response to GetOperation or Cancel of a task; None if the engines or the journal are to
        be asked. GetOperation waits so long for its end.

        Raises DeliveryError ENGINE_AWAY if its engine cannot be asked.
        """
        task = self._tasks.scheduler.find(operation_id)
        if task is not None and method == CANCEL:
            return await self._cancel(task, request)
        if task is not None and seconds:
            await task.payload.wait(lambda: task.state is State.ENDED, seconds)
        if task is not None and task.state is not State.ENDED:
            return await self._get(task, request)
        gone = self._tasks.ended(operation_id)
        if gone is None or gone.engine_id is None:
            return None
        data = await self._ask(gone, method, request)
        return None if data is None else _shown(data, method, gone)

    async def interrupt(self, operation_id: bytes) -> bytes:
        """Interrupt a task if it runs; OPERATION_NOT_FOUND if it is not known."""
        task = self._tasks.scheduler.find(operation_id)
        if task is None:
            if self._tasks.ended(operation_id) is None:
                raise DeliveryError("OPERATION_NOT_FOUND", operation_id=_ids.show(operation_id))
            return b""
        if task.state is not State.PLACED:
            return b""
        attempt = last_attempt(task)
        data = await self._ask(attempt, INTERRUPT, b"")
        if data is None:
            raise DeliveryError("ENGINE_AWAY", engine_id=task.engine_id)
        response = parse(engine_pb2.InterruptResponse, data)
        if response.operation_id:
            response.operation_id = _ids.show(operation_id)
        return response.SerializeToString()

    async def place(self, operation_id: bytes, seconds: float) -> tuple[EngineFromReference, bytes] | None:
        """Return the engine that has a task, and the operation of its attempt there; None if that is unknown.

        A task that waits for an engine is waited for that long; then it is TASK_NOT_PLACED.
        """
        task = self._tasks.scheduler.find(operation_id)
        if task is not None:
            await task.payload.wait(lambda: task.state in (State.PLACED, State.ENDED), seconds)
            if task.state not in (State.PLACED, State.ENDED):
                shown = _ids.show(operation_id)
                cause = "attach again"
                raise DeliveryError("TASK_NOT_PLACED", operation_id=shown, timeout=f"{seconds:g}", cause=cause)
            attempt = last_attempt(task)
        else:
            known = self._tasks.ended(operation_id)
            if known is None:
                return None
            attempt = known
        engine = self._engine(attempt)
        return None if engine is None else (engine, attempt.operation_id)

    # How it is done

    async def _get(self, task: Task, request: bytes) -> bytes:
        response = operation_pb2.GetOperationResponse(operation=show(task))
        if task.state is State.PLACED:
            data = await self._ask(last_attempt(task), GET, request)
            if data is not None:
                asked = parse(operation_pb2.GetOperationResponse, data)
                overlay(asked.operation, last_attempt(task))
                if asked.operation.state not in _LIVE:  # it may be run again
                    asked.ClearField("outcome")
                    asked.operation.ClearField("end_time")
                    asked.operation.state = operation_pb2.OPERATION_STATE_RUNNING
                response = asked
        return response.SerializeToString()

    async def _cancel(self, task: Task, request: bytes) -> bytes:
        self._tasks.cancel(task, request)
        if task.state is State.PLACED:
            data = await self._ask(last_attempt(task), CANCEL, request)
            if data is not None:
                return _shown(data, CANCEL, last_attempt(task))
            if task.state is State.PLACED:
                raise DeliveryError("ENGINE_AWAY", engine_id=task.engine_id)
        return operation_pb2.CancelResponse(operation=show(task)).SerializeToString()

    def _engine(self, attempt: Attempt) -> EngineFromReference | None:
        """Return the engine of an attempt, None if it is gone."""
        engine = None if attempt.engine_id is None else self._references.get(attempt.engine_id)
        return None if engine is None or engine.epoch != attempt.epoch else engine

    async def _ask(self, attempt: Attempt, method: int, request: bytes) -> bytes | None:
        """Return what the engine of an attempt answers about it, None if it cannot."""
        engine = self._engine(attempt)
        if engine is None or not engine.is_connected:
            return None
        poll = Poll([engine], first_wins=True)
        await poll.ask(method, _for_attempt(method, request, _ids.show(attempt.operation_id)))
        return poll.responses.get(engine.engine_id)


def _for_attempt(method: int, request: bytes, operation_id: str) -> bytes:
    """Return the request about a task as one about an attempt, which waits for nothing."""
    if method == CANCEL:
        cancel = parse(operation_pb2.CancelRequest, request)
        cancel.operation_id = operation_id
        return cancel.SerializeToString()
    if method == INTERRUPT:
        return engine_pb2.InterruptRequest(operation_id=operation_id).SerializeToString()
    get = parse(operation_pb2.GetOperationRequest, request)
    get.operation_id = operation_id
    get.ClearField("wait")
    return get.SerializeToString()


def _shown(data: bytes, method: int, task: Attempt) -> bytes:
    """Return the response about an attempt as one about its task."""
    response: operation_pb2.CancelResponse | operation_pb2.GetOperationResponse
    if method == CANCEL:
        response = parse(operation_pb2.CancelResponse, data)
    else:
        response = parse(operation_pb2.GetOperationResponse, data)
    overlay(response.operation, task)
    return response.SerializeToString()
