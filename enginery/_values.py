"""Values of the contract ↔ Encoded: protobuf on one side, plain bytes on the other. Nothing here unpickles.

Whatever arrives is checked as far as its form goes; what its bytes mean is for the kernel and the client that
asked. Every function raises DeliveryError: BAD_VALUE for a malformed value, UNKNOWN_CODEC for a codec.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

from google.protobuf import struct_pb2

from enginery._encoded import Codec, Encoded, Stored
from enginery._reasons import DeliveryError
from enginery.v1 import value_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from enginery._encoded import Buffer

MAX_BUFFERS = 65_536
"""Largest number of out-of-band buffers in one value."""
MAX_NESTING = 90
"""Protobuf messages inside each other that one JSON value may take; a receiver refuses more than 100 in all."""
_LIST_NESTING = 2  # Value in ListValue in Value
_OBJECT_NESTING = 3  # Value in an entry of Struct in Value
_EXACT = 1 << 53  # integers up to here are exact in the doubles of protobuf's JSON
_BLOB_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


# ---- values


def to_value(encoded: Encoded) -> value_pb2.Value:
    """Return the typed form of `encoded`."""
    value = value_pb2.Value()
    fill_value(value, encoded)
    return value


def fill_value(value: value_pb2.Value, encoded: Encoded) -> None:
    """Make `value`, which must be empty, the typed form of `encoded`; no copy in between."""
    match encoded.codec:
        case Codec.PICKLE:
            fill_pickle(value.pickle, encoded)
        case Codec.JSON:
            _fill_json(value.json, _load_json(encoded))
        case Codec.TEXT:
            value.text = _text(encoded)
        case Codec.NDARRAY:
            array = value.ndarray
            array.dtype = encoded.dtype
            array.shape.extend(encoded.shape)
            array.fortran_order = encoded.fortran_order
            array.data = _bytes(encoded.parts[0])


def from_value(value: value_pb2.Value, field: str = "value") -> Encoded:
    """Return the bytes of `value`, which must hold them itself; `field` names it in errors.

    A blob is not one of those: ask `value.WhichOneof("kind")` first where blobs are allowed.
    """
    kind = value.WhichOneof("kind")
    if kind == "pickle":
        return from_pickle(value.pickle, field)
    if kind == "json":
        return Encoded(Codec.JSON, (_dump_json(_json_object(value.json, field), field),))
    if kind == "text":
        return Encoded(Codec.TEXT, (value.text.encode(),))
    if kind == "ndarray":
        array = value.ndarray
        if not array.dtype or any(length < 0 for length in array.shape):
            raise DeliveryError("BAD_VALUE", field=field, cause="an array has a dtype and no negative length")
        return Encoded(
            Codec.NDARRAY,
            (array.data,),
            dtype=array.dtype,
            shape=tuple(array.shape),
            fortran_order=array.fortran_order,
        )
    if kind == "blob":
        raise DeliveryError("BAD_VALUE", field=field, cause="a blob cannot be used here")
    raise DeliveryError("BAD_VALUE", field=field, cause="no form is set")


def to_pickle(encoded: Encoded) -> value_pb2.Pickle:
    """Return an encoded pickle as the contract's message."""
    pickle = value_pb2.Pickle()
    fill_pickle(pickle, encoded)
    return pickle


def fill_pickle(pickle: value_pb2.Pickle, encoded: Encoded) -> None:
    """Make `pickle`, which must be empty, the encoded pickle."""
    if encoded.codec is not Codec.PICKLE:
        raise DeliveryError("BAD_VALUE", field="pickle", cause=f"it is {encoded.codec.name}")
    parts = encoded.parts
    pickle.python_version = encoded.python_version
    pickle.data = _bytes(parts[0])
    if len(parts) > 1:
        pickle.buffers.extend([_bytes(buffer) for buffer in parts[1:]])


def from_pickle(pickle: value_pb2.Pickle, field: str = "pickle") -> Encoded:
    """Return the contract's pickle as plain bytes, still pickled."""
    buffers = pickle.buffers
    if len(buffers) > MAX_BUFFERS:
        raise DeliveryError("BAD_VALUE", field=field, cause=f"over {MAX_BUFFERS} buffers")
    data = pickle.data
    if not data:
        raise DeliveryError("BAD_VALUE", field=field, cause="the pickle is empty")
    return Encoded(Codec.PICKLE, (data, *buffers) if buffers else (data,), python_version=pickle.python_version)


