"""What a task calls, as bytes: read once when it comes, and sent with each attempt as it is."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from controller_service import frames
from enginery._function_window import whole_request
from enginery._methods import ANY_ENGINE, METHODS
from enginery._wire import FIXED64, embed, tag, varint
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from enginery._function_window import Function

_Call = frame_pb2.Call
_CALL_ID = tag(_Call.CALL_ID_FIELD_NUMBER, FIXED64)
_ENGINE_ID = tag(_Call.ENGINE_ID_FIELD_NUMBER, 0)
_OPERATION_ID = tag(_Call.OPERATION_ID_FIELD_NUMBER) + varint(16)
_DIGEST = tag(_Call.FUNCTION_DIGEST_FIELD_NUMBER)
_REQUEST = tag(_Call.REQUEST_FIELD_NUMBER)
_number = struct.Struct("<Q").pack


def _head(method: int, options: frame_pb2.CallOptions | None = None, label: str = "") -> bytes:
    """Return what any engine is told of a task beside its request: that it is one, and how to run it."""
    head = _Call(method=method, options=options, task=frame_pb2.TaskOptions(label=label))  # type: ignore[arg-type]
    head.options.any_incarnation = True
    return head.SerializeToString()


_PLAIN = {METHODS[name]: _head(METHODS[name]) for name in ("Execute", "Apply")}


class TaskCall(NamedTuple):
    """The call of a task, without ids."""

    method: int
    head: bytes
    """All but ids and request: fields of a serialized Call."""
    request: bytes
    function: Function | None
    """The one that it names by its digest, if it does."""

    @classmethod
    def of(cls, call: frame_pb2.Call, label: str, function: Function | None = None) -> TaskCall:
        """Return that of a call of a client."""
        method = call.method
        if label or method not in _PLAIN or call.HasField("options"):
            head = _head(method, call.options, label)
        else:
            head = _PLAIN[method]
        if function is not None:
            head += _DIGEST + varint(len(function.digest)) + function.digest
        return cls(method, head, call.request, function)

    @property
    def size(self) -> int:
        """Bytes of request and function."""
        return len(self.request) + (0 if self.function is None else len(self.function.pickle))

    def frame(self, number: int, engine_id: int, operation_id: bytes) -> bytes:
        """Return a serialized ControllerMessage that calls an engine under that number."""
        _, head, request, _ = self
        engine, named = _ENGINE_ID + varint(engine_id << 1), _OPERATION_ID + operation_id
        size = varint(len(request))
        return embed(
            frames.CALL, b"".join((_CALL_ID, _number(number), engine, named, head, _REQUEST, size, request))
        )

    def kept(self, task_id: bytes, session_id: bytes, options: frame_pb2.TaskOptions) -> bytes:
        """Return the Call of its client, serialized, whose request stands alone."""
        call = _Call.FromString(self.head)
        call.ClearField("function_digest")
        call.engine_id, call.operation_id, call.session_id = ANY_ENGINE, task_id, session_id
        call.task.CopyFrom(options)
        call.request = whole_request(self.request, self.function)
        return call.SerializeToString()

    @property
    def mark(self) -> int:
        """What is remembered of it once its task has ended. It is even if the function goes by digest."""
        digest = b"" if self.function is None else self.function.digest
        return hash((self.method, self.request, digest)) & ~1 | (self.function is None)

    def is_another_than(self, mark: int) -> bool:
        """Return whether that is the mark of another call, unless only one of them goes by digest."""
        return not (self.mark ^ mark) & 1 and self.mark != mark

    def asks_the_same_as(self, other: TaskCall) -> bool:
        """Return whether another calls the same; a request that stands alone is that of a digest."""
        own = whole_request(self.request, self.function)
        return self.method == other.method and own == whole_request(other.request, other.function)
