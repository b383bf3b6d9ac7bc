"""The frame of one call: what many calls have in common is serialized once."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from enginery import _options
from enginery._function_window import DIGEST_SIZE
from enginery._wire import FIXED64, embed, tag, varint
from enginery.v1 import cluster_pb2, frame_pb2

if TYPE_CHECKING:
    from enginery._calls import Request
    from enginery._function_window import Function
    from enginery._options import Options

_CALLS = tag(cluster_pb2.SessionRequest.CALLS_FIELD_NUMBER)
_CALL_ID = tag(frame_pb2.Call.CALL_ID_FIELD_NUMBER, FIXED64)
_DIGEST = tag(frame_pb2.Call.FUNCTION_DIGEST_FIELD_NUMBER) + varint(DIGEST_SIZE)
_REQUEST = tag(frame_pb2.Call.REQUEST_FIELD_NUMBER)
_FUNCTIONS = tag(cluster_pb2.SessionRequest.FUNCTIONS_FIELD_NUMBER)


def frame(call_id: int, engine_id: int, request: Request[Any]) -> bytes:
    """Return a serialized SessionRequest that holds one call."""
    head = _head(engine_id, request.method, request.options, request.task)
    if request.function is not None:
        head += _DIGEST + request.function.digest
    payload = request.payload
    length = varint(len(payload))
    size = len(_CALL_ID) + 8 + len(head) + len(_REQUEST) + len(length) + len(payload)
    parts = (_CALLS, varint(size), _CALL_ID, call_id.to_bytes(8, "little"), head, _REQUEST, length, payload)
    return b"".join(parts)


def function_frame(function: Function) -> bytes:
    """Return a serialized SessionRequest that holds a function."""
    message = frame_pb2.Function(digest=function.digest, pickle=function.pickle)
    return embed(_FUNCTIONS, message.SerializeToString())


@functools.lru_cache(maxsize=256)
def _head(engine_id: int, method: int, options: Options, task: bytes | None) -> bytes:
    """Return the fields of a call that do not change from one to the next, serialized."""
    call = frame_pb2.Call(
        engine_id=engine_id, method=frame_pb2.Method.ValueType(method), options=_options.message(options)
    )
    if task is not None:
        call.task.MergeFromString(task)
        call.task.SetInParent()  # it is one also if it has no options
    return call.SerializeToString()