# ---- JSON

# Protobuf's JSON knows doubles only, so 2 and 2.0 are the same there: a whole number becomes an int again on
# its way to Python, as a person who typed it expects.


def plain_struct(plain: Mapping[str, object]) -> struct_pb2.Struct:
    """Return a dictionary of what JSON holds as protobuf's JSON object."""
    return _json_value(dict(plain)).struct_value


def from_struct(struct: struct_pb2.Struct, field: str = "json") -> Encoded:
    """Return protobuf's JSON object as UTF-8 JSON."""
    plain = {key: _json_object(item, field) for key, item in struct.fields.items()}
    return Encoded(Codec.JSON, (_dump_json(plain, field),))


def hints(struct: struct_pb2.Struct) -> dict[str, object]:
    """Return the hints of a display as Python has them; those that hold no value are left out."""
    plain: dict[str, object] = {}
    for key, item in struct.fields.items():
        with contextlib.suppress(DeliveryError):
            plain[key] = _json_object(item, "metadata")
    return plain


def from_json_arguments(args: Iterable[struct_pb2.Value], kwargs: struct_pb2.Struct) -> Encoded:
    """Return arguments typed as JSON as one JSON list: positional ones, then the object of keyword ones."""
    positional = [_json_object(item, "args") for item in args]
    keyword = {key: _json_object(item, "kwargs") for key, item in kwargs.fields.items()}
    return Encoded(Codec.JSON, (_dump_json([positional, keyword], "json_arguments"),))


def _load_json(encoded: Encoded) -> Any:
    if encoded.codec is not Codec.JSON:
        raise DeliveryError("BAD_VALUE", field="json", cause=f"it is {encoded.codec.name}")
    try:
        return _from_json(_bytes(encoded.parts[0]).decode())
    except (ValueError, RecursionError) as error:
        raise DeliveryError("BAD_VALUE", field="json", cause=error) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _dump_json(plain: object, field: str) -> bytes:
    try:
        return _to_json(plain).encode()
    except ValueError as error:  # NaN and infinity, which protobuf lets through
        raise DeliveryError("BAD_VALUE", field=field, cause=error) from error


# Made once: the functions of the json module would make them anew each time.
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_from_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _json_value(plain: Any) -> struct_pb2.Value:
    value = struct_pb2.Value()
    _fill_json(value, plain)
    return value


def _fill_json(value: struct_pb2.Value, plain: Any) -> None:
    try:
        _fill(value, plain, MAX_NESTING)
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        raise DeliveryError("BAD_VALUE", field="json", cause=error) from error


def _fill(value: struct_pb2.Value, plain: Any, room: int) -> None:
    if room < 0:
        raise DeliveryError("BAD_VALUE", field="json", cause="nested too deep for JSON; accept CODEC_PICKLE")
    if plain is None:
        value.null_value = struct_pb2.NULL_VALUE
    elif isinstance(plain, bool):
        value.bool_value = plain
    elif isinstance(plain, str):
        value.string_value = plain
    elif isinstance(plain, int):
        if not -_EXACT <= plain <= _EXACT:
            raise DeliveryError("BAD_VALUE", field="json", cause="an integer beyond 2^53; accept CODEC_PICKLE")
        value.number_value = plain
    elif isinstance(plain, float):
        if not math.isfinite(plain):  # as 1e999 becomes when it is read
            raise DeliveryError("BAD_VALUE", field="json", cause=f"{plain} is not JSON")
        value.number_value = plain
    elif isinstance(plain, list):
        items = value.list_value.values
        value.list_value.SetInParent()
        for item in plain:
            _fill(items.add(), item, room - _LIST_NESTING)
    else:
        fields = value.struct_value.fields
        value.struct_value.SetInParent()
        for key, item in plain.items():
            _fill(fields[key], item, room - _OBJECT_NESTING)


def _json_object(value: struct_pb2.Value, field: str) -> object:
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _EXACT else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return {key: _json_object(item, field) for key, item in value.struct_value.fields.items()}
        case "list_value":
            return [_json_object(item, field) for item in value.list_value.values]
        case _:
            raise DeliveryError("BAD_VALUE", field=field, cause="a JSON value without a kind")


# ---- blobs


