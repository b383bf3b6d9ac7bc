"""Protobuf by hand, where a message is made of what is serialized already."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginery._encoded import Buffer

VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
FIXED32 = 5
_LONGEST = 10  # bytes of a varint


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


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the number at `position` and where it ends; that is past the end of `data` if it is no number."""
    number = shift = 0
    for here in range(position, min(len(data), position + _LONGEST)):
        number |= (data[here] & 0x7F) << shift
        shift += 7
        if data[here] < 0x80:
            return number, here + 1
    return 0, len(data) + 1


def sole_field(tag: bytes, data: Buffer) -> memoryview | None:
    """Return the content of the field of `tag`, of one byte, if the message in `data` holds nothing else."""
    view = memoryview(data)
    if view[:1] != tag:
        return None
    length, position = read_varint(view, 1)
    return view[position:] if length == len(view) - position else None
