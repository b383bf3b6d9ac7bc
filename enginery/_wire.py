"""Protobuf by hand, where a message is made of what is serialized already."""

from __future__ import annotations

VARINT = 0
LENGTH_DELIMITED = 2
FIXED64 = 1


def tag(field: int, wire_type: int = LENGTH_DELIMITED) -> bytes:
    """Return what goes before a field."""
    return varint(field << 3 | wire_type)


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


def embed(tag: bytes, data: bytes) -> bytes:
    """Return the field of `tag` with `data` as its content."""
    return b"".join((tag, varint(len(data)), data))
