"""Why a task ended that no engine has answered for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery import _ids
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from controller_service.task import Task

_ENDED_AS: dict[int, str] = {
    frame_pb2.OUTCOME_CANCELLED: "was cancelled",
    frame_pb2.OUTCOME_TIMED_OUT: "ran out of time",
    frame_pb2.OUTCOME_LOST: "was lost",
}


def cancelled(task: Task) -> DeliveryError:
    return DeliveryError(
        "OPERATION_CANCELLED",
        engine_id=-1,
        operation_id=_ids.show(task.task_id),
        namespace="kept",
        cause="it was taken out of the queue",
    )


def lost(task: Task, problem: DeliveryError) -> DeliveryError:
    return DeliveryError(
        "TASK_LOST",
        operation_id=_ids.show(task.task_id),
        attempts=task.attempts,
        engine_id=task.engine_id,
        cause=problem.text,
    )


def rejected(task: Task) -> DeliveryError:
    return DeliveryError("TASK_REJECTED", operation_id=_ids.show(task.task_id))


def not_after(task: Task, operation_id: bytes, outcome: int) -> DeliveryError:
    return DeliveryError(
        "DEPENDENCY_FAILED",
        operation_id=_ids.show(task.task_id),
        dependency=_ids.show(operation_id),
        state=_ENDED_AS.get(outcome, "failed"),
    )


def not_found(operation_id: bytes) -> DeliveryError:
    """Return the error of a task that comes after an operation which nobody knows."""
    return DeliveryError("OPERATION_NOT_FOUND", operation_id=_ids.show(operation_id))


def not_placed(task: Task, cause: str) -> DeliveryError:
    """Return the error of a task that waited for an engine for too long."""
    return DeliveryError(
        "TASK_NOT_PLACED",
        operation_id=_ids.show(task.task_id),
        timeout=f"{task.placement_timeout:g}",
        cause=cause,
    )
