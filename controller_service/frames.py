"""Frames as bytes: a message that is relayed is framed by hand, so that nothing is parsed or copied twice.

Serialized protobuf messages that are concatenated parse as one merged message. So whatever waits for a stream
is kept as *fragments*, each a serialized message with some of its fields, and a batch is their concatenation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery._wire import embed, sole_field, tag
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from enginery._function_window import Function

__all__ = ["CALL", "TO_HOST", "embed", "function_fragment", "transferred"]

CALL = tag(engine_pb2.ControllerMessage.CALLS_FIELD_NUMBER)
TO_HOST = tag(engine_pb2.TransferResponse.MESSAGE_FIELD_NUMBER)
_FUNCTION = tag(engine_pb2.ControllerMessage.FUNCTIONS_FIELD_NUMBER)
_DIGEST = tag(frame_pb2.Function.DIGEST_FIELD_NUMBER)
_PICKLE = tag(frame_pb2.Function.PICKLE_FIELD_NUMBER)
_FROM_HOST = tag(engine_pb2.TransferRequest.MESSAGE_FIELD_NUMBER)


def function_fragment(function: Function) -> bytes:
    """Return a serialized ControllerMessage that holds a function."""
    return embed(_FUNCTION, embed(_DIGEST, function.digest) + embed(_PICKLE, function.pickle))


def transferred(data: bytes) -> bytes | None:
    """Return the `message` of a serialized TransferRequest that holds nothing else, None if it is another."""
    message = sole_field(_FROM_HOST, data)
    return None if message is None else bytes(message)
