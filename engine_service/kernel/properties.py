"""The engine's properties: a small strict dictionary whose values are copied in and out."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

from enginery._codec import decode, encode
from enginery._encoded import MAX_PROPERTIES, Codec, Encoded
from enginery.errors import InvalidProperty, SerializationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Properties(MutableMapping[str, object]):
    """What `get_engine().properties` is. Values are held as JSON if that is exact, else pickled."""

    __slots__ = ("_changed", "_encoded")

    def __init__(self, initial: Mapping[str, Encoded]) -> None:
        """Begin with properties that were set at start."""
        self._encoded: dict[str, Encoded] = {}
        self._changed = False
        self.replace(dict(initial))

    def take_changes(self) -> dict[str, Encoded] | None:
        """Return every property if any changed since the last time, else None."""
        if not self._changed:
            return None
        self._changed = False
        return dict(self._encoded)

    def snapshot(self) -> dict[str, Encoded]:
        """Return every property, and take them for known."""
        self._changed = False
        return dict(self._encoded)

    def set_encoded(self, values: Mapping[str, Encoded]) -> None:
        """Set properties, all or none; SerializationError if one cannot be decoded."""
        self.replace(self._encoded | {key: _encode(key, decode(value)) for key, value in values.items()})

    def remove(self, keys: Sequence[str]) -> None:
        """Remove properties, all or none; KeyError names what is missing."""
        missing = [key for key in keys if key not in self._encoded]
        if missing:
            raise KeyError(", ".join(missing))
        self.replace({key: value for key, value in self._encoded.items() if key not in keys})

    def replace(self, encoded: dict[str, Encoded]) -> None:
        """Take these for all properties; InvalidProperty if they are too large."""
        size = sum(len(key) + value.size for key, value in encoded.items())
        if size > MAX_PROPERTIES:
            raise InvalidProperty(
                f"properties of {size} bytes are over the limit of {MAX_PROPERTIES}: push them instead"
            )
        self._encoded = encoded
        self._changed = True

    def __getitem__(self, key: str) -> object:
        """Return a copy of a value; KeyError if it is missing."""
        return decode(self._encoded[key])

    def __setitem__(self, key: str, value: object) -> None:
        """Set a copy of `value`; InvalidProperty if it cannot be pickled or `key` is not
        valid Unicode, TypeError if `key` is no text."""
        if not isinstance(key, str):
            raise TypeError(f"a property's key must be text, not {type(key).__qualname__}")
        key = str.__str__(key)
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise InvalidProperty(f"the key {key!r} of a property is not valid Unicode") from error
        self.replace(self._encoded | {key: _encode(key, value)})

    def __delitem__(self, key: str) -> None:
        """Remove a property; KeyError if it is missing."""
        self.remove([key])

    def __iter__(self) -> Iterator[str]:
        """Go over the keys as they are now."""
        return iter(list(self._encoded))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._encoded)

    def __repr__(self) -> str:
        """Show them as a dictionary."""
        return repr(dict(self))


def _encode(key: str, value: object) -> Encoded:
    try:
        encoded = encode(value, (Codec.JSON, Codec.PICKLE))
    except SerializationError as error:
        raise InvalidProperty(f"the value of property {key!r} cannot be pickled: {error}") from error
    # The parts may be the object's own memory.
    return Encoded(encoded.codec, tuple(bytes(part) for part in encoded.parts), encoded.python_version)
