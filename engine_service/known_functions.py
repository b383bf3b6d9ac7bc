"""Functions that calls name by digest: a host parses each once, and sends it to each kernel once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from enginery import _values
from enginery._requests import parse
from enginery.v1 import value_pb2

if TYPE_CHECKING:
    from enginery._encoded import Encoded
    from enginery._function_window import Function

MAX_BYTES = 8 << 20
"""Bytes of pickles that are kept parsed, and that a kernel is expected to keep."""


class KnownFunction(NamedTuple):
    """What a call by digest calls: its pickle, and a name for people."""

    digest: bytes
    value: Encoded
    name: str


class KnownFunctions:
    """Those that were called last. Once they are too many all are dropped, and parsed again as they come."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Begin with none."""
        self._max_bytes = max_bytes
        self._known: dict[bytes, KnownFunction] = {}
        self._bytes = 0

    def find(self, function: Function) -> KnownFunction:
        """Return what `function` is; MALFORMED_MESSAGE or BAD_VALUE if it is none."""
        known = self._known.get(function.digest)
        if known is None:
            pickle = parse(value_pb2.Pickle, function.pickle)
            value = _values.from_pickle(pickle, "function")
            known = KnownFunction(function.digest, value, pickle.name)
            if self._bytes + len(function.pickle) > self._max_bytes:
                self._known.clear()
                self._bytes = 0
            self._known[function.digest] = known
            self._bytes += len(function.pickle)
        return known


class SentFunctions:
    """Digests of the functions that a kernel keeps, told by what it was sent."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Begin with none, as a kernel does."""
        self._max_bytes = max_bytes
        self._sent: set[bytes] = set()
        self._bytes = 0

    def __contains__(self, digest: bytes) -> bool:
        """Return whether the kernel has it."""
        return digest in self._sent

    def has_room(self, size: int) -> bool:
        """Return whether one more of `size` bytes may be kept; else the kernel must forget all others."""
        return self._bytes + size <= self._max_bytes

    def add(self, digest: bytes, size: int, *, forgets: bool) -> None:
        """It was sent; `forgets`: in the place of all others."""
        if forgets:
            self._sent.clear()
            self._bytes = 0
        self._sent.add(digest)
        self._bytes += size
