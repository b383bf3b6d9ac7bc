"""The kernel's replies → responses of the contract. Nothing here unpickles or awaits.

A response stays below 4 MiB, gRPC's limit in other languages: values over the caller's inline limit become
blobs, of long output the middle is cut out. The blobs that were made are left in `Composer.blobs` for the
engine to keep; composing a large reply takes time and may run in a thread.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine_service.blobs import load, new_blob_id, save
from enginery import _ids, _values
from enginery._encoded import Codec, Encoded, Stored
from enginery._methods import PYTHON_NAMES
from enginery._output import as_text
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, error_pb2, frame_pb2, value_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf import duration_pb2, timestamp_pb2
    from google.protobuf.message import Message

    from engine_service.kernel_messages import DisplayData, Failure, Reply
    from engine_service.operation import Operation
    from enginery.errors import RaisedError

MAX_RESPONSE = (4 << 20) - (64 << 10)
"""Largest response in bytes; the rest of 4 MiB is for the frame around it."""
OUTPUT_INLINE = 1 << 20
"""Bytes of each output stream that ride in a response."""
_TEXT_INLINE = 128 << 10  # of repr and pprint, each
_CODE_INLINE = 512 << 10  # of the source, which a record shows twice
_DISPLAY_INLINE = 256 << 10  # of one MIME form
_MAX_BLOBS = 512  # of one response: each holds a file, and what needs more of them does not fit in any case


@dataclass(slots=True)
class Composer:
    """Composes the response of one operation from what its kernel answered and what its log holds."""

    engine_id: int
    operation: Operation
    blobs: list[tuple[str, Stored]] = field(default_factory=list)
    room: int = MAX_RESPONSE
    """Bytes that are left."""
    find_blob: Callable[[str], value_pb2.Blob | None] = lambda _: None
    """The description of a blob that is there already, so that reading events again makes no more of them."""

    def respond(self, reply: Reply) -> bytes:
        """Return the serialized response; REPLY_TOO_LARGE if it does not fit a message."""
        message = _RESPONDERS[self.operation.method](self, reply)
        data: bytes = message.SerializeToString()
        if len(data) > MAX_RESPONSE:
            raise DeliveryError("REPLY_TOO_LARGE", size=len(data), limit=MAX_RESPONSE)
        return data

    # ---- parts of responses

    def error(self, failure: Failure) -> error_pb2.RemoteError:
        """Return what user code raised, as the contract's message."""
        error = error_pb2.RemoteError(
            errors=[_raised(raised) for raised in failure.errors],
            traceback=failure.traceback,
            engine_id=self.engine_id,
            method=PYTHON_NAMES[self.operation.method],
            arguments=self.operation.arguments,
            operation_id=_ids.show(self.operation.operation_id),
            category=_CATEGORIES.get(failure.category, error_pb2.ERROR_CATEGORY_USER),
        )
        if failure.pickled is not None:
            error.pickled.CopyFrom(_values.to_pickle(failure.pickled))
        self.room -= error.ByteSize()
        return error

    def value(self, target: value_pb2.Value, value: Encoded | Stored) -> None:
        """Make `target`, which must be empty, `value` itself if it fits, else the description of a blob."""
        if value.size <= min(self.operation.context.inline_limit, self.room):
            value = _loaded(value)
            _values.fill_value(target, value)
            size = target.ByteSize()
            if size <= self.room:  # numbers take more room in protobuf's JSON than in text
                self.room -= size
                return
            target.Clear()
        target.blob.CopyFrom(self._keep(value))

    def _keep(self, value: Encoded | Stored) -> value_pb2.Blob:
        if len(self.blobs) >= _MAX_BLOBS:
            raise DeliveryError("REPLY_TOO_LARGE", size=f"of over {_MAX_BLOBS} large parts", limit=MAX_RESPONSE)
        stored = value if isinstance(value, Stored) else save(value)
        blob_id = new_blob_id()
        self.blobs.append((blob_id, stored))
        blob = _values.describe(blob_id, stored)
        self.room -= blob.ByteSize()
        return blob

    def output(self, data: bytes, *, keep: bool) -> tuple[str, value_pb2.Blob | None]:
        """Return output as text, with a mark for its middle if it is long, and then a blob of all, if asked."""
        limit = max(0, min(OUTPUT_INLINE, self.room // 2))
        if len(data) <= limit:
            text = as_text(data)
            size = len(text.encode())
            if size <= limit:
                self.room -= size
                return text, None
        blob = self._keep(Encoded(Codec.TEXT, (as_text(data).encode(),))) if keep else None
        where = f"all of it is in blob {blob.blob_id}" if blob else "they were dropped"
        half = limit // 2
        mark = f"\n[{len(data) - 2 * half} bytes left out here; {where}]\n"
        text = _first(data, half) + mark + _last(data, half)
        self.room -= len(text.encode())
        return text, blob

    def text(self, text: str, limit: int = _TEXT_INLINE) -> str:
        """Return a repr or a source, cut with a mark if it is longer than `limit` bytes."""
        if len(text) > limit // 4:  # a character takes up to four bytes
            data = text.encode("utf-8", "backslashreplace")
            if len(data) > limit:
                text = data[:limit].decode("utf-8", "ignore") + f"… [{len(data) - limit} bytes more]"
        self.room -= min(4 * len(text), limit)
        return text

    def display(self, display: DisplayData) -> value_pb2.Display:
        """Return one displayed object; large forms become blobs."""
        message = value_pb2.Display()
        for mime_type, content in display.data.items():
            form = message.data.add(mime_type=mime_type)
            data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
            if len(data) > min(_DISPLAY_INLINE, self.room // 2):
                blob = self.find_blob(display.blob_ids.get(mime_type, ""))
                if blob is None:
                    blob = self._keep(Encoded(Codec.TEXT, (data,)))
                    display.blob_ids[mime_type] = blob.blob_id
                form.blob.CopyFrom(blob)
                continue
            if isinstance(content, bytes):
                form.data = data
            else:
                form.text = data.decode()
            self.room -= len(data)
        if display.metadata:
            message.metadata.CopyFrom(_values.plain_struct(display.metadata))
        return message

    # ---- one function a method

    def execute(self, reply: Reply) -> engine_pb2.ExecuteResponse:
        """Return the record of a command."""
        response = engine_pb2.ExecuteResponse()
        result = response.result
        result.engine_id = self.engine_id
        result.operation_id = _ids.show(self.operation.operation_id)
        result.number = self.operation.number
        result.input.raw = result.input.translated = self.text(self.operation.message.code, _CODE_INLINE)
        set_time(result.start_time, reply.started_at)
        set_time(result.duration, reply.duration)
        log = self.operation.log
        result.dropped_bytes = log.dropped_bytes
        self.room -= result.ByteSize()
        if reply.failure is not None:
            result.error.CopyFrom(self.error(reply.failure))
        if reply.text is not None:
            result.text = self.text(reply.text)
        if reply.pretty is not None:
            result.pretty = self.text(reply.pretty)
        if reply.value_error:
            result.value_error = reply.value_error
        if "value" in reply.values:
            try:
                self.value(result.value, reply.values["value"])
            except DeliveryError as error:  # a form that protobuf cannot hold; the text is there
                result.ClearField("value")
                result.value_error = error.text
        for name, data in (("stdout", log.stdout()), ("stderr", log.stderr())):
            if data:
                text, blob = self.output(data, keep=True)
                setattr(result, name, text)
                if blob is not None:
                    getattr(result, f"{name}_blob").CopyFrom(blob)
        displays = [*log.displays(), *reply.displays]
        if displays:
            result.displays.extend(self.display(display) for display in displays)
        return response

    def apply(self, reply: Reply) -> engine_pb2.ApplyResponse:
        """Return the value of a function, or what it raised."""
        message = engine_pb2.ApplyResponse(operation_id=_ids.show(self.operation.operation_id))
        set_time(message.start_time, reply.started_at)
        set_time(message.duration, reply.duration)
        log = self.operation.log
        message.dropped_bytes = log.dropped_bytes
        if reply.failure is not None:
            message.error.CopyFrom(self.error(reply.failure))
        elif "value" in reply.values:
            self.value(message.value, reply.values["value"])
        for name, data in (("stdout", log.stdout()), ("stderr", log.stderr())):
            if data:
                text, _ = self.output(data, keep=False)
                message.dropped_bytes += max(0, len(data) - OUTPUT_INLINE)
                setattr(message, name, text)
        displays = [*log.displays(), *reply.displays]
        if displays:
            message.displays.extend(self.display(display) for display in displays)
        return message

    def pull(self, reply: Reply) -> engine_pb2.PullResponse:
        """Return a namespace."""
        message = engine_pb2.PullResponse(operation_id=_ids.show(self.operation.operation_id))
        if reply.failure is not None:
            message.error.CopyFrom(self.error(reply.failure))
            return message
        self._fill_namespace(message, reply)
        return message

    def pull_function(self, reply: Reply) -> engine_pb2.PullFunctionResponse:
        """Return a namespace of functions."""
        message = engine_pb2.PullFunctionResponse(operation_id=_ids.show(self.operation.operation_id))
        if reply.failure is not None:
            message.error.CopyFrom(self.error(reply.failure))
            return message
        self._fill_namespace(message, reply)
        return message

    def _fill_namespace(
        self, message: engine_pb2.PullResponse | engine_pb2.PullFunctionResponse, reply: Reply
    ) -> None:
        value = value_pb2.Value()
        self.value(value, reply.values["namespace"])
        match value.WhichOneof("kind"):
            case "pickle":
                message.pickled.CopyFrom(value.pickle)
            case "blob":
                message.blob.CopyFrom(value.blob)
            case "json" if isinstance(message, engine_pb2.PullResponse):
                message.json.CopyFrom(value.json.struct_value)
            case kind:
                raise DeliveryError("BAD_VALUE", field="namespace", cause=f"the kernel answered with {kind}")

    def pull_serialized(self, reply: Reply) -> engine_pb2.PullSerializedResponse:
        """Return values by name."""
        message = engine_pb2.PullSerializedResponse(operation_id=_ids.show(self.operation.operation_id))
        if reply.failure is not None:
            message.error.CopyFrom(self.error(reply.failure))
            return message
        for key, value in reply.values.items():
            self.room -= len(key) + 16
            self.value(message.values[key], value)
        return message

    def keys(self, reply: Reply) -> engine_pb2.KeysResponse:
        """Return names."""
        return engine_pb2.KeysResponse(keys=reply.keys)

    def named(self, reply: Reply) -> Any:
        """Return a response that holds its operation and what was raised."""
        message: Any = _NAMED[self.operation.method](operation_id=_ids.show(self.operation.operation_id))
        if reply.failure is not None:
            message.error.CopyFrom(self.error(reply.failure))
        return message

    def bare(self, reply: Reply) -> Any:
        """Return a response that holds what was raised, if anything."""
        message: Any = _BARE[self.operation.method]()
        if reply.failure is not None:
            message.error.CopyFrom(self.error(reply.failure))
        return message


_NAMED: dict[int, Any] = {
    frame_pb2.METHOD_PUSH: engine_pb2.PushResponse,
    frame_pb2.METHOD_PUSH_FUNCTION: engine_pb2.PushFunctionResponse,
    frame_pb2.METHOD_PUSH_SERIALIZED: engine_pb2.PushSerializedResponse,
}
_BARE: dict[int, Any] = {
    frame_pb2.METHOD_RESET: engine_pb2.ResetResponse,
    frame_pb2.METHOD_SET_PROPERTIES: engine_pb2.SetPropertiesResponse,
    frame_pb2.METHOD_DEL_PROPERTIES: engine_pb2.DelPropertiesResponse,
    frame_pb2.METHOD_CLEAR_PROPERTIES: engine_pb2.ClearPropertiesResponse,
}
_RESPONDERS: dict[int, Callable[[Composer, Reply], Message]] = {
    frame_pb2.METHOD_EXECUTE: Composer.execute,
    frame_pb2.METHOD_APPLY: Composer.apply,
    frame_pb2.METHOD_PULL: Composer.pull,
    frame_pb2.METHOD_PULL_FUNCTION: Composer.pull_function,
    frame_pb2.METHOD_PULL_SERIALIZED: Composer.pull_serialized,
    frame_pb2.METHOD_KEYS: Composer.keys,
    **dict.fromkeys(_NAMED, Composer.named),
    **dict.fromkeys(_BARE, Composer.bare),
}

RESPONSES: dict[int, type[Message]] = {
    frame_pb2.METHOD_EXECUTE: engine_pb2.ExecuteResponse,
    frame_pb2.METHOD_APPLY: engine_pb2.ApplyResponse,
    frame_pb2.METHOD_PULL: engine_pb2.PullResponse,
    frame_pb2.METHOD_PULL_FUNCTION: engine_pb2.PullFunctionResponse,
    frame_pb2.METHOD_PULL_SERIALIZED: engine_pb2.PullSerializedResponse,
    frame_pb2.METHOD_KEYS: engine_pb2.KeysResponse,
    **_NAMED,
    **_BARE,
}
"""The response of each method that runs in the kernel."""

_CATEGORIES: dict[str, error_pb2.ErrorCategory.ValueType] = {
    "USER": error_pb2.ERROR_CATEGORY_USER,
    "INTERRUPTED": error_pb2.ERROR_CATEGORY_INTERRUPTED,
    "SERIALIZATION": error_pb2.ERROR_CATEGORY_SERIALIZATION,
    "RESOURCE": error_pb2.ERROR_CATEGORY_RESOURCE,
    "KERNEL_DIED": error_pb2.ERROR_CATEGORY_KERNEL_DIED,
    "CANCELLED": error_pb2.ERROR_CATEGORY_CANCELLED,
    "TIMED_OUT": error_pb2.ERROR_CATEGORY_TIMED_OUT,
    "REJECTED": error_pb2.ERROR_CATEGORY_REJECTED,
}


def own_error(exception: Exception, engine_id: int, method: int, operation_id: bytes) -> error_pb2.RemoteError:
    """Return an exception of a builtin type with one text argument, which the host raised itself."""
    name, argument = type(exception).__name__, str(exception.args[0])
    hierarchy = [f"builtins.{base.__name__}" for base in type(exception).__mro__[:-1]]
    error = error_pb2.RaisedError(
        module="builtins",
        type_name=name,
        hierarchy=hierarchy,
        message=str(exception),
        representation=repr(exception),
    )
    return error_pb2.RemoteError(
        errors=[error],
        traceback=f"{name}: {exception}\n",
        engine_id=engine_id,
        method=PYTHON_NAMES[method],
        operation_id=_ids.show(operation_id),
        category=error_pb2.ERROR_CATEGORY_USER,
        pickled=value_pb2.Pickle(python_version=platform.python_version(), data=_pickled(name, argument)),
    )


def _pickled(name: str, argument: str) -> bytes:
    """Spell the pickle of `builtins.<name>(argument)`: the host imports no pickle, and clients expect one."""
    data = argument.encode()
    text = b"X" + len(data).to_bytes(4, "little") + data  # BINUNICODE
    return (
        b"\x80\x04cbuiltins\n" + name.encode() + b"\n" + text + b"\x85R."
    )  # GLOBAL, text, TUPLE1, REDUCE, STOP


def set_time(message: timestamp_pb2.Timestamp | duration_pb2.Duration, seconds: float) -> None:
    """Make `message` so many seconds: Unix time, or a duration."""
    whole = int(seconds)
    message.seconds = whole
    message.nanos = int((seconds - whole) * 1e9)


def set_time_ns(message: timestamp_pb2.Timestamp, nanoseconds: int) -> None:
    """Make `message` so many nanoseconds since 1970."""
    message.seconds, message.nanos = divmod(nanoseconds, 1_000_000_000)


def _raised(raised: RaisedError) -> error_pb2.RaisedError:
    message = error_pb2.RaisedError(
        module=raised.module,
        type_name=raised.type_name,
        hierarchy=raised.hierarchy,
        message=raised.message,
        representation=raised.representation,
        notes=raised.notes,
        frames_omitted=raised.frames_omitted,
        suppress_context=raised.suppress_context,
        member_indexes=raised.member_indexes,
        cause_index=raised.cause_index,
        context_index=raised.context_index,
    )
    for frame in raised.frames:
        message.frames.add(
            file=frame.file,
            line=frame.line,
            end_line=frame.end_line,
            column=frame.column,
            end_column=frame.end_column,
            function=frame.function,
            source_line=frame.source_line,
        )
    return message


def _loaded(value: Encoded | Stored) -> Encoded:
    if isinstance(value, Encoded):
        return value
    try:
        return load(value)
    finally:
        value.close()


def _first(data: bytes, limit: int) -> str:
    """Return the beginning of output, no character cut in two, in at most `limit` bytes of UTF-8."""
    whole = as_text(data[:limit], final=False)
    return whole.encode()[:limit].decode("utf-8", "ignore")


def _last(data: bytes, limit: int) -> str:
    """Return the end of output, no character cut in two, in at most `limit` bytes of UTF-8."""
    tail = data[len(data) - limit :]
    skip = 0
    while skip < min(3, len(tail)) and tail[skip] & 0xC0 == 0x80:
        skip += 1
    whole = as_text(tail[skip:]).encode()
    return whole[max(0, len(whole) - limit) :].decode("utf-8", "ignore")
