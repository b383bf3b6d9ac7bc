"""How operations end: outcomes of frames, the states in which they leave operations, and errors as both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery.v1 import error_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from enginery._reasons import DeliveryError

STATES: dict[int, operation_pb2.OperationState.ValueType] = {
    frame_pb2.OUTCOME_OK: operation_pb2.OPERATION_STATE_SUCCEEDED,
    frame_pb2.OUTCOME_USER_ERROR: operation_pb2.OPERATION_STATE_FAILED,
    frame_pb2.OUTCOME_NOT_DELIVERED: operation_pb2.OPERATION_STATE_FAILED,
    frame_pb2.OUTCOME_REJECTED: operation_pb2.OPERATION_STATE_FAILED,
    frame_pb2.OUTCOME_CANCELLED: operation_pb2.OPERATION_STATE_CANCELLED,
    frame_pb2.OUTCOME_TIMED_OUT: operation_pb2.OPERATION_STATE_TIMED_OUT,
    frame_pb2.OUTCOME_LOST: operation_pb2.OPERATION_STATE_LOST,
}
"""The state in which each outcome leaves an operation."""
RAISED = frozenset({frame_pb2.OUTCOME_USER_ERROR, frame_pb2.OUTCOME_REJECTED})
"""Outcomes whose response says what user code raised."""
_BY_REASON: dict[str, frame_pb2.Outcome.ValueType] = {
    "OPERATION_CANCELLED": frame_pb2.OUTCOME_CANCELLED,
    "QUEUE_CLEARED": frame_pb2.OUTCOME_CANCELLED,
    "OPERATION_TIMED_OUT": frame_pb2.OUTCOME_TIMED_OUT,
    "KERNEL_DIED": frame_pb2.OUTCOME_LOST,
    "MEMORY_LIMIT_EXCEEDED": frame_pb2.OUTCOME_LOST,
    "ENGINE_LOST": frame_pb2.OUTCOME_LOST,
    "TASK_LOST": frame_pb2.OUTCOME_LOST,
    "ENGINE_STOPPED": frame_pb2.OUTCOME_LOST,
    "OPERATION_RELEASED": frame_pb2.OUTCOME_RELEASED,
}
_NOT_RUN = frozenset(
    {"QUEUE_FULL", "QUEUE_CLEARED", "INVALID_ENGINE_ID", "NO_ENGINES_REGISTERED", "ENGINE_AWAY"}
)


def has_not_run(error: DeliveryError) -> bool:
    """Return whether a call that ended with `error` cannot have begun to run: a task is placed again then."""
    return error.reason in _NOT_RUN or error.metadata.get("has_run") == "false"


def outcome_of(error: DeliveryError) -> frame_pb2.Outcome.ValueType:
    """Return the outcome of a call that ended with `error` in the place of a response."""
    return _BY_REASON.get(error.reason, frame_pb2.OUTCOME_NOT_DELIVERED)


def failure_of(error: DeliveryError) -> error_pb2.DeliveryFailure:
    """Return `error` as data."""
    return error_pb2.DeliveryFailure(
        code=int(error.code), reason=error.reason, message=error.text, metadata=error.metadata
    )
