"""Calls about operations: answered at once, but for GetOperation that waits for an end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from engine_service import events
from engine_service.requests import ROWS
from engine_service.responses import MAX_RESPONSE
from enginery import _pages
from enginery._engine import MAX_SECONDS, CallContext, CallReply
from enginery._methods import OPERATIONS
from enginery._reasons import DeliveryError
from enginery._requests import parse, read_operation_id, read_session_id
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message

    from engine_service.engine import Engine
    from engine_service.operation import Answer, Done, Operation

logger = logging.getLogger(__name__)

MAX_WAIT = 60.0
"""Seconds for which GetOperation waits at most."""
MAX_RELEASED = 1_000
"""Operations in one Release."""
_PAGE = 100
_MAX_PAGE = 1_000
_MAX_PAGE_BYTES = 2 << 20
_LARGEST_EVENT = 512 << 10


def _reply(response: Message) -> CallReply:
    return CallReply(frame_pb2.OUTCOME_OK, response.SerializeToString())


def _find(engine: Engine, text: str) -> Operation:
    return engine.operations.find(read_operation_id(text))


def submit(engine: Engine, request: bytes, context: CallContext, done: Done) -> None:
    """Queue an operation; submitted again it is the one that there is."""
    message = parse(engine_pb2.SubmitRequest, request)
    field = message.WhichOneof("call")
    if field is None:
        raise DeliveryError("BAD_REQUEST", field="call", cause="it says what to do, and is required")
    method = _METHODS[field]
    inner = getattr(message, field)
    operation = engine.enter(method, ROWS[method], inner, inner.SerializeToString(), context)
    response = engine_pb2.SubmitResponse()
    events.describe(response.operation, operation, engine.engine_id)
    done(_reply(response))
    engine.begin_next()


def get_operation(engine: Engine, request: bytes, context: CallContext, done: Done) -> None:
    """Say how an operation stands, now or when it has ended, but after `wait` at the latest."""
    message = parse(operation_pb2.GetOperationRequest, request)
    operation = _find(engine, message.operation_id)
    wait = min(_seconds(message.wait, "wait"), MAX_WAIT)

    def tell(answer: Answer | None) -> None:
        try:
            reply: Answer = _answer(engine, operation, message, answer)
        except Exception as error:  # such as no descriptor for a large display: nobody else must suffer for it
            logger.exception("defect in get_operation")
            cause = f"{type(error).__name__}: {error}"
            reply = DeliveryError("INTERNAL", cause=cause, process="engine host")
        done(reply)

    if operation.has_ended or not wait:
        tell(operation.answer)
        return

    def ended(answer: Answer) -> None:
        timer.cancel()
        tell(answer)  # what was released before its end has none any more

    def passed() -> None:
        operation.waiting.remove(ended)
        tell(None)

    timer = asyncio.get_running_loop().call_later(wait, passed)
    operation.waiting.append(ended)


def _answer(
    engine: Engine, operation: Operation, message: operation_pb2.GetOperationRequest, answer: Answer | None
) -> CallReply:
    response = operation_pb2.GetOperationResponse()
    events.describe(response.operation, operation, engine.engine_id)
    if answer is not None:
        events.conclude(response.outcome, operation.state, answer, operation.method)
    room = min(events.MAX_EVENTS, MAX_RESPONSE - response.ByteSize())
    if message.HasField("after_sequence") and room >= _LARGEST_EVENT:  # beside a huge answer Attach has them
        response.events.extend(events.read(engine, operation, message.after_sequence, room))
    return _reply(response)


def list_operations(engine: Engine, request: bytes, context: CallContext, done: Done) -> None:
    """Return a page of operations, the newest first."""
    message = parse(operation_pb2.ListOperationsRequest, request)
    position = _pages.read(message.page_token)
    session_id = read_session_id(message.session_id)
    states = frozenset(message.states)
    most = min(message.page_size or _PAGE, _MAX_PAGE)
    response = operation_pb2.ListOperationsResponse()
    size = 0
    last = (0, b"")
    for operation in engine.operations.newest_first():
        if (states and operation.state not in states) or (session_id and operation.session_id != session_id):
            continue
        here = (operation.submitted_at, operation.operation_id)
        if position is not None and here >= position:
            continue
        if len(response.operations) == most or size > _MAX_PAGE_BYTES:
            response.next_page_token = _pages.token(last)
            break
        described = response.operations.add()
        events.describe(described, operation, engine.engine_id)
        size += described.ByteSize()
        last = here
    done(_reply(response))


def cancel(engine: Engine, request: bytes, context: CallContext, done: Done) -> None:
    """Begin to stop an operation; one that has ended stays as it is."""
    message = parse(operation_pb2.CancelRequest, request)
    operation = _find(engine, message.operation_id)
    grace = _seconds(message.grace, "grace") if message.HasField("grace") else None
    interrupt_only = message.interrupt_only if message.HasField("interrupt_only") else None
    engine.cancel(operation, grace, interrupt_only)
    response = operation_pb2.CancelResponse()
    events.describe(response.operation, operation, engine.engine_id)
    done(_reply(response))


def release(engine: Engine, request: bytes, context: CallContext, done: Done) -> None:
    """Drop answers and output."""
    message = parse(operation_pb2.ReleaseRequest, request)
    if len(message.operation_ids) > MAX_RELEASED:
        raise DeliveryError("BAD_REQUEST", field="operation_ids", cause=f"they are more than {MAX_RELEASED:,}")
    ids = [read_operation_id(text, "operation_ids") for text in message.operation_ids]
    done(_reply(operation_pb2.ReleaseResponse(released_count=engine.operations.release(ids))))


def _seconds(duration: Duration, field: str) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if not 0 <= seconds <= MAX_SECONDS:
        raise DeliveryError(
            "BAD_REQUEST", field=field, cause=f"{seconds:g} s is not within 0 and {MAX_SECONDS:g}"
        )
    return seconds


_METHODS: dict[str, int] = {field: method for method, field in OPERATIONS.items()}
CALLS: dict[int, Callable[[Engine, bytes, CallContext, Done], None]] = {
    frame_pb2.METHOD_SUBMIT: submit,
    frame_pb2.METHOD_GET_OPERATION: get_operation,
    frame_pb2.METHOD_LIST_OPERATIONS: list_operations,
    frame_pb2.METHOD_CANCEL: cancel,
    frame_pb2.METHOD_RELEASE: release,
}
"""They may all be repeated: what they change is changed once."""
