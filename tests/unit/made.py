"""Operations that were made, not called."""

from __future__ import annotations

import itertools

from engine_service.event_log import EventLog
from engine_service.operation import SMALL_REQUEST, Operation
from engine_service.requests import ROWS
from enginery import _ids
from enginery._engine import CallContext, CallReply
from enginery.v1 import engine_pb2, frame_pb2

SESSION = b"sessions"
_counter = itertools.count(1)
OK = CallReply(frame_pb2.OUTCOME_OK, b"response")


def operation(
    session: bytes = b"",
    *,
    number: int | None = None,
    keep: bool = False,
    any_incarnation: bool = False,
    size: int = 1,
    submitted_at: int = 1,
) -> Operation:
    """Return a queued operation that executes nothing; `number` counts within its session."""
    message = engine_pb2.ExecuteRequest(code="1 + 1")
    operation_id = _ids.operation_id(session or SESSION, next(_counter) if number is None else number)
    return Operation(
        operation_id,
        session,
        frame_pb2.METHOD_EXECUTE,
        ROWS[frame_pb2.METHOD_EXECUTE],
        message,
        CallContext(operation_id, session, keep_queue=keep, any_incarnation=any_incarnation),
        size,
        hash(b"request"),
        message.SerializeToString() if size <= SMALL_REQUEST else None,
        EventLog(1_000),
        submitted_at,
    )
