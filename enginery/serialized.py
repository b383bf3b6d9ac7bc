"""Values that stay encoded: to look at, keep or hand on without decoding them."""

from __future__ import annotations

from enginery import _codec
from enginery._encoded import Codec, Encoded

ACCEPT = (Codec.NDARRAY, Codec.JSON, Codec.PICKLE)
"""Forms of serialized values, best first: arrays as raw buffers, plain data as JSON, anything else pickled."""


class Serialized:
    """One value in the form in which it travels.

    `view.pull_serialized("a")` returns one and `view.push_serialized({"a": value})` sends one, so that a value
    can go from engine to engine without being decoded in between. `load()` decodes it.
    """

    __slots__ = ("_encoded",)

    def __init__(self, encoded: Encoded) -> None:
        """Take an encoded value; `serialize()` makes one from an object."""
        self._encoded = encoded

    @property
    def encoded(self) -> Encoded:
        """The bytes, and what they mean."""
        return self._encoded

    @property
    def codec(self) -> str:
        """Its form: `pickle`, `json`, `text` or `ndarray`."""
        return self._encoded.codec.name.lower()

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._encoded.size

    @property
    def dtype(self) -> str:
        """For an array, the type of its elements in numpy's notation such as `<f8`; otherwise empty."""
        return self._encoded.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """For an array, the length of each dimension."""
        return self._encoded.shape

    def load(self) -> object:
        """Return the object. Arrays are writable. Unpickling runs code; SerializationError if it fails."""
        return _codec.decode(self._encoded)

    def __repr__(self) -> str:
        """Show form and size, and what is known of an array."""
        array = f" {self.dtype}{list(self.shape)}" if self._encoded.codec is Codec.NDARRAY else ""
        return f"<Serialized {self.codec}{array}, {self.size} bytes>"


def serialize(obj: object) -> Serialized:
    """Encode an object: an array as its raw buffer, plain data as JSON, anything else pickled.

    SerializationError, naming the type, if it cannot be pickled.
    """
    return obj if isinstance(obj, Serialized) else Serialized(_codec.encode(obj, ACCEPT))
