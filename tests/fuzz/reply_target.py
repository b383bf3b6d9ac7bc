"""What a client hears: statuses, and responses that it shows. Nothing is unpickled here, which would run code.

An input is a byte that names a method and two messages: a google.rpc.Status, and the method's response.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from google.rpc import error_details_pb2, status_pb2

from enginery import _answer, _decode, _status, result
from enginery._answer import Answer
from enginery._reasons import DeliveryError, public
from enginery._session import RETRIED
from enginery.errors import EngineryError
from enginery.v1 import engine_pb2, operation_pb2
from tests.fuzz import mutator
from tests.fuzz.request_target import RESPONSES
from tests.fuzz.rules import BrokenRule, Watch

if TYPE_CHECKING:
    from random import Random

    from google.protobuf.message import Message

    from enginery._encoded import Encoded

_METHODS = sorted(RESPONSES)
_ENGINE: Any = engine_pb2  # to make messages of plain fields, which their types do not tell of
_MAX_PAUSE = 60.0  # seconds that a client may be told to wait


def _raised(**fields: Any) -> dict[str, Any]:
    line = {"file": "f", "line": 1, "function": "g", "source_line": "1/0", "column": 0}
    hierarchy = ["builtins.ValueError", "builtins.Exception"]
    known = {"module": "builtins", "type_name": "ValueError", "hierarchy": hierarchy, "message": "m"}
    return {**known, "frames": [line], "notes": ["n"], **fields}


def _seeds() -> list[bytes]:
    errors = [_raised(cause_index=1, member_indexes=[1, 2]), _raised(context_index=2), _raised()]
    error = {"errors": errors, "traceback": "Traceback", "engine_id": 1, "method": "execute", "category": 1}
    forms = [{"mime_type": "text/plain", "text": "x"}, {"mime_type": "image/png", "data": b"1"}]
    executed = {
        "engine_id": 1,
        "number": 2,
        "stdout": "out",
        "stderr": "err",
        "text": "t",
        "pretty": "p",
        "displays": [{"data": forms}],
        "start_time": {"seconds": 5},
        "duration": {"nanos": 7},
    }
    call = {"operation_id": "x", "submit_time": {"seconds": 5}, "start_time": {"seconds": 6}}
    responses: list[Any] = [
        _ENGINE.ExecuteResponse(result=executed),
        _ENGINE.ExecuteResponse(result={**executed, "error": error}),
        _ENGINE.ApplyResponse(error=error, duration={"seconds": 1}, displays=[{"data": forms}]),
        _ENGINE.PullResponse(error=error),
        _ENGINE.QueueStatusResponse(pending=call, queue=[call, call]),
    ]
    statuses = [_status.to_proto(DeliveryError(reason, engine_id=1)) for reason in ("QUEUE_FULL", "FENCED")]
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="other", metadata={"a": "b"})
    statuses.append(status_pb2.Status(code=99, message="x"))
    statuses[-1].details.add().Pack(info)
    seeds = []
    for response in responses:
        number = next(number for number in _METHODS if RESPONSES[number] is type(response))
        for status in statuses:
            pair = [status.SerializeToString(), response.SerializeToString()]
            seeds.append(bytes((_METHODS.index(number),)) + mutator.pack(pair))
    return seeds


class ReplyTarget:
    """Reads each input as a client does, and shows what it read."""

    name = "replies"
    seeds = _seeds()

    def __init__(self, watch: Watch) -> None:
        """Nothing runs."""
        self._watch = watch

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil the status or the response, field by field."""
        which = data[0] if data else 0
        status, response = (*mutator.unpack(data[1:]), b"", b"")[:2]
        if random.randrange(3) == 0:
            if random.randrange(2):
                status = mutator.spoilt_message(random, status_pb2.Status, status)
            else:
                status = _with_detail(random, status)
        else:
            response = mutator.spoilt_message(random, RESPONSES[_METHODS[which % len(_METHODS)]], response)
        return bytes((which,)) + mutator.pack([status, response])

    def run(self, data: bytes) -> str:
        """Hear this."""
        status, response = (*mutator.unpack(data[1:]), b"", b"")[:2]
        method = _METHODS[(data[0] if data else 0) % len(_METHODS)]
        with self._watch.in_time():
            said = self._hear_status(status)
            try:
                message = RESPONSES[method].FromString(response)
            except Exception:  # which the client's link answers with MALFORMED_MESSAGE
                return f"{said}; no response"
            try:
                show(method, message)
            except (DeliveryError, EngineryError) as error:
                return f"{said}; {error}"
        fields = [field.name for field, _ in message.ListFields()]
        return f"{said}; {RESPONSES[method].__name__} {fields}"

    def _hear_status(self, data: bytes) -> str:
        failure = _status.from_bytes(data)
        if not isinstance(public(failure), EngineryError):
            raise BrokenRule(f"no error of ours: {failure!r}")
        if failure.reason in RETRIED:
            pause = _status.retry_delay(data)
            if not 0 <= pause <= _MAX_PAUSE:
                raise BrokenRule(f"a pause of {pause} s")
        return failure.reason

    def close(self) -> None:
        """Nothing runs."""


def show(method: int, message: Message) -> None:
    """Show a response in every way that a client does; DeliveryError if it says that it cannot."""
    _answer.blobs_of(method, message)
    answer = Answer(1, 1, message, {}, _no_blob, "wrap")
    for shown in answer.displays():
        shown._repr_mimebundle_()
        repr(shown)
    answer.duration()
    if isinstance(message, engine_pb2.QueueStatusResponse):
        repr(result.queue_status(1, message))
        return
    holder = message.result if isinstance(message, engine_pb2.ExecuteResponse) else message
    remote = getattr(holder, "error", None)
    if remote is not None:
        error = _decode.to_exception(remote, "wrap")
        traceback.format_exception(error)
        repr(error)
    if isinstance(message, engine_pb2.ExecuteResponse):
        record = result.ExecuteResult(message.result, [], _no_blob, "wrap")
        repr(record)
        str(record)
        record._repr_mimebundle_()
        _ = record.started_at, record.duration


def _with_detail(random: Random, data: bytes) -> bytes:
    """Return a status with one more detail of a known type, spoilt."""
    status = status_pb2.Status()
    try:
        status.MergeFromString(data)
    except Exception:  # what is in `data` is none
        status.Clear()
    kind = random.choice((error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, operation_pb2.Operation))
    detail = kind()
    for _ in range(3):
        mutator.spoil_message(random, detail)
    packed = status.details.add()
    packed.Pack(detail)
    if random.randrange(4) == 0:
        packed.value = mutator.spoil(random, packed.value, data)
    serialized: bytes = status.SerializeToString()
    return serialized


def _no_blob(_: object) -> Encoded:
    raise DeliveryError("BLOB_NOT_FOUND", blob_id="b", engine_id=1)
