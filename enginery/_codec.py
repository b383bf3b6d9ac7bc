"""Python objects ↔ encoded values: the only module beside the kernel's that pickles, by `_pickler.py`.

Unpickling runs code: decode only what comes from an engine or a client of one's own cluster. numpy is imported
only to decode an array.
"""

from __future__ import annotations

import builtins
import io
import json
import math
import pickle
import sys
import types
from typing import TYPE_CHECKING, NoReturn, cast

from cloudpickle import cloudpickle as _cloudpickle

from enginery._encoded import Codec, Encoded
from enginery._pickler import Pickler
from enginery._reference import Unresolved
from enginery.errors import PythonVersionMismatch, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from enginery._encoded import Buffer

PYTHON_VERSION = ".".join(map(str, sys.version_info[:3]))
_OUT_OF_BAND = 64 << 10  # bytes: below this a copy costs less than a part of its own
_MAX_BUFFERS = 1000  # parts of one value; further buffers go in band
_ALIGNMENT = 64  # bytes: the pickle is padded so that the buffers behind it in a file stay aligned
_MAX_EXACT = 1 << 53
_MAX_NESTING = 90  # protobuf refuses 100 messages in one another, of which it takes
_LIST_NESTING = 2  # two for a list
_DICT_NESTING = 3  # and three for a dictionary
_MAX_JSON = 64 << 20  # items and characters: a bound for shared structure that explodes when it is written out
_ARRAY_KINDS = "biufcmMSU"  # dtypes that their array-interface string describes wholly
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PLAIN = (type(None), bool, int, float, str, bytes)


class _DoesNotFit(Exception):
    """The object has no form in this codec; the text says why."""


def encode(obj: object, accept: Sequence[Codec] = (Codec.PICKLE,)) -> Encoded:
    """Return `obj` in the first codec of `accept` that fits it.

    SerializationError names the type, and why each codec does not fit.
    """
    reasons: list[str] = []
    cause: BaseException | None = None
    for codec in accept:
        try:
            return _ENCODERS[codec](obj)
        except _DoesNotFit as error:
            reasons.append(f"{codec.name}: {error}")
            cause = error.__cause__ or cause
    if tuple(accept) == (Codec.PICKLE,):
        raise _cannot_pickle(obj, reasons[0][len("PICKLE: ") :], with_sources=False) from cause
    raise SerializationError(f"{_name(obj)} fits no accepted codec ({'; '.join(reasons)})") from cause


def encode_for_engine(obj: object) -> Encoded:
    """Pickle `obj` for an engine: as `encode`, but the source of the user's own modules goes along."""
    try:
        return _encode_pickle(obj, with_sources=True)
    except _DoesNotFit as error:
        raise _cannot_pickle(obj, str(error), with_sources=True) from error.__cause__


def encode_functions(namespace: Mapping[str, object], *, for_engine: bool = False) -> Encoded:
    """Pickle a dictionary of functions by value, wherever they come from, for push_function and pull_function.

    `for_engine`: what they use of the user's own modules goes along, as for `encode_for_engine`.

    TypeError if a value is no function.
    """
    for name, function in namespace.items():
        require_function(name, function)
    by_value = {id(f) for f in namespace.values() if isinstance(f, types.FunctionType)}
    try:
        return _encode_pickle(dict(namespace), by_value, with_sources=for_engine)
    except _DoesNotFit as error:
        names = ", ".join(namespace)
        raise SerializationError(f"the functions {names} cannot be pickled: {error}") from error.__cause__


def _cannot_pickle(obj: object, reason: str, *, with_sources: bool) -> SerializationError:
    """Return the error that says so, and what in `obj` is to blame."""
    from enginery import _culprit  # only errors need it

    def fails(part: object) -> bool:
        nonlocal reason
        try:
            _encode_pickle(part, with_sources=with_sources)
        except _DoesNotFit as error:
            reason = str(error)
            return True
        return False

    steps, part = _culprit.find(obj, fails)
    blamed = f"its {', its '.join(steps)} is {_name(part)}: " if steps else ""
    return SerializationError(f"{_name(obj)} cannot be pickled: {blamed}{reason}")