def describe(blob_id: str, value: Encoded | Stored) -> value_pb2.Blob:
    """Return the description of `value` as the blob `blob_id`."""
    sizes = value.part_sizes if isinstance(value, Stored) else tuple(_length(part) for part in value.parts)
    return value_pb2.Blob(
        blob_id=blob_id,
        codec=value_pb2.Codec.ValueType(int(value.codec)),
        size=value.size,
        part_sizes=sizes,
        python_version=value.python_version,
        dtype=value.dtype,
        shape=value.shape,
        fortran_order=value.fortran_order,
    )


def check_blob(blob: value_pb2.Blob) -> None:
    """Refuse a description of a blob that contradicts itself."""
    sizes = blob.part_sizes
    if not _BLOB_ID.fullmatch(blob.blob_id):
        raise DeliveryError("BAD_VALUE", field="blob_id", cause="1 to 64 characters of A-Z a-z 0-9 . _ -")
    codec = codec_of(blob.codec)
    if not sizes or len(sizes) > MAX_BUFFERS or (codec is not Codec.PICKLE and len(sizes) != 1):
        raise DeliveryError("BAD_VALUE", field="part_sizes", cause=f"{len(sizes)} parts for {codec.name}")
    if sum(sizes) != blob.size:
        raise DeliveryError("BAD_VALUE", field="size", cause="it is not the sum of part_sizes")
    if codec is Codec.NDARRAY and (not blob.dtype or any(length < 0 for length in blob.shape)):
        raise DeliveryError("BAD_VALUE", field="dtype", cause="an array has a dtype and no negative length")


def stored(blob: value_pb2.Blob, fd: int) -> Stored:
    """Return the value that `blob` describes and whose bytes lie in the file `fd`, which it then owns."""
    return Stored(
        codec=codec_of(blob.codec),
        fd=fd,
        part_sizes=tuple(blob.part_sizes),
        python_version=blob.python_version,
        dtype=blob.dtype,
        shape=tuple(blob.shape),
        fortran_order=blob.fortran_order,
    )


def assemble(blob: value_pb2.Blob, data: Buffer) -> Encoded:
    """Return the value that `blob` describes from all of its bytes; the parts are views into `data`."""
    check_blob(blob)
    view = memoryview(data)
    if view.nbytes != blob.size:
        raise DeliveryError("BAD_VALUE", field="size", cause=f"{view.nbytes} bytes came, not {blob.size}")
    parts: list[Buffer] = []
    start = 0
    for size in blob.part_sizes:
        parts.append(view[start : start + size])
        start += size
    return Encoded(
        codec_of(blob.codec),
        tuple(parts),
        python_version=blob.python_version,
        dtype=blob.dtype,
        shape=tuple(blob.shape),
        fortran_order=blob.fortran_order,
    )


# ---- codecs


def codec_of(number: int) -> Codec:
    """Return the codec of the contract's number; UNKNOWN_CODEC if there is none."""
    try:
        return Codec(number)
    except ValueError:
        raise _unknown_codec(number) from None


def accepted(numbers: Sequence[int], default: tuple[Codec, ...]) -> tuple[Codec, ...]:
    """Return the codecs that a caller accepts, `default` if it said nothing.

    Codecs of later versions are passed over; UNKNOWN_CODEC for the unset one, or if none is left.
    """
    if not numbers:
        return default
    if len(numbers) == 1 and numbers[0] in _CODECS:
        return (_CODECS[numbers[0]],)
    known = tuple(_CODECS[number] for number in numbers if number in _CODECS)
    if not known or 0 in numbers:
        raise _unknown_codec(next(number for number in numbers if number not in _CODECS))
    return known


_CODECS: dict[int, Codec] = {int(codec): codec for codec in Codec}


def _unknown_codec(number: int) -> DeliveryError:
    known = ", ".join(f"CODEC_{codec.name}" for codec in Codec)
    return DeliveryError("UNKNOWN_CODEC", codec=number, codecs=known)


def _text(encoded: Encoded) -> str:
    try:
        return _bytes(encoded.parts[0]).decode()
    except UnicodeDecodeError as error:
        raise DeliveryError("BAD_VALUE", field="text", cause=error) from error


def _bytes(part: Buffer) -> bytes:
    return part if isinstance(part, bytes) else bytes(part)  # protobuf takes nothing else


def _length(part: Buffer) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)
