"""Functions that one stream has carried, on either of its sides: see Function in frame.proto.

Sender and receiver count the same bytes in the same order, so that each knows what the receiver keeps.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from enginery._reasons import DeliveryError
from enginery._wire import embed, tag
from enginery.v1 import engine_pb2, frame_pb2

MAX_FUNCTIONS = 1_024
MAX_BYTES = 16 << 20
"""Bytes of pickles that are kept."""
MAX_PICKLE = 1 << 20
"""Bytes of the largest that goes by digest; others travel in their requests."""
DIGEST_SIZE = 16
MIN_PICKLE = 256
"""Bytes below which a digest spares nothing."""


_PICKLED_FUNCTION = tag(engine_pb2.ApplyRequest.PICKLED_FUNCTION_FIELD_NUMBER)


class Function(NamedTuple):
    """A pickled callable: a serialized Pickle, and its digest. Shared by all calls of it."""

    digest: bytes
    pickle: bytes


def whole_request(request: bytes, function: Function | None) -> bytes:
    """Return the request of an Apply that stands alone: with the function, if its call names one."""
    return request if function is None else request + embed(_PICKLED_FUNCTION, function.pickle)


def digest(pickle: bytes) -> bytes:
    """Return the digest of a serialized Pickle."""
    return hashlib.blake2b(pickle, digest_size=DIGEST_SIZE).digest()


class FunctionWindow:
    """The functions that the receiver of one stream keeps. Both sides have one, and call the same methods."""

    __slots__ = ("_bytes", "_kept")

    def __init__(self) -> None:
        """Begin with none, as a stream does."""
        self._kept: dict[bytes, Function] = {}  # the oldest first
        self._bytes = 0

    def __contains__(self, function: Function) -> bool:
        """Return whether the receiver has it: then the sender need not send it."""
        return function.digest in self._kept

    def add(self, function: Function) -> None:
        """It was sent, or came: then it is the newest, even if it was there."""
        if self._kept.pop(function.digest, None) is None:
            self._bytes += len(function.pickle)
        self._kept[function.digest] = function

    def trim(self) -> None:
        """A message was sent, or handled: drop the oldest that are too many.

        A sender may do so more often, if it does not know where its messages end: what it keeps is no more than
        what the receiver has within a message, and the same behind it.
        """
        while self._bytes > MAX_BYTES or len(self._kept) > MAX_FUNCTIONS:
            self._bytes -= len(self._kept.pop(next(iter(self._kept))).pickle)

    def take_in(self, digest_: bytes, pickle: bytes) -> None:
        """Add what came from a peer; PROTOCOL_ERROR if it is not what it says it is, or too large."""
        if len(pickle) > MAX_PICKLE:
            raise DeliveryError("PROTOCOL_ERROR", cause=f"a function of {len(pickle)} bytes")
        if digest(pickle) != digest_:
            raise DeliveryError("PROTOCOL_ERROR", cause="a function has another digest than it says")
        self.add(Function(digest_, pickle))

    def named_by(self, call: frame_pb2.Call) -> Function | None:
        """Return the function that a call names, None if it names none.

        BAD_REQUEST if it is not kept, or the call is of another method than Apply.
        """
        digest_ = call.function_digest
        if not digest_:
            return None
        if call.method != frame_pb2.METHOD_APPLY:
            raise DeliveryError("BAD_REQUEST", field="function_digest", cause="only calls of Apply have one")
        return self.find(digest_)

    def find(self, digest_: bytes) -> Function:
        """Return the function that a call names; BAD_REQUEST if it is not kept."""
        function = self._kept.get(digest_)
        if function is None:
            cause = "no such function came on this stream, or it was dropped since: send it again"
            raise DeliveryError("BAD_REQUEST", field="function_digest", cause=cause)
        return function
