"""Values: protobuf ↔ plain bytes, with hostile input refused by name."""

from __future__ import annotations

import json

import pytest
from google.protobuf import struct_pb2

from enginery import _values
from enginery._encoded import Codec, Encoded
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, value_pb2


@pytest.mark.parametrize(
    "value",
    [
        Encoded(Codec.PICKLE, (b"pickle", b"buffer", b""), python_version="3.11.7"),
        Encoded(Codec.JSON, ('{"a":[1,2.5,null,true,"ä"]}'.encode(),)),
        Encoded(Codec.JSON, (b"[]",)),
        Encoded(Codec.JSON, (b"{}",)),
        Encoded(Codec.TEXT, ("ä\0".encode(),)),
        Encoded(Codec.NDARRAY, (b"12345678",), dtype="<f8", shape=(1, 1), fortran_order=True),
        Encoded(Codec.NDARRAY, (b"",), dtype="<f8", shape=(0, 3)),
    ],
)
def test_every_codec_survives_the_wire(value: Encoded) -> None:
    """A value comes out as it went in."""
    wire = _values.to_value(value).SerializeToString()
    assert _values.from_value(value_pb2.Value.FromString(wire)) == value


def test_memoryviews_are_taken() -> None:
    """Buffers may be views; protobuf gets bytes."""
    value = Encoded(Codec.PICKLE, (memoryview(b"pickle"), bytearray(b"buffer")), python_version="3.11.7")
    assert _values.to_pickle(value).buffers == [b"buffer"]


def test_whole_numbers_become_int() -> None:
    """What a person types as 2 arrives as the int 2, though protobuf holds doubles."""
    struct = struct_pb2.Struct()
    struct.update({"a": 2, "b": 2.5, "c": 1e300})
    assert json.loads(bytes(_values.from_struct(struct).parts[0])) == {"a": 2, "b": 2.5, "c": 1e300}
    assert type(json.loads(bytes(_values.from_struct(struct).parts[0]))["a"]) is int


@pytest.mark.parametrize(
    "text",
    [
        b"NaN",
        b"Infinity",
        b"[-1e999]",
        b"{",
        b"\xff",
        b"9007199254740993",
        b'"\\ud800"',
        b'{"\\ud800":1}',
        b"[" * 100_000,
        b"[" * 60 + b"]" * 60,
        b'{"a":' * 40 + b"1" + b"}" * 40,
    ],
)
def test_json_that_protobuf_cannot_hold_is_refused(text: bytes) -> None:
    """Not a number, too big, too deep, not JSON: BAD_VALUE, never another exception."""
    with pytest.raises(DeliveryError) as caught:
        _values.to_value(Encoded(Codec.JSON, (text,)))
    assert caught.value.reason == "BAD_VALUE"


def test_the_deepest_json_can_be_parsed_inside_a_reply() -> None:
    """What is let through stays below protobuf's limit of 100 nested messages."""
    text = b'{"a":' * 30 + b"1" + b"}" * 30
    value = _values.to_value(Encoded(Codec.JSON, (text,)))
    reply = engine_pb2.ExecuteResponse(result=engine_pb2.ExecuteResult(value=value))
    assert engine_pb2.ExecuteResponse.FromString(reply.SerializeToString()) == reply


@pytest.mark.parametrize(
    "value",
    [
        value_pb2.Value(),
        value_pb2.Value(json=struct_pb2.Value()),
        value_pb2.Value(json=struct_pb2.Value(number_value=float("nan"))),
        value_pb2.Value(pickle=value_pb2.Pickle()),
        value_pb2.Value(ndarray=value_pb2.NdArray(shape=[1])),
        value_pb2.Value(ndarray=value_pb2.NdArray(dtype="<f8", shape=[-1])),
        value_pb2.Value(blob=value_pb2.Blob(blob_id="a")),
    ],
)
def test_malformed_values_are_refused(value: value_pb2.Value) -> None:
    """A value without a form, or one that contradicts itself, is BAD_VALUE and names the field."""
    with pytest.raises(DeliveryError, match="here") as caught:
        _values.from_value(value, "here")
    assert caught.value.reason == "BAD_VALUE"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blob_id": ""}, "BAD_VALUE"),
        ({"blob_id": "a/b"}, "BAD_VALUE"),
        ({"blob_id": "a" * 65}, "BAD_VALUE"),
        ({"codec": 0}, "UNKNOWN_CODEC"),
        ({"codec": 99}, "UNKNOWN_CODEC"),
        ({"size": 4}, "BAD_VALUE"),
        ({"part_sizes": []}, "BAD_VALUE"),
        ({"codec": 2, "part_sizes": [1, 2]}, "BAD_VALUE"),
        ({"codec": 4, "part_sizes": [3]}, "BAD_VALUE"),
    ],
)
def test_blobs_that_contradict_themselves_are_refused(change: dict[str, object], reason: str) -> None:
    """Id, codec, parts and size of a blob must fit together."""
    good: dict[str, object] = {"blob_id": "a", "codec": 1, "size": 3, "part_sizes": [1, 2]}
    _values.check_blob(value_pb2.Blob(**good))  # type: ignore[arg-type]
    with pytest.raises(DeliveryError) as caught:
        _values.check_blob(value_pb2.Blob(**(good | change)))  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_a_described_blob_is_put_together_again() -> None:
    """`describe` and `assemble` are each other's inverse."""
    value = Encoded(Codec.PICKLE, (b"pickle", b"buffer"), python_version="3.11.7")
    whole = _values.assemble(_values.describe("a", value), b"picklebuffer")
    assert [bytes(part) for part in whole.parts] == [b"pickle", b"buffer"]
    assert whole.python_version == "3.11.7"
    with pytest.raises(DeliveryError, match="size"):
        _values.assemble(_values.describe("a", value), b"pickle")


def test_codecs_of_later_versions_are_passed_over() -> None:
    """Unknown codecs are not accepted; the unset one, or nothing known, is refused."""
    default = (Codec.JSON,)
    assert _values.accepted([], default) == default
    assert _values.accepted([99, 1, 2], default) == (Codec.PICKLE, Codec.JSON)
    for bad in ([99], [0, 1]):
        with pytest.raises(DeliveryError) as caught:
            _values.accepted(bad, default)
        assert caught.value.reason == "UNKNOWN_CODEC"
