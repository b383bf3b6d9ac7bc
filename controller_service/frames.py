"""Frames as bytes: a message that is relayed is framed by hand, so that nothing is parsed or copied twice.

Serialized protobuf messages that are concatenated parse as one merged message. So whatever waits for a stream
is kept as *fragments*, each a serialized message with some of its fields, and a batch is their concatenation.
"""

from __future__ import annotations

from enginery.v1 import cluster_pb2, engine_pb2

_LENGTH_DELIMITED = 2


def varint(number: int) -> bytes:
    """Return `number` as protobuf writes it."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _tag(field: int) -> bytes:
    return varint(field << 3 | _LENGTH_DELIMITED)


CALL = _tag(engine_pb2.ControllerMessage.CALLS_FIELD_NUMBER)
REPLY = _tag(cluster_pb2.SessionResponse.REPLIES_FIELD_NUMBER)
TO_HOST = _tag(engine_pb2.TransferResponse.MESSAGE_FIELD_NUMBER)
_FROM_HOST = _tag(engine_pb2.TransferRequest.MESSAGE_FIELD_NUMBER)


def embed(tag: bytes, data: bytes) -> bytes:
    """Return the field of `tag` with `data` as its content."""
    return b"".join((tag, varint(len(data)), data))


def transferred(data: bytes) -> bytes | None:
    """Return the `message` of a serialized TransferRequest that holds nothing else, None if it is another."""
    if data[:1] != _FROM_HOST:
        return None
    length = shift = 0
    for position in range(1, min(len(data), 6)):
        length |= (data[position] & 0x7F) << shift
        shift += 7
        if data[position] < 0x80:
            return data[position + 1 :] if length == len(data) - position - 1 else None
    return None
