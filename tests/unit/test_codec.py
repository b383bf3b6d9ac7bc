"""Values survive the codecs that fit them, and what fits none says why."""

from __future__ import annotations

import base64
import math
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginery._codec import (
    PYTHON_VERSION,
    decode,
    decode_bound,
    decode_functions,
    encode,
    encode_for_engine,
    encode_functions,
)
from enginery._encoded import Codec, Encoded
from enginery.errors import PythonVersionMismatch, SerializationError
from tests.unit.foreign_pickles import PICKLES

if TYPE_CHECKING:
    from collections.abc import Callable

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(_JSON)
def test_json_gives_back_what_went_in(obj: object) -> None:
    """Whatever fits JSON comes back equal and of the same types; so does its pickle."""
    for codec in (Codec.JSON, Codec.PICKLE):
        back = decode(encode(obj, (codec,)))
        assert back == obj
        assert repr(back) == repr(obj)


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        (2**53 + 1, "2^53"),
        (-(2**60), "2^53"),
        (math.nan, "nan"),
        ([math.inf], "inf"),
        ((1, 2), "tuple"),
        ({1: 2}, "key"),
        (b"x", "bytes"),
        ("\ud800", "surrogate"),
        (np.float64(1.5), "float64"),
        (threading.Lock(), "lock"),
    ],
)
def test_json_refuses_by_name(obj: object, reason: str) -> None:
    """What JSON cannot give back exactly does not fit, and the error says why."""
    with pytest.raises(SerializationError, match=reason.replace("^", r"\^")):
        encode(obj, (Codec.JSON,))


def test_json_depth_and_size_are_bounded() -> None:
    """Depth stays below protobuf's limit; shared structure that explodes is refused, cycles too."""

    def nested(depth: int) -> list[object]:
        obj: list[object] = []
        for _ in range(depth):
            obj = [obj]
        return obj

    assert decode(encode(nested(44), (Codec.JSON,))) == nested(44)
    with pytest.raises(SerializationError, match="deeper"):
        encode(nested(45), (Codec.JSON,))
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(SerializationError, match="deeper"):
        encode(cycle, (Codec.JSON,))
    with pytest.raises(SerializationError, match="more than"):
        encode(["x" * (1 << 20)] * 100, (Codec.JSON,))


def test_the_first_codec_that_fits() -> None:
    """Codecs are tried in order; if none fits the error names the type and each reason."""
    assert encode("a", (Codec.NDARRAY, Codec.TEXT, Codec.JSON)).codec is Codec.TEXT
    assert encode((1,), (Codec.NDARRAY, Codec.JSON, Codec.PICKLE)).codec is Codec.PICKLE
    with pytest.raises(SerializationError, match=r"type tuple fits no .*TEXT: only str fits; JSON: .*tuple"):
        encode((1,), (Codec.TEXT, Codec.JSON))
    with pytest.raises(SerializationError, match="cannot pickle") as caught:
        encode(threading.Lock())
    assert isinstance(caught.value.__cause__, TypeError)


_ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.array(5.5),
    np.zeros((0, 3), ">i2"),
    np.zeros(0, "U5"),
    np.arange(20)[::3],
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    np.array(["2020-01-01", "2021-01-01"], "M8[D]"),
    np.array([1, 2], "m8[us]"),
    np.array(["a", "\u4e16"]),
    np.array([b"a", b"bb"]),
    np.array([True, False]),
    np.array([1j]),
]


@pytest.mark.parametrize("array", _ARRAYS, ids=str)
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_arrays(array: np.ndarray, kind: type[bytes]) -> None:
    """Arrays of every order and dtype come back equal and writable, whatever holds their bytes."""
    encoded = encode(array, (Codec.NDARRAY,))
    arrived = Encoded(
        encoded.codec,
        tuple(kind(part) for part in encoded.parts),
        dtype=encoded.dtype,
        shape=encoded.shape,
        fortran_order=encoded.fortran_order,
    )
    back = decode(arrived)
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert back.flags.writeable


@pytest.mark.parametrize(
    "obj",
    [
        [1],
        np.array([object()]),
        np.zeros(2, [("a", "i4")]),
        np.ma.array([1]),
    ],
    ids=["list", "object", "structured", "masked"],
)
def test_what_is_no_plain_array(obj: object) -> None:
    """Objects, records and subclasses have no raw form."""
    with pytest.raises(SerializationError):
        encode(obj, (Codec.NDARRAY,))


@pytest.mark.parametrize(
    ("dtype", "shape", "part"),
    [
        ("O", (1,), b"12345678"),
        ("<f8", (2,), b"12345678"),
        ("<f8", (-1,), b"12345678"),
        ("no such", (1,), b"1"),
        ("<f8", (1 << 62, 1 << 62), b""),
        ("", (), b"12345678x"),
    ],
)
def test_corrupt_arrays(dtype: str, shape: tuple[int, ...], part: bytes) -> None:
    """Descriptions that do not fit their bytes are errors; no memory is taken for them."""
    with pytest.raises(SerializationError):
        decode(Encoded(Codec.NDARRAY, (part,), dtype=dtype, shape=shape))


