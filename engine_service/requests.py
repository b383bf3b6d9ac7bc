"""Requests of the contract → what they ask of the kernel. One row a method; nothing here does I/O or unpickles.

A row says which message the request is, what of the kernel's `Command` it fills, how people read its arguments,
and which uploaded blobs it uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enginery import _values
from enginery._encoded import Codec, Encoded, Stored
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.message import Message

    from engine_service.known_functions import KnownFunction
    from enginery.v1 import value_pb2

    Blobs = Mapping[str, Stored]
    Fields = dict[str, Any]

LARGE = 64 << 10
"""Bytes from which requests and replies are translated in a thread: JSON of that size takes milliseconds."""
JSON_FIRST = (Codec.JSON,)
PULL_SERIALIZED_DEFAULT = (Codec.NDARRAY, Codec.JSON, Codec.PICKLE)
_DICTIONARY = (Codec.PICKLE, Codec.JSON)
_SUMMARY = 200  # characters of a call's arguments that people get to read
_CODE_SUMMARY = 1_000


@dataclass(frozen=True, slots=True)
class Row:
    """How one method is asked for. `fields` are keywords of `Command`; `blobs` are those it consumes."""

    request: type[Message]
    fields: Callable[[Any, Blobs], Fields]
    summary: Callable[[Any], str]
    blobs: Callable[[Any], Sequence[value_pb2.Blob]] = lambda message: ()


def _refuse(field: str, cause: str) -> DeliveryError:
    return DeliveryError("BAD_REQUEST", field=field, cause=cause)


# ---- one function a method


def _execute(message: engine_pb2.ExecuteRequest, blobs: Blobs) -> Fields:
    return {"code": message.code, "accept": _values.accepted(message.accept, JSON_FIRST)}


def _apply(message: engine_pb2.ApplyRequest, blobs: Blobs) -> Fields:
    values: tuple[tuple[str, Encoded | Stored], ...] = ()
    match message.WhichOneof("function"):
        case "pickled_function":
            values = (("function", _values.from_pickle(message.pickled_function, "pickled_function")),)
        case None:
            raise _refuse("function", "one of pickled_function and function_name is required")
        case "function_name" if not message.function_name:
            raise _refuse("function_name", "it is empty")
    return {
        "function_name": message.function_name,
        "values": values + _arguments(message, blobs),
        "accept": _values.accepted(message.accept, JSON_FIRST),
    }


def apply_known(function: KnownFunction, message: engine_pb2.ApplyRequest, blobs: Blobs) -> Fields:
    """Return the fields of a call that names its function by digest; DeliveryError if it names another too."""
    if message.WhichOneof("function") is not None:
        raise _refuse("function", "the call names one by its digest")
    return {
        "digest": function.digest,
        "values": (("function", function.value), *_arguments(message, blobs)),
        "accept": _values.accepted(message.accept, JSON_FIRST),
    }


def _arguments(message: engine_pb2.ApplyRequest, blobs: Blobs) -> tuple[tuple[str, Encoded | Stored], ...]:
    match message.WhichOneof("arguments"):
        case "pickled_arguments":
            return (("arguments", _values.from_pickle(message.pickled_arguments, "pickled_arguments")),)
        case "json_arguments":
            arguments = message.json_arguments
            return (("arguments", _values.from_json_arguments(arguments.args, arguments.kwargs)),)
        case "blob_arguments":
            return (("arguments", _uploaded(message.blob_arguments, blobs, (Codec.PICKLE,))),)
    return ()


def _push(message: engine_pb2.PushRequest, blobs: Blobs) -> Fields:
    match message.WhichOneof("namespace"):
        case "pickled":
            namespace: Encoded | Stored = _values.from_pickle(message.pickled, "pickled")
        case "json":
            namespace = _values.from_struct(message.json)
        case "blob":
            namespace = _uploaded(message.blob, blobs, _DICTIONARY)
        case _:
            raise _refuse("namespace", "one of pickled, json and blob is required")
    return {"values": (("namespace", namespace),)}


def _push_function(message: engine_pb2.PushFunctionRequest, blobs: Blobs) -> Fields:
    match message.WhichOneof("namespace"):
        case "pickled":
            namespace: Encoded | Stored = _values.from_pickle(message.pickled, "pickled")
        case "blob":
            namespace = _uploaded(message.blob, blobs, (Codec.PICKLE,))
        case _:
            raise _refuse("namespace", "one of pickled and blob is required")
    return {"values": (("namespace", namespace),)}


def _pull(message: engine_pb2.PullRequest, blobs: Blobs) -> Fields:
    accept = _values.accepted(message.accept, JSON_FIRST)
    unfit = [codec for codec in accept if codec not in _DICTIONARY]
    if unfit:
        raise _refuse("accept", f"a dictionary comes as CODEC_PICKLE or CODEC_JSON, not CODEC_{unfit[0].name}")
    return {"keys": _keys(message.keys), "accept": accept}


def _pull_function(message: engine_pb2.PullFunctionRequest, blobs: Blobs) -> Fields:
    return {"keys": _keys(message.keys), "accept": (Codec.PICKLE,)}


def _pull_serialized(message: engine_pb2.PullSerializedRequest, blobs: Blobs) -> Fields:
    return {
        "keys": _keys(message.keys),
        "accept": _values.accepted(message.accept, PULL_SERIALIZED_DEFAULT),
    }


def _push_serialized(message: engine_pb2.PushSerializedRequest, blobs: Blobs) -> Fields:
    values = message.values
    return {"values": tuple((key, _held_or_given(values[key], blobs, f"values[{key!r}]")) for key in values)}


def _set_properties(message: engine_pb2.SetPropertiesRequest, blobs: Blobs) -> Fields:
    given = message.properties
    values = tuple((key, _values.from_value(given[key], f"properties[{key!r}]")) for key in given)
    for key, value in values:
        if value.codec not in _DICTIONARY:
            raise _refuse(f"properties[{key!r}]", f"CODEC_JSON or CODEC_PICKLE, not CODEC_{value.codec.name}")
    return {"values": values}


def _del_properties(message: engine_pb2.DelPropertiesRequest, blobs: Blobs) -> Fields:
    return {"keys": tuple(message.keys)}


def _nothing(message: Message, blobs: Blobs) -> Fields:
    return {}


def _keys(keys: Sequence[str]) -> tuple[str, ...]:
    if not keys:
        raise _refuse("keys", "at least one name is required")
    return tuple(keys)


def _uploaded(blob: value_pb2.Blob, blobs: Blobs, codecs: Sequence[Codec]) -> Stored:
    value = blobs[blob.blob_id]
    if value.codec not in codecs:
        raise DeliveryError("BAD_VALUE", field="blob", cause=f"CODEC_{value.codec.name} cannot be used here")
    return value


def _held_or_given(value: value_pb2.Value, blobs: Blobs, field: str) -> Encoded | Stored:
    if value.WhichOneof("kind") == "blob":
        return blobs[value.blob.blob_id]
    return _values.from_value(value, field)


# ---- what people read


def _cut(text: str, limit: int = _SUMMARY) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _code(message: engine_pb2.ExecuteRequest) -> str:
    return _cut(message.code, _CODE_SUMMARY)


def _named(message: Any) -> str:
    return _cut(", ".join(message.keys))


def _function(message: engine_pb2.ApplyRequest) -> str:
    return name_of(message.function_name or message.pickled_function.name)


def name_of(name: str) -> str:
    """Return how people read of a function that calls itself `name`."""
    return _cut(name or "<function>")


def _namespace(message: Any) -> str:
    if message.WhichOneof("namespace") == "json":
        return _cut(", ".join(sorted(message.json.fields)))
    return f"<{message.ByteSize() if not message.HasField('blob') else message.blob.size} bytes>"


def _of_map(name: str) -> Callable[[Any], str]:
    return lambda message: _cut(", ".join(sorted(getattr(message, name))))


def _no_arguments(message: Message) -> str:
    return ""


# ---- which blobs


def _blob_of(field: str) -> Callable[[Any], Sequence[value_pb2.Blob]]:
    return lambda message: (getattr(message, field),) if message.HasField(field) else ()


def _blobs_of_values(message: engine_pb2.PushSerializedRequest) -> list[value_pb2.Blob]:
    return [value.blob for value in message.values.values() if value.WhichOneof("kind") == "blob"]


ROWS: dict[int, Row] = {
    frame_pb2.METHOD_EXECUTE: Row(engine_pb2.ExecuteRequest, _execute, _code),
    frame_pb2.METHOD_APPLY: Row(engine_pb2.ApplyRequest, _apply, _function, _blob_of("blob_arguments")),
    frame_pb2.METHOD_PUSH: Row(engine_pb2.PushRequest, _push, _namespace, _blob_of("blob")),
    frame_pb2.METHOD_PULL: Row(engine_pb2.PullRequest, _pull, _named),
    frame_pb2.METHOD_PUSH_FUNCTION: Row(
        engine_pb2.PushFunctionRequest, _push_function, _namespace, _blob_of("blob")
    ),
    frame_pb2.METHOD_PULL_FUNCTION: Row(engine_pb2.PullFunctionRequest, _pull_function, _named),
    frame_pb2.METHOD_PUSH_SERIALIZED: Row(
        engine_pb2.PushSerializedRequest, _push_serialized, _of_map("values"), _blobs_of_values
    ),
    frame_pb2.METHOD_PULL_SERIALIZED: Row(engine_pb2.PullSerializedRequest, _pull_serialized, _named),
    frame_pb2.METHOD_KEYS: Row(engine_pb2.KeysRequest, _nothing, _no_arguments),
    frame_pb2.METHOD_RESET: Row(engine_pb2.ResetRequest, _nothing, _no_arguments),
    frame_pb2.METHOD_SET_PROPERTIES: Row(
        engine_pb2.SetPropertiesRequest, _set_properties, _of_map("properties")
    ),
    frame_pb2.METHOD_DEL_PROPERTIES: Row(engine_pb2.DelPropertiesRequest, _del_properties, _named),
    frame_pb2.METHOD_CLEAR_PROPERTIES: Row(engine_pb2.ClearPropertiesRequest, _nothing, _no_arguments),
}
"""The methods that run in the kernel, one after the other."""
