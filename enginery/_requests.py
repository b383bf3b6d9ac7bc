"""What hosts and controller read of requests alike: messages, and the ids that people write into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from enginery import _ids
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)

_SESSION_BYTES = 8


def parse(kind: type[M], data: bytes) -> M:
    """Return the message in `data`; MALFORMED_MESSAGE if it is none."""
    try:
        return kind.FromString(data)
    except Exception as error:  # protobuf's DecodeError differs in class between its implementations
        raise DeliveryError("MALFORMED_MESSAGE", message=kind.DESCRIPTOR.full_name) from error


def read_operation_id(text: str, field: str = "operation_id") -> bytes:
    """Return the operation that a person named; BAD_REQUEST if it is not a UUID."""
    try:
        return _ids.parse(text)
    except ValueError:
        raise DeliveryError("BAD_REQUEST", field=field, cause=f"{text!r} is not a UUID") from None


def read_session_id(text: str, field: str = "session_id") -> bytes:
    """Return the session that a person named, empty for an empty text; BAD_REQUEST if it is none."""
    try:
        session_id = bytes.fromhex(text)
    except ValueError:
        session_id = b"?"
    if session_id and len(session_id) != _SESSION_BYTES:
        cause = f"{text!r} is not {2 * _SESSION_BYTES} hexadecimal digits"
        raise DeliveryError("BAD_REQUEST", field=field, cause=cause)
    return session_id
