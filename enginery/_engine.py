"""What an engine is to whoever calls it: bytes in, bytes out, on either side of the wire.

The host's own engine and the controller's reference to a remote one both satisfy `EngineBase`; that symmetry is
IPython.kernel's `IEngineBase`, and one suite of behaviour runs over both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from enginery.v1.frame_pb2 import CallOptions

DEFAULT_INLINE_LIMIT = 1 << 20
"""Bytes up to which a value rides in the reply, if the caller said nothing."""
MAX_INLINE_LIMIT = 3 << 20
"""Bytes up to which a caller may ask values to ride in the reply; keeps messages below 4 MiB."""
MAX_CHUNK = 1 << 20
"""Largest chunk of a blob, in bytes."""
DEFAULT_VALUE_LIMIT = 4 << 30
"""Largest value that may be uploaded or returned, in bytes, unless set otherwise."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """Who calls and how: the operation (16 bytes), the session (8 bytes, or empty for none) and options."""

    operation_id: bytes
    session_id: bytes = b""
    keep_queue: bool = False
    inline_limit: int = DEFAULT_INLINE_LIMIT


@dataclass(frozen=True, slots=True)
class CallReply:
    """A delivered answer: the contract's `Outcome`, and the serialized response."""

    outcome: int
    response: bytes


class EngineBase(Protocol):
    """An engine that can be called."""

    @property
    def engine_id(self) -> int:
        """Its id; -1 while it is not registered."""

    async def call(self, method: int, request: bytes, context: CallContext) -> CallReply:
        """Call a unary `Method` with a serialized request; DeliveryError if it could not be delivered."""


def context_options(context: CallContext) -> CallOptions | None:
    """Return the options of `context` as a frame carries them, None if all are defaults."""
    if not context.keep_queue and context.inline_limit == DEFAULT_INLINE_LIMIT:
        return None
    return CallOptions(keep_queue=context.keep_queue, inline_limit=context.inline_limit)
