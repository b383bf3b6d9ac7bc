"""A function as its calls carry it: within each request, or by its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from enginery import _codec, _pickled_functions, _values
from enginery._function_name import name_of
from enginery._function_window import MAX_PICKLE, MIN_PICKLE, Function, digest
from enginery._wire import embed, tag
from enginery.errors import SerializationError
from enginery.v1 import engine_pb2, value_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

_BARE = engine_pb2.ApplyRequest(accept=[value_pb2.CODEC_PICKLE]).SerializeToString()
_PICKLED_FUNCTION = tag(engine_pb2.ApplyRequest.PICKLED_FUNCTION_FIELD_NUMBER)


class Called(NamedTuple):
    """What the requests that call one function begin with."""

    request: bytes
    """A serialized ApplyRequest without arguments."""
    function: Function | None
    """The function, if the request does not hold it: then its calls name it by its digest."""

    @property
    def function_size(self) -> int:
        """Bytes of the function that the request does not hold."""
        return 0 if self.function is None else len(self.function.pickle)

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.request) + self.function_size


def called(function: Callable[..., object] | str) -> Called:
    """Return what calls a function, or what has this name on the engine.

    One that is known to be as it was is not pickled again. SerializationError if it cannot be pickled.
    """
    if isinstance(function, str):
        return Called(_BARE + engine_pb2.ApplyRequest(function_name=function).SerializeToString(), None)
    if not callable(function):
        raise TypeError(f"apply calls a function or the name of one, not {type(function).__name__}")
    known = _pickled_functions.find(function)
    if known is None:
        known = _pickled(function)
        _pickled_functions.remember(function, known)
    return known


def _pickled(function: Callable[..., object]) -> Called:
    try:
        encoded = _codec.encode_for_engine(function)
    except SerializationError as error:
        raise SerializationError(f"the function: {error}") from error.__cause__
    message = _values.to_pickle(encoded)
    message.name = name_of(function)
    pickle = message.SerializeToString()
    if MIN_PICKLE <= len(pickle) <= MAX_PICKLE:
        return Called(_BARE, Function(digest(pickle), pickle))
    return Called(_BARE + embed(_PICKLED_FUNCTION, pickle), None)
