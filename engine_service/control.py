"""Control calls of an engine: answered at once, whatever its kernel does."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING

from engine_service.responses import own_error, set_time_ns
from enginery import _ids, _values
from enginery._engine import CallContext, CallReply
from enginery._methods import PYTHON_NAMES
from enginery._reasons import DeliveryError
from enginery._requests import parse, read_operation_id
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from engine_service.engine import Engine
    from engine_service.operation import Answer, Operation

    Control = Callable[[Engine, bytes, CallContext], CallReply]

_MAX_LISTED = 1_000  # operations in one QueueStatusResponse, so that it fits a message
_MAX_ACTIONS = 1_024  # whose answers are remembered


def _reply(response: Message, *, failed: bool = False) -> CallReply:
    outcome = frame_pb2.OUTCOME_USER_ERROR if failed else frame_pb2.OUTCOME_OK
    return CallReply(outcome, response.SerializeToString())


# ---- reads


def get_id(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Say who the engine is."""
    parse(engine_pb2.GetIdRequest, request)
    kernel = engine.kernel
    return _reply(
        engine_pb2.GetIdResponse(engine_id=engine.engine_id, incarnation=kernel.incarnation, pid=kernel.pid)
    )


def get_result(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Return a record.

    Records are kept as serialized ExecuteResponses, and `result` has the same number in both messages: the
    bytes are the response.
    """
    message = parse(engine_pb2.GetResultRequest, request)
    try:
        record = engine.records.get(message.number if message.HasField("number") else None)
    except IndexError as error:
        remote = own_error(error, engine.engine_id, frame_pb2.METHOD_GET_RESULT, context.operation_id)
        return _reply(engine_pb2.GetResultResponse(error=remote), failed=True)
    return CallReply(frame_pb2.OUTCOME_OK, record)


def get_properties(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Return properties from the mirror."""
    keys = parse(engine_pb2.GetPropertiesRequest, request).keys or engine.properties
    response = engine_pb2.GetPropertiesResponse()
    for key in keys:
        if key not in engine.properties:
            remote = own_error(
                KeyError(key), engine.engine_id, frame_pb2.METHOD_GET_PROPERTIES, context.operation_id
            )
            return _reply(engine_pb2.GetPropertiesResponse(error=remote), failed=True)
        response.properties[key].CopyFrom(_values.to_value(engine.properties[key]))
    return _reply(response)


def has_properties(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Say which properties there are."""
    keys = parse(engine_pb2.HasPropertiesRequest, request).keys
    return _reply(engine_pb2.HasPropertiesResponse(present=[key in engine.properties for key in keys]))


def queue_status(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Say what runs and what waits."""
    parse(engine_pb2.QueueStatusRequest, request)
    response = engine_pb2.QueueStatusResponse()
    if engine.queue.running is not None:
        response.pending.CopyFrom(_queued_call(engine.queue.running))
    for number, operation in enumerate(itertools.chain(engine.queue.ahead, engine.queue)):
        if number == _MAX_LISTED:
            break
        response.queue.append(_queued_call(operation))
    return _reply(response)


def _queued_call(operation: Operation) -> engine_pb2.QueuedCall:
    call = engine_pb2.QueuedCall(
        operation_id=_ids.show(operation.operation_id),
        method=PYTHON_NAMES[operation.method],
        arguments=operation.arguments,
    )
    set_time_ns(call.submit_time, operation.submitted_at)
    if operation.started_at:
        set_time_ns(call.start_time, operation.started_at)
    if operation.progress is not None:
        call.progress_fraction, call.progress_text = operation.progress
    return call


# ---- actions


def set_id(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Give an engine that is not registered an id."""
    engine_id = parse(engine_pb2.SetIdRequest, request).engine_id
    if engine.registered:
        raise DeliveryError("ENGINE_REGISTERED", engine_id=engine.engine_id)
    if engine_id < 0:
        raise DeliveryError("BAD_REQUEST", field="engine_id", cause="it is at least 0")
    engine.set_id(engine_id, registered=False)
    return _reply(engine_pb2.SetIdResponse())


def interrupt(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Interrupt what runs."""
    text = parse(engine_pb2.InterruptRequest, request).operation_id
    operation_id = read_operation_id(text) if text else b""
    return _reply(engine_pb2.InterruptResponse(operation_id=_ids.show(engine.interrupt(operation_id))))


def clear_queue(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Fail what waits."""
    parse(engine_pb2.ClearQueueRequest, request)
    return _reply(engine_pb2.ClearQueueResponse(cleared_count=engine.clear_queue("the queue was cleared")))


def kill(engine: Engine, request: bytes, context: CallContext) -> CallReply:
    """Stop the engine; the answer comes before it has stopped."""
    parse(engine_pb2.KillRequest, request)
    engine.stop("killed by a client")
    return _reply(engine_pb2.KillResponse())


READS: dict[int, Control] = {
    frame_pb2.METHOD_GET_ID: get_id,
    frame_pb2.METHOD_GET_RESULT: get_result,
    frame_pb2.METHOD_GET_PROPERTIES: get_properties,
    frame_pb2.METHOD_HAS_PROPERTIES: has_properties,
    frame_pb2.METHOD_QUEUE_STATUS: queue_status,
}
"""Calls that change nothing: they may be repeated."""
ACTIONS: dict[int, Control] = {
    frame_pb2.METHOD_SET_ID: set_id,
    frame_pb2.METHOD_INTERRUPT: interrupt,
    frame_pb2.METHOD_CLEAR_QUEUE: clear_queue,
    frame_pb2.METHOD_KILL: kill,
}
"""Calls that do something, once for each operation id."""


class Actions:
    """Answers of the last actions, so that one that is sent again is not done again."""

    def __init__(self) -> None:
        """Begin with none."""
        self._answers: OrderedDict[bytes, tuple[int, Answer]] = OrderedDict()

    def once(self, engine: Engine, method: int, request: bytes, context: CallContext) -> Answer:
        """Do what is asked unless it was done, and return its answer either way."""
        fingerprint = hash((method, request))
        known = self._answers.get(context.operation_id)
        if known is not None:
            if known[0] != fingerprint:
                raise DeliveryError("OPERATION_EXISTS", operation_id=_ids.show(context.operation_id))
            return known[1]
        try:
            answer: Answer = ACTIONS[method](engine, request, context)
        except DeliveryError as error:
            answer = error
        self._answers[context.operation_id] = (fingerprint, answer)
        if len(self._answers) > _MAX_ACTIONS:
            self._answers.popitem(last=False)
        return answer