def require_function(name: str, function: object) -> None:
    """Raise TypeError unless `function` is one."""
    if not isinstance(function, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        raise TypeError(f"{name!r} must be a function, not {_name(function)}")


def decode(value: Encoded) -> object:
    """Return the object of `value`; arrays are writable: parts that are not are copied.

    SerializationError if the bytes are corrupt or need what is not here; PythonVersionMismatch if another minor
    version of Python pickled them and that matters.
    """
    return _decode(value, None)


def decode_bound(value: Encoded, namespace: dict[str, object]) -> tuple[object, dict[str, object]]:
    """As `decode`, but functions pickled by value from a `__main__` get `namespace` as their globals.

    Returns the object and the globals that those functions had captured, which are not put into `namespace`.
    """
    captured: dict[str, object] = {}
    lent: list[str] = []
    seeded = namespace.get("__builtins__", builtins)  # cloudpickle puts a dictionary in its place
    try:
        obj = _decode(value, lambda data, buffers: _BindingUnpickler(data, buffers, namespace, captured, lent))
    finally:
        for name in lent:
            namespace.pop(name, None)
        namespace["__builtins__"] = seeded
    return obj, captured


def decode_functions(value: Encoded, namespace: dict[str, object]) -> dict[str, Callable[..., object]]:
    """Return pulled functions; those that use no globals which the engine had get `namespace` as theirs."""
    functions = decode(value)
    if not isinstance(functions, dict):
        raise SerializationError(f"expected a dictionary of functions, not {_name(functions)}")
    for name, function in functions.items():
        if not isinstance(function, types.FunctionType):
            continue
        if _names(function.__code__).isdisjoint(
            captured_globals(function)
        ):  # pulled together, they share globals
            functions[name] = rebind(function, namespace)
    return functions


def captured_globals(function: types.FunctionType) -> dict[str, object]:
    """Return the globals of an unpickled function but for those that every module has."""
    return {
        name: value
        for name, value in function.__globals__.items()
        if name not in ("__builtins__", "__name__", "__package__", "__path__", "__file__")
    }


def _names(code: types.CodeType) -> set[str]:
    """Return every global name that `code` or a function within it may read."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def rebind(function: types.FunctionType, namespace: dict[str, object]) -> types.FunctionType:
    """Return a copy of `function` whose globals are `namespace`; all else of it survives."""
    made = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__ = function.__annotations__
    made.__doc__ = function.__doc__
    made.__qualname__ = function.__qualname__
    made.__module__ = function.__module__
    made.__dict__.update(function.__dict__)
    return made


def _name(obj: object) -> str:
    kind = type(obj)
    try:
        module = type.__dict__["__module__"].__get__(kind)  # not what a metaclass makes of it
    except AttributeError:  # made where `__name__` was deleted
        module = ""
    where = f"{module}." if type(module) is str and module not in ("", "builtins") else ""
    return f"an object of type {where}{type.__dict__['__qualname__'].__get__(kind)}"


def _encode_pickle(
    obj: object, by_value: Collection[int] = frozenset(), *, with_sources: bool = False
) -> Encoded:
    if type(obj) in _PLAIN:
        return Encoded(Codec.PICKLE, (pickle.dumps(obj, 5),), PYTHON_VERSION)
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if raw.nbytes < _OUT_OF_BAND or len(buffers) == _MAX_BUFFERS:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    try:
        Pickler(file, keep_in_band, by_value, with_sources=with_sources).dump(obj)
    except (Exception, SystemExit) as error:  # whatever __reduce__ raises
        raise _DoesNotFit(_shorten(error)) from error
    if buffers:
        file.write(bytes(-file.tell() % _ALIGNMENT))  # a reader stops at the pickle's own end
    return Encoded(Codec.PICKLE, (file.getvalue(), *buffers), PYTHON_VERSION)


def _shorten(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be had"
    return f"{type(error).__name__}: {text[:500]}"


def _encode_json(obj: object) -> Encoded:
    _check_json(obj, _MAX_NESTING, _MAX_JSON)
    try:
        text = _to_json(obj).encode()
    except UnicodeEncodeError as error:
        raise _DoesNotFit("text with lone surrogates") from error
    return Encoded(Codec.JSON, (text,))


def _check_json(obj: object, depth: int, room: int) -> int:
    """Return what is left of `room`; types must be exact, so that JSON gives back what went in."""
    kind = type(obj)
    room -= 1
    if kind is str:
        room -= len(obj)  # type: ignore[arg-type]
    elif obj is None or kind is bool:
        pass
    elif kind is int:
        if not -_MAX_EXACT <= obj <= _MAX_EXACT:  # type: ignore[operator]
            raise _DoesNotFit("an integer beyond 2^53, which readers of JSON would round")
    elif kind is float:
        if not math.isfinite(obj):  # type: ignore[arg-type]
            raise _DoesNotFit(f"JSON has no {obj}")
    elif kind is list or kind is dict:
        depth -= _DICT_NESTING if kind is dict else _LIST_NESTING
        if depth < 0:
            raise _DoesNotFit(f"nested deeper than {_MAX_NESTING // _DICT_NESTING} dictionaries")
        if kind is dict:
            for key in obj:  # type: ignore[attr-defined]
                if type(key) is not str:
                    raise _DoesNotFit(f"a dictionary key is {_name(key)}")
                room -= len(key)
            obj = obj.values()  # type: ignore[attr-defined]
        for item in obj:  # type: ignore[attr-defined]
            room = _check_json(item, depth, room)
    else:
        raise _DoesNotFit(f"{_name(obj)} has no JSON form")
    if room < 0:
        raise _DoesNotFit(f"more than {_MAX_JSON} items and characters")
    return room


def _encode_text(obj: object) -> Encoded:
    if type(obj) is not str:
        raise _DoesNotFit("only str fits")
    try:
        return Encoded(Codec.TEXT, (obj.encode(),))
    except UnicodeEncodeError as error:
        raise _DoesNotFit("text with lone surrogates") from error


def _encode_ndarray(obj: object) -> Encoded:
    numpy = sys.modules.get("numpy")
    if numpy is None or type(obj) is not numpy.ndarray:
        raise _DoesNotFit("only numpy arrays fit")
    array: npt.NDArray[np.generic] = cast("npt.NDArray[np.generic]", obj)
    if array.dtype.kind not in _ARRAY_KINDS or array.dtype.hasobject:
        raise _DoesNotFit(f"dtype {array.dtype} has no plain form")
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    part: Buffer = b""
    if array.nbytes:
        flat = (array.T if fortran else numpy.ascontiguousarray(array)).reshape(-1)
        part = flat.view(numpy.uint8).data
    return Encoded(Codec.NDARRAY, (part,), dtype=array.dtype.str, shape=array.shape, fortran_order=fortran)


_ENCODERS: dict[Codec, Callable[[object], Encoded]] = {
    Codec.PICKLE: _encode_pickle,
    Codec.JSON: _encode_json,
    Codec.TEXT: _encode_text,
    Codec.NDARRAY: _encode_ndarray,
}


class _CarefulUnpickler(pickle.Unpickler):
    """Refuses functions of another minor version, whose code could crash the interpreter."""

    def __init__(self, data: Buffer, buffers: list[Buffer], version: str) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._version = version

    def find_class(self, module: str, name: str) -> object:
        if module == _cloudpickle.__name__ and name == "_make_function":
            return self._refuse  # before any of its code could run
        if module == _cloudpickle.__name__ and name == "_builtin_type":
            return _code_or_type
        return super().find_class(module, name)

    def _refuse(self, code: object, *_: object) -> NoReturn:
        what = repr(code) if isinstance(code, _ForeignCode) else "a function"
        raise PythonVersionMismatch(_mismatch(self._version, f"it holds {what}, whose code differs"))


class _ForeignCode:
    """Stands for code of another version of Python, which is never made."""

    def __init__(self, *parts: object) -> None:
        self._names = [part for part in parts if type(part) is str]

    def __repr__(self) -> str:
        return f"the function {self._names[1]!r}" if len(self._names) > 1 else "a function"


def _code_or_type(name: str) -> object:
    return _ForeignCode if name == "CodeType" else _cloudpickle._builtin_type(name)


class _BindingUnpickler(pickle.Unpickler):
    """Makes functions of a `__main__` with other globals; see `decode_bound`."""

    def __init__(
        self,
        data: Buffer,
        buffers: list[Buffer],
        namespace: dict[str, object],
        captured: dict[str, object],
        lent: list[str],
    ) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._namespace = namespace
        self._captured = captured
        self._lent = lent

    def find_class(self, module: str, name: str) -> object:
        if module == _cloudpickle.__name__:
            if name == "_make_function":
                return self._make_function
            if name == "_function_setstate":
                return self._set_state
        return super().find_class(module, name)

    def _make_function(
        self, code: types.CodeType, base: dict[str, object], name: object, defaults: object, closure: object
    ) -> types.FunctionType:
        where = self._namespace if base.get("__name__") == "__main__" else base
        made: types.FunctionType = _cloudpickle._make_function(code, where, name, defaults, closure)
        return made

    def _set_state(
        self, function: types.FunctionType, state: tuple[object, dict[str, dict[str, object]]]
    ) -> None:
        if function.__globals__ is self._namespace:
            captured = state[1]["__globals__"]
            self._captured.update(captured)
            for name in captured.keys() - self._namespace.keys():  # making a class may call a function
                self._namespace[name] = captured[name]
                self._lent.append(name)
            state[1]["__globals__"] = {}
        _cloudpickle._function_setstate(function, state)


def _decode(value: Encoded, open_pickle: Callable[[Buffer, list[Buffer]], pickle.Unpickler] | None) -> object:
    if value.codec is Codec.PICKLE:
        return _decode_pickle(value, open_pickle)
    if len(value.parts) != 1:
        raise SerializationError(f"a value of codec {value.codec.name} has one part, not {len(value.parts)}")
    part = value.parts[0]
    if value.codec is Codec.NDARRAY:
        return _decode_ndarray(value, part)
    try:
        text = str(part, "utf-8")
        return json.loads(text) if value.codec is Codec.JSON else text
    except (ValueError, RecursionError) as error:
        raise SerializationError(f"not a {value.codec.name} value: {_shorten(error)}") from error


def _decode_pickle(
    value: Encoded, open_pickle: Callable[[Buffer, list[Buffer]], pickle.Unpickler] | None
) -> object:
    foreign = value.python_version != PYTHON_VERSION and _minor(value.python_version) not in (
        "",
        _minor(PYTHON_VERSION),
    )
    data, *rest = value.parts or (b"",)
    try:
        buffers: list[Buffer] = [part if _is_writable(part) else bytearray(part) for part in rest]
        if foreign:
            return _CarefulUnpickler(data, buffers, value.python_version).load()
        if open_pickle is None:
            return pickle.loads(data, buffers=buffers)  # noqa: S301  # see the module's docstring
        return open_pickle(data, buffers).load()
    except PythonVersionMismatch:
        raise
    except Unresolved as error:  # a reference to what the engine does not have
        raise error.cause from None
    except (Exception, SystemExit) as error:  # corrupt bytes make pickle raise anything; none ends the reader
        if foreign:
            raise PythonVersionMismatch(_mismatch(value.python_version, _shorten(error))) from error
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = "; install it there, or send it by client.upload_module() if it is yours"
        raise SerializationError(f"cannot be unpickled: {_shorten(error)}{hint}") from error


def _mismatch(version: str, cause: str) -> str:
    here = _minor(PYTHON_VERSION)
    return (
        f"pickled by Python {version}, read by {here}: {cause}; run the same minor version on both sides, or "
        "send source: execute(), upload_module(), or a function of a module in place of one of __main__"
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _is_writable(part: Buffer) -> bool:
    return isinstance(part, bytearray) or (isinstance(part, memoryview) and not part.readonly)


def _decode_ndarray(value: Encoded, part: Buffer) -> object:
    try:
        import numpy as np
    except ImportError as error:
        raise SerializationError("an array needs numpy, which is not installed here") from error
    try:
        dtype = np.dtype(value.dtype)
        if dtype.kind not in _ARRAY_KINDS:
            raise ValueError(f"dtype {value.dtype} is not allowed")
        order: str = "F" if value.fortran_order else "C"
        if any(length < 0 for length in value.shape) or math.prod(value.shape) * dtype.itemsize != value.size:
            raise ValueError(f"{value.size} bytes are not {value.shape} elements of {value.dtype}")
        if not value.size:
            return np.empty(value.shape, dtype, order)  # type: ignore[call-overload]
        data = part if _is_writable(part) else bytearray(part)
        return np.frombuffer(data, dtype).reshape(value.shape, order=order)  # type: ignore[call-overload]
    except (ValueError, TypeError, SyntaxError, MemoryError) as error:
        raise SerializationError(f"not an array: {_shorten(error)}") from error
