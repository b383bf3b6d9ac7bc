"""Operations and their events → messages of the contract."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from engine_service.event_log import Dropped
from engine_service.kernel_messages import DisplayData, Progress
from engine_service.responses import RESPONSES, Composer, set_time, set_time_ns
from enginery import _ids, _outcomes
from enginery._engine import CallReply
from enginery._methods import PYTHON_NAMES
from enginery._output import as_text
from enginery.v1 import operation_pb2

if TYPE_CHECKING:
    from engine_service.engine import Engine
    from engine_service.event_log import Event
    from engine_service.operation import Answer, Operation, State

MAX_EVENTS = 1 << 20
"""Bytes of events in one message."""
_TYPE_PREFIX = "type.googleapis.com/"


def describe(message: operation_pb2.Operation, operation: Operation, engine_id: int) -> None:
    """Fill in what an operation is and how it stands."""
    message.operation_id = _ids.show(operation.operation_id)
    message.state = operation.state
    message.engine_id = engine_id
    message.incarnation = operation.incarnation
    message.method = PYTHON_NAMES[operation.method]
    message.arguments = operation.arguments
    message.session_id = operation.session_id.hex()
    set_time_ns(message.submit_time, operation.submitted_at)
    if operation.started_at:
        set_time_ns(message.start_time, operation.started_at)
    if operation.ended_at:
        set_time_ns(message.end_time, operation.ended_at)
    if operation.progress is not None:
        message.progress_fraction, message.progress_text = operation.progress
    message.last_sequence = operation.log.last_sequence
    message.stopping = operation.stop_cause is not None
    message.label = operation.context.label


def conclude(message: operation_pb2.OperationOutcome, state: State, answer: Answer, method: int) -> None:
    """Fill in how an operation ended. The response is passed on as the bytes that it is."""
    message.state = state
    if isinstance(answer, CallReply):
        message.response.type_url = _TYPE_PREFIX + RESPONSES[method].DESCRIPTOR.full_name
        message.response.value = answer.response
    else:
        message.error.CopyFrom(_outcomes.failure_of(answer))


def read(engine: Engine, operation: Operation, after: int, room: int) -> list[operation_pb2.OperationEvent]:
    """Return the events after a sequence, but for the outcome, in at most about `room` bytes.

    Large forms of displays become blobs of the engine.
    """
    now = time.time()
    find_blob = functools.partial(engine.blobs.find, now=now)
    composer = Composer(engine.engine_id, operation, room=room, find_blob=find_blob)
    events: list[operation_pb2.OperationEvent] = []
    try:
        for event in operation.log.read(after, room):
            message = _event(event, composer)
            room -= message.ByteSize()  # bytes that are no UTF-8 grow fourfold
            if room < 0 and events:
                break
            events.append(message)
    finally:
        for blob_id, stored in composer.blobs:
            engine.blobs.add(stored, now, blob_id)
    return events


def outcome(operation: Operation, answer: Answer) -> operation_pb2.OperationEvent:
    """Return the last event of an operation."""
    message = operation_pb2.OperationEvent(sequence=operation.log.last_sequence)
    set_time_ns(message.event_time, operation.ended_at)
    conclude(message.outcome, operation.state, answer, operation.method)
    return message


def _event(event: Event, composer: Composer) -> operation_pb2.OperationEvent:
    message = operation_pb2.OperationEvent(sequence=event.sequence)
    set_time(message.event_time, event.time)
    match event.payload:
        case str(incarnation):
            message.started.incarnation = incarnation
        case bytes(data) if event.kind == "stdout":
            message.stdout = as_text(data)
        case bytes(data):
            message.stderr = as_text(data)
        case DisplayData() as display:
            message.display.CopyFrom(composer.display(display))
        case Progress(fraction, text):
            message.progress.fraction, message.progress.text = fraction, text
        case Dropped(event_count, byte_count):
            message.dropped.event_count, message.dropped.byte_count = event_count, byte_count
    return message
