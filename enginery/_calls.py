"""The methods of an engine as requests: arguments to bytes, and answers to values.

Both kinds of view use these, so a method is written once. Everything that can be refused without an engine is
refused here, at the caller, before anything is sent; a value is encoded once for any number of engines.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from enginery import _codec, _ids, _values, result
from enginery._called import called
from enginery._encoded import MAX_PROPERTIES, Codec, Encoded
from enginery._methods import METHODS
from enginery._options import NO_OPTIONS, Options
from enginery._reasons import DeliveryError, public
from enginery.errors import InvalidProperty, SerializationError
from enginery.serialized import ACCEPT, Serialized, serialize
from enginery.v1 import engine_pb2, operation_pb2, value_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from enginery._answer import Answer
    from enginery._called import Called
    from enginery._function_window import Function
    from enginery.client import Client

T = TypeVar("T")

UPLOAD_ABOVE = 64 << 10
"""Bytes above which a value goes by Upload, apart from the calls."""
REQUEST_LIMIT = 4 << 20
"""Largest request in bytes; what rides in it is small, unless someone sends 4 MiB of source."""

_PUSH = ": push what is large, or pass it as an argument"
_PUSH_CAPTURED = (
    ", in which a function travels with what it captured and the globals of here that it uses: push what is "
    "large, or pass it as an argument"
)
_PUSH_FIRST = (
    ", in which a task travels whole: push what is large to the engines first, as in client[:].push({'a': a}), "
    "and give enginery.reference('a')"
)
_PICKLE = value_pb2.CODEC_PICKLE
_APPLY = METHODS["Apply"]

Uploads = tuple[tuple[value_pb2.Blob, Encoded], ...]
"""Values of one request that are uploaded to each engine first, with the blobs as which they go."""


@dataclass(slots=True)
class Request(Generic[T]):
    """One call, ready for any number of engines."""

    method: int
    payload: bytes
    """The serialized request."""
    response: type[Message]
    decode: Callable[[Answer], T]
    """Turns a successful answer into a value, on the thread that asks for it."""
    uploads: Uploads = ()
    success_reasons: frozenset[str] = frozenset()
    """Reasons of failed delivery that count as success, with `fallback` as the value."""
    fallback: T | None = None
    owner: Client | None = None
    """The client that calls. It stays connected for as long as somebody has an operation or a result of it."""
    options: Options = NO_OPTIONS
    """How it is to be run."""
    task: bytes | None = None
    """How it is to be placed, if it is a task: serialized TaskOptions."""
    function: Function | None = None
    """The function of an Apply that goes by its digest, and so is not in the payload."""

    @property
    def function_size(self) -> int:
        """Bytes of the function that goes by its digest."""
        return 0 if self.function is None else len(self.function.pickle)

    def own_uploads(self) -> None:
        """Copy what is to be uploaded, so that the caller may change it before it was sent."""
        self.uploads = tuple((blob, _owned(encoded)) for blob, encoded in self.uploads)


def _owned(encoded: Encoded) -> Encoded:
    return Encoded(
        encoded.codec,
        tuple(part if isinstance(part, bytes) else bytes(part) for part in encoded.parts),
        python_version=encoded.python_version,
        dtype=encoded.dtype,
        shape=encoded.shape,
        fortran_order=encoded.fortran_order,
    )


@dataclass(slots=True)
class _Collector:
    """Collects the values of one request that are too large to ride in it."""

    blobs: list[tuple[value_pb2.Blob, Encoded]] = field(default_factory=list)
    room: int = 1 << 20
    """Bytes that may still ride in the request."""

    def take(self, encoded: Encoded) -> value_pb2.Blob | None:
        """Return the blob as which `encoded` goes, None if it rides in the request."""
        if encoded.size <= min(UPLOAD_ABOVE, self.room):
            self.room -= encoded.size
            return None
        blob = _values.describe(secrets.token_hex(16), encoded)
        self.blobs.append((blob, encoded))
        return blob

    def value(self, encoded: Encoded) -> value_pb2.Value:
        """Return the message for one value."""
        blob = self.take(encoded)
        return _values.to_value(encoded) if blob is None else value_pb2.Value(blob=blob)


def _request(
    name: str,
    message: Message,
    decode: Callable[[Answer], T],
    uploads: _Collector | None = None,
) -> Request[T]:
    payload = message.SerializeToString()
    _check_size(len(payload), _PUSH)
    response: type[Message] = getattr(operation_pb2 if name == "Cancel" else engine_pb2, f"{name}Response")
    return Request(METHODS[name], payload, response, decode, tuple(uploads.blobs) if uploads else ())


def _check_size(size: int, advice: str) -> None:
    if size > REQUEST_LIMIT:
        option = f"the size of a message{advice}"
        raise public(DeliveryError("VALUE_TOO_LARGE", size=size, limit=REQUEST_LIMIT, option=option))


def nothing(_: Answer) -> None:
    """Decode an answer that says nothing but that it was done."""


# ---- code


def execute(code: str) -> Request[result.ExecuteResult]:
    """Run source."""
    if not isinstance(code, str):
        raise TypeError(f"code is text, not {type(code).__name__}")
    try:
        message = engine_pb2.ExecuteRequest(code=code, accept=[_PICKLE])
    except UnicodeEncodeError as error:
        raise ValueError(f"code is not valid Unicode: {error}") from None
    return _request("Execute", message, lambda answer: execute_result(answer, answer.message.result))


def execute_result(answer: Answer, message: engine_pb2.ExecuteResult) -> result.ExecuteResult:
    """Return the result that a message of an answer is."""
    displays = [result.display(display, answer.blobs) for display in message.displays]
    return result.ExecuteResult(message, displays, answer.fetch, answer.errors)


def apply(
    function: Callable[..., T] | str, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Request[T]:
    """Call a function."""
    return _with_arguments(called(function), args, kwargs)


def apply_each(function: Callable[..., T] | str, arguments: Iterable[tuple[object, ...]]) -> list[Request[T]]:
    """Call a function once with each of `arguments`, a request each; the function is pickled once for all."""
    known = called(function)
    return [_with_arguments(known, args, {}) for args in arguments]


def _with_arguments(called: Called, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Request[Any]:
    uploads = _Collector()
    payload = called.request
    if args or kwargs:
        message = engine_pb2.ApplyRequest()
        arguments = _pickled_arguments(args, kwargs)
        if blob := uploads.take(arguments):
            message.blob_arguments.CopyFrom(blob)
        else:
            _values.fill_pickle(message.pickled_arguments, arguments)
        payload += message.SerializeToString()  # serialized messages that are joined are one
    _check_size(len(payload) + called.function_size, _PUSH_CAPTURED)
    return _apply_request(called, payload, tuple(uploads.blobs))


def _apply_request(called: Called, payload: bytes, uploads: Uploads = ()) -> Request[Any]:
    response = engine_pb2.ApplyResponse
    return Request(_APPLY, payload, response, apply_value, uploads, function=called.function)


def _pickled_arguments(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Encoded:
    try:
        return _codec.encode_for_engine((args, kwargs))
    except SerializationError:
        named = {f"argument {position}": value for position, value in enumerate(args, 1)}
        named |= {f"argument {name!r}": value for name, value in kwargs.items()}
        return _pickle((args, kwargs), named)


class Applied(Generic[T]):
    """Calls of one function by tasks. It is pickled once, now."""

    def __init__(self, function: Callable[..., T] | str) -> None:
        """Take a function, or the name of one."""
        self._called = called(function)

    def request(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Request[T]:
        """Return a call with these arguments. They ride in it: nobody knows yet to which engine to upload them.

        ValueTooLarge if they are too large for that.
        """
        payload = self._called.request
        if args or kwargs:
            message = engine_pb2.ApplyRequest()
            _values.fill_pickle(message.pickled_arguments, _pickled_arguments(args, kwargs))
            payload += message.SerializeToString()  # serialized messages that are joined are one
        _check_size(len(payload) + self._called.function_size, _PUSH_FIRST)
        return _apply_request(self._called, payload)


def check_reserved(
    function: Callable[..., object] | str, call: str = "apply", options: str = "view.options", **given: object
) -> None:
    """Raise TypeError if an option of `call` was given that the function may have been meant to get."""
    if isinstance(function, str):
        return
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # it does not tell
        return
    for name, value in given.items():
        if value is not None and name in parameters:
            raise TypeError(
                f"{call} takes {name}= for itself, and the function has a parameter of that name: give it by "
                f"functools.partial(function, {name}=...), or give the option by {options}({name}=...)"
            )


def apply_value(answer: Answer) -> Any:
    """Return what a function returned."""
    return _codec.decode(answer.value(answer.message.value))


def get_result(number: int | None) -> Request[result.ExecuteResult]:
    """Return the record of a command."""
    if type(number) not in (int, type(None)):  # a bool is no number
        raise TypeError(f"a command's number is an int, not {type(number).__name__}")
    if number is not None and not 0 <= number < 1 << 64:
        raise IndexError(f"no command {number}: numbers count up from 1")
    message = engine_pb2.GetResultRequest(number=number)
    return _request("GetResult", message, lambda answer: execute_result(answer, answer.message.result))


# ---- namespace


def push(namespace: Mapping[str, object]) -> Request[None]:
    """Put a dictionary into the namespace."""
    checked = _checked(namespace)
    encoded = _pickle(checked, {repr(key): value for key, value in checked.items()})
    uploads = _Collector()
    blob = uploads.take(encoded)
    message = (
        engine_pb2.PushRequest(pickled=_values.to_pickle(encoded))
        if blob is None
        else engine_pb2.PushRequest(blob=blob)
    )
    return _request("Push", message, nothing, uploads)


def push_function(namespace: Mapping[str, Callable[..., object]]) -> Request[None]:
    """Put functions into the namespace."""
    encoded = _codec.encode_functions(_checked(namespace), for_engine=True)
    uploads = _Collector()
    blob = uploads.take(encoded)
    message = (
        engine_pb2.PushFunctionRequest(pickled=_values.to_pickle(encoded))
        if blob is None
        else engine_pb2.PushFunctionRequest(blob=blob)
    )
    return _request("PushFunction", message, nothing, uploads)


def push_serialized(namespace: Mapping[str, object]) -> Request[None]:
    """Put values into the namespace that each have their own form."""
    uploads = _Collector()
    values = {key: uploads.value(serialize(value).encoded) for key, value in _checked(namespace).items()}
    return _request("PushSerialized", engine_pb2.PushSerializedRequest(values=values), nothing, uploads)


def pull(keys: str | Sequence[str]) -> Request[Any]:
    """Return objects by name."""
    names = _some_names(keys)
    message = engine_pb2.PullRequest(keys=names, accept=[_PICKLE])
    return _request("Pull", message, lambda answer: _pick(_codec.decode(answer.namespace()), keys, names))


def pull_function(keys: str | Sequence[str]) -> Request[Any]:
    """Return functions by name."""
    names = _some_names(keys)

    def decode(answer: Answer) -> object:
        import __main__

        return _pick(_codec.decode_functions(answer.namespace(), vars(__main__)), keys, names)

    return _request("PullFunction", engine_pb2.PullFunctionRequest(keys=names), decode)


def pull_serialized(keys: str | Sequence[str]) -> Request[Any]:
    """Return values by name, still encoded."""
    names = _some_names(keys)

    def decode(answer: Answer) -> object:
        values = answer.message.values
        return _pick({name: Serialized(answer.value(values[name])) for name in names}, keys, names)

    accept = [value_pb2.Codec.ValueType(int(codec)) for codec in ACCEPT]
    return _request("PullSerialized", engine_pb2.PullSerializedRequest(keys=names, accept=accept), decode)


def keys() -> Request[list[str]]:
    """Return the names that users put into the namespace."""
    return _request("Keys", engine_pb2.KeysRequest(), lambda answer: list(answer.message.keys))


def reset() -> Request[None]:
    """Empty the engine."""
    return _request("Reset", engine_pb2.ResetRequest(), nothing)


def kill() -> Request[None]:
    """Stop the engine; losing it on the way is success."""
    request = _request("Kill", engine_pb2.KillRequest(), nothing)
    request.success_reasons = frozenset({"ENGINE_STOPPED", "ENGINE_LOST", "KERNEL_DIED", "CONTROLLER_LOST"})
    return request


def _pickle(obj: object, parts: Mapping[str, object]) -> Encoded:
    """Pickle `obj`; if that fails, the error names the first of its parts that is to blame."""
    try:
        return _codec.encode_for_engine(obj)
    except SerializationError:
        for name, part in parts.items():
            try:
                _codec.encode(part)
            except SerializationError as error:
                raise SerializationError(f"{name}: {error}") from error.__cause__
        raise


def _checked(namespace: Mapping[str, T]) -> dict[str, T]:
    if not isinstance(namespace, Mapping):
        raise TypeError(f"a namespace is a dictionary, not {type(namespace).__name__}")
    checked = dict(namespace)
    for key in checked:
        if not isinstance(key, str):
            raise TypeError(f"names are text, not {type(key).__name__}: {key!r}")
    return checked


def _names(keys: str | Iterable[str]) -> list[str]:
    if isinstance(keys, str):
        return [keys]
    if not isinstance(keys, Sequence) or isinstance(keys, bytes):
        raise TypeError(f"keys are a name or a sequence of names, not {type(keys).__name__}")
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"a key is text, not {type(key).__name__}: {key!r}")
    return list(keys)


def _some_names(keys: str | Iterable[str]) -> list[str]:
    names = _names(keys)
    if not names:
        raise ValueError("no name was given")
    return names


def _pick(namespace: object, keys: str | Sequence[str], names: list[str]) -> Any:
    if not isinstance(namespace, Mapping) or not all(name in namespace for name in names):
        raise SerializationError("the engine's answer does not hold what was asked for")
    return namespace[keys] if isinstance(keys, str) else [namespace[name] for name in names]


# ---- properties


def set_properties(properties: Mapping[str, object]) -> Request[None]:
    """Update the properties. They ride in the request, however large: the engine takes no blobs for them."""
    encoded = {key: _property(key, value) for key, value in _checked(properties).items()}
    size = sum(len(key) + value.size for key, value in encoded.items())
    if size > MAX_PROPERTIES:
        raise InvalidProperty(
            f"properties of {size} bytes are over the limit of {MAX_PROPERTIES}: push them instead"
        )
    values = {key: _values.to_value(value) for key, value in encoded.items()}
    return _request("SetProperties", engine_pb2.SetPropertiesRequest(properties=values), nothing)


def _property(key: str, value: object) -> Encoded:
    try:
        return _codec.encode(value, (Codec.JSON, Codec.PICKLE))
    except SerializationError as error:
        raise InvalidProperty(f"property {key!r}: {error}") from error


def get_properties(keys: str | Sequence[str] | None) -> Request[dict[str, Any]]:
    """Return properties."""
    names = None if keys is None else _names(keys)

    def decode(answer: Answer) -> dict[str, Any]:
        properties = answer.message.properties
        wanted = sorted(properties) if names is None else names  # no keys means all to the engine
        return {key: _codec.decode(answer.value(properties[key])) for key in wanted}

    return _request("GetProperties", engine_pb2.GetPropertiesRequest(keys=names or []), decode)


def has_properties(keys: str | Sequence[str]) -> Request[list[bool]]:
    """Say for each key whether there is such a property."""
    message = engine_pb2.HasPropertiesRequest(keys=_names(keys))
    return _request("HasProperties", message, lambda answer: list(answer.message.present))


def del_properties(keys: str | Sequence[str]) -> Request[None]:
    """Remove properties."""
    return _request("DelProperties", engine_pb2.DelPropertiesRequest(keys=_names(keys)), nothing)


def clear_properties() -> Request[None]:
    """Remove all properties."""
    return _request("ClearProperties", engine_pb2.ClearPropertiesRequest(), nothing)


# ---- control


def interrupt(operation_id: str | None) -> Request[str | None]:
    """Interrupt what runs."""
    if operation_id is not None:
        _ids.parse(operation_id)
    message = engine_pb2.InterruptRequest(operation_id=operation_id or "")
    return _request("Interrupt", message, lambda answer: answer.message.operation_id or None)


def queue_status() -> Request[result.QueueStatus]:
    """Say what the engine is doing."""
    return _request(
        "QueueStatus",
        engine_pb2.QueueStatusRequest(),
        lambda answer: result.queue_status(answer.engine_id, answer.message),
    )


def clear_queue() -> Request[int]:
    """Fail what waits."""
    return _request(
        "ClearQueue", engine_pb2.ClearQueueRequest(), lambda answer: int(answer.message.cleared_count)
    )


def cancel(operation_id: str, grace: float | None, interrupt_only: bool | None) -> Request[bool]:
    """Stop an operation; the answer says whether it stops, or had been stopped."""
    message = operation_pb2.CancelRequest(operation_id=operation_id, interrupt_only=interrupt_only)
    if grace is not None:
        message.grace.FromNanoseconds(round(grace * 1e9))
    return _request("Cancel", message, lambda answer: _is_stopped(answer.message.operation))


def _is_stopped(operation: operation_pb2.Operation) -> bool:
    cancelled = operation.state == operation_pb2.OPERATION_STATE_CANCELLED
    running = operation.state == operation_pb2.OPERATION_STATE_RUNNING
    return cancelled or (running and operation.stopping)