def test_buffers_out_of_band() -> None:
    """Large buffers are parts of their own, uncopied; small ones stay in the pickle; arrays arrive writable."""
    big, small = np.arange(10_000.0), np.arange(10.0)
    encoded = encode({"big": big, "small": small})
    assert len(encoded.parts) == 2
    assert len(encoded.parts[0]) % 64 == 0
    assert np.shares_memory(np.frombuffer(encoded.parts[1]), big)
    for kind in (bytes, bytearray):
        back = decode(Encoded(Codec.PICKLE, tuple(kind(part) for part in encoded.parts), PYTHON_VERSION))
        assert isinstance(back, dict)
        assert back["big"].flags.writeable
        np.testing.assert_array_equal(back["big"], big)
        np.testing.assert_array_equal(back["small"], small)


def test_many_buffers_are_bounded() -> None:
    """A value has a bounded number of parts."""
    array = np.zeros(8192)
    assert len(encode([array.copy() for _ in range(1100)]).parts) == 1001


@pytest.mark.parametrize(
    "value",
    [
        Encoded(Codec.PICKLE, (b"corrupt",), PYTHON_VERSION),
        Encoded(Codec.PICKLE, (), PYTHON_VERSION),
        Encoded(Codec.PICKLE, (pickle.dumps(5)[:-1],), PYTHON_VERSION),
        Encoded(Codec.PICKLE, (b"cno_such_module\nx\n.",), PYTHON_VERSION),
        Encoded(Codec.JSON, (b"{",)),
        Encoded(Codec.JSON, (b"\xff",)),
        Encoded(Codec.JSON, (b"[" * 100_000,)),
        Encoded(Codec.JSON, ()),
        Encoded(Codec.TEXT, (b"\xff",)),
        Encoded(Codec.TEXT, (b"a", b"b")),
    ],
)
def test_corrupt_bytes(value: Encoded) -> None:
    """Bytes that cannot be decoded are a SerializationError, of whatever kind they are."""
    with pytest.raises(SerializationError):
        decode(value)


def test_python_versions() -> None:
    """Plain values travel between minor versions; functions do not, nor what fails for it; by name."""
    foreign = "3.9.1"
    assert decode(Encoded(Codec.PICKLE, encode([1, {2}]).parts, foreign)) == [1, {2}]
    with pytest.raises(PythonVersionMismatch, match=r"Python 3\.9\.1.*function"):
        decode(Encoded(Codec.PICKLE, encode(lambda: 1).parts, foreign))
    with pytest.raises(PythonVersionMismatch, match="no_such_module"):
        decode(Encoded(Codec.PICKLE, (b"cno_such_module\nx\n.",), foreign))
    patch = ".".join(PYTHON_VERSION.split(".")[:2]) + ".999"
    function = decode(Encoded(Codec.PICKLE, encode(lambda: 1).parts, patch))
    assert function() == 1  # type: ignore[operator]


@pytest.mark.parametrize("name", ["add", "method"])
@pytest.mark.parametrize("version", PICKLES)
def test_functions_of_another_python_are_refused_by_name(version: str, name: str) -> None:
    """Real pickles of two versions: the one that runs here reads its own; of others no code is even made."""
    value = Encoded(Codec.PICKLE, (base64.b64decode(PICKLES[version][name]),), version)
    if version.split(".")[:2] == PYTHON_VERSION.split(".")[:2]:
        loaded: Any = decode(value)
        assert (loaded(1) if name == "add" else loaded().method()) == {"add": 2, "method": 4}[name]
        return
    for read in (decode, lambda value: decode_bound(value, {})):
        told = rf"by Python {version}, .* the function '{name}', .* source"
        with pytest.raises(PythonVersionMismatch, match=told):
            read(value)


def _main(source: str) -> Callable[..., object]:
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace["f"]  # type: ignore[return-value]


def test_decode_bound() -> None:
    """Functions of a `__main__` get other globals, whatever they captured is handed over apart."""
    f = _main("a = 1\nb = 2\ndef g(): return b\ndef f(): return a, g()")
    namespace: dict[str, object] = {"a": 10, "b": 20}
    bound, captured = decode_bound(encode_for_engine(f), namespace)
    assert callable(bound)
    assert set(captured) == {"a", "g"} | ({"b"} & set(captured))
    assert captured["a"] == 1
    assert set(namespace) - {"__builtins__"} == {"a", "b"}
    namespace["g"] = captured["g"]
    assert bound() == (10, 20)
    assert decode_bound(encode_for_engine(math.sqrt), namespace)[0] is math.sqrt


def test_functions_by_value() -> None:
    """encode_functions takes functions of importable modules along; only functions are allowed."""
    encoded = encode_functions({"f": pytest.importorskip("textwrap").dedent, "g": len})
    assert b"_make_function" in bytes(encoded.parts[0])
    functions = decode_functions(encoded, {})
    assert functions["f"]("  a") == "a"
    assert functions["g"] is len
    with pytest.raises(TypeError, match="'n' must be a function"):
        encode_functions({"n": 5})
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="f cannot be pickled"):
        encode_functions({"f": lambda: lock})
    with pytest.raises(SerializationError, match="dictionary"):
        decode_functions(encode(5), {})


def test_numpy_and_grpc_are_not_imported() -> None:
    """The codec alone brings in neither numpy nor gRPC nor protobuf nor asyncio."""
    code = (
        "import sys, enginery._codec as c; c.decode(c.encode([1]))\n"
        "print([m for m in ('numpy', 'grpc', 'google.protobuf', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"


def test_a_missing_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array where numpy is not installed is a clear error."""
    encoded = encode(np.arange(3), (Codec.NDARRAY,))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(SerializationError, match="numpy, which is not installed"):
        decode(encoded)
