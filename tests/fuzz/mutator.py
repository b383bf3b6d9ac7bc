"""Inputs out of other inputs: bytes, JSON and messages of the contract, spoilt a little at a time.

A corpus begins with inputs that are well formed. Each one whose outcome is new joins it, so that what is made
of it goes further than what is made of the first ones.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

from enginery._wire import varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from google.protobuf.message import Message

MAX_INPUT = 32 << 10
_MAX_CORPUS = 2_000
_NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 4096, 65_535, 65_536, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 53)
_LARGE = (1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TEXTS = ("", "x", "0", "-1", "any", "\ud800", "\0", "\u0663", "é" * 40, "x" * 3_000, "{}", "[" * 200, "null")
_JUNK: tuple[object, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 1 << 31, 1 << 53, 1 << 62, 1 << 70, -(1 << 63), 0.5, -0.5, 1e300),
    *(float("nan"), float("inf"), [], [[]], {}, {"a": 1}, {"\ud800": []}, [0] * 300, *_TEXTS),
)


class Corpus:
    """Inputs that are worth spoiling further."""

    def __init__(self, seeds: Iterable[bytes]) -> None:
        """Begin with `seeds`."""
        self._inputs = list(seeds)
        self._seeds = len(self._inputs)
        self._seen: set[str] = set()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._inputs)

    @property
    def outcomes(self) -> int:
        """How many different outcomes there were."""
        return len(self._seen)

    def choose(self, random: Random) -> bytes:
        """Return one: a first one, one that came lately, or any."""
        match random.randrange(3):
            case 0:
                return self._inputs[random.randrange(self._seeds)]
            case 1:
                return self._inputs[-1 - random.randrange(min(50, len(self._inputs)))]
        return random.choice(self._inputs)

    def learn(self, data: bytes, outcome: str) -> None:
        """Keep an input whose outcome was not seen before; numbers and quoted parts do not make one new."""
        signature = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f-]{8,}|\d+", "#", outcome)[:200]
        if signature not in self._seen and len(self._inputs) < _MAX_CORPUS:
            self._seen.add(signature)
            self._inputs.append(data)


def spoil(random: Random, data: bytes, other: bytes) -> bytes:
    """Return `data` after a few changes that know nothing of what it means; `other` lends pieces."""
    spoilt = bytearray(data)
    for _ in range(1 << random.randrange(4)):
        random.choice(_CHANGES)(random, spoilt, other)
    return bytes(spoilt[:MAX_INPUT])


def _place(random: Random, data: bytearray) -> int:
    return random.randrange(len(data) + 1)


def _span(random: Random, data: bytes | bytearray) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + (1 << random.randrange(10)))


def _flip(random: Random, data: bytearray, _: bytes) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _replace(random: Random, data: bytearray, _: bytes) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _insert(random: Random, data: bytearray, _: bytes) -> None:
    at = _place(random, data)
    data[at:at] = random.randbytes(1 << random.randrange(5))


def _delete(random: Random, data: bytearray, _: bytes) -> None:
    start, end = _span(random, data)
    del data[start:end]


def _cut(random: Random, data: bytearray, _: bytes) -> None:
    del data[_place(random, data) :]


def _repeat(random: Random, data: bytearray, _: bytes) -> None:
    start, end = _span(random, data)
    if len(data) < MAX_INPUT:
        data[end:end] = data[start:end] * random.randrange(1, 4)


def _splice(random: Random, data: bytearray, other: bytes) -> None:
    start, end = _span(random, other)
    at = _place(random, data)
    data[at : at + random.choice((0, end - start))] = other[start:end]


def _number(random: Random, data: bytearray, _: bytes) -> None:
    at, number = _place(random, data), random.choice((*_NUMBERS, *_LARGE))
    number = max(0, number + random.randrange(-1, 2)) % (1 << 64)
    written = random.choice(
        (varint(number), number.to_bytes(8, "little"), (number % (1 << 32)).to_bytes(4, "little"))
    )
    data[at : at + random.choice((0, len(written)))] = written


def _word(random: Random, data: bytearray, _: bytes) -> None:
    at = _place(random, data)
    data[at:at] = random.choice(_TEXTS).encode("utf-8", "surrogatepass")


_CHANGES: tuple[Callable[[Random, bytearray, bytes], None], ...] = (
    *(_flip, _replace, _insert, _delete, _cut, _repeat, _splice, _number, _word),
)


# ---- JSON


def spoil_json(random: Random, document: object) -> Any:
    """Return a JSON document with one part replaced, taken out, repeated, renamed or exchanged."""
    copy = json.loads(json.dumps(document))
    holders = [holder for holder in _holders(copy) if holder]
    if not holders:
        return random.choice(_JUNK)
    holder = random.choice(holders)
    key = random.choice(list(holder)) if isinstance(holder, dict) else random.randrange(len(holder))
    other = random.choice(holders)
    match random.randrange(5):
        case 0:
            del holder[key]
        case 1:
            lent = random.choice(list(other.values() if isinstance(other, dict) else other))
            holder[key] = json.loads(json.dumps(lent))  # a copy, or it might come to hold itself
        case 2 if isinstance(holder, list):
            holder.extend(holder[:16])
        case 2:
            holder[random.choice(_TEXTS)] = holder.pop(key)
        case _:
            holder[key] = random.choice(_JUNK)
    return copy


def _holders(document: object) -> list[Any]:
    found: list[Any] = []
    waiting = [document]
    while waiting and len(found) < 500:
        part = waiting.pop()
        if isinstance(part, dict | list):
            found.append(part)
            waiting.extend(part.values() if isinstance(part, dict) else part)
    return found


# ---- messages of the contract


def spoil_message(random: Random, message: Message, depth: int = 0) -> None:
    """Change one field of `message`, or of a message in it: set, cleared, repeated, or filled with junk."""
    if not message.DESCRIPTOR.fields:
        return
    field: Any = random.choice(message.DESCRIPTOR.fields)
    if random.randrange(6) == 0:
        message.ClearField(field.name)
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _spoil_map(random, message, field, depth)
    elif field.is_repeated:
        _spoil_repeated(random, message, field, depth)
    elif field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        if depth < 12:
            spoil_message(random, part, depth + 1)
    else:
        setattr(message, field.name, scalar(random, field))


def _spoil_map(random: Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    assert field.message_type is not None
    entries = getattr(message, field.name)
    key_field, value_field = (
        field.message_type.fields_by_name["key"],
        field.message_type.fields_by_name["value"],
    )
    keys = list(entries)
    key = random.choice(keys) if keys and random.randrange(2) else scalar(random, key_field)
    if value_field.message_type is None:
        entries[key] = scalar(random, value_field)
    else:
        part = entries[key]
        if depth < 12:
            spoil_message(random, part, depth + 1)


def _spoil_repeated(random: Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    items = getattr(message, field.name)
    choice = random.randrange(4)
    if items and choice == 0:
        del items[random.randrange(len(items)) :]
    elif items and choice == 1:
        items.extend(list(items)[:64])
    elif field.message_type is None:
        items.append(scalar(random, field))
    elif depth < 12:
        spoil_message(
            random, items[random.randrange(len(items))] if items and choice == 2 else items.add(), depth + 1
        )


def scalar(random: Random, field: FieldDescriptor) -> Any:
    """Return a value of a field that is no message, rather an odd one."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return bool(random.randrange(2))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return random.choice((b"", random.randbytes(8), random.randbytes(16), random.randbytes(200)))
        return random.choice(_TEXTS).encode("utf-8", "replace").decode()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.choice((0.0, -1.0, 0.5, 1e300, float("nan"), float("inf")))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return random.randrange(-1, 30)
    low, high = _RANGES[kind]
    return min(high, max(low, random.choice((*_NUMBERS, *_LARGE, -1, -2, low))))


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


# ---- several messages in one input


def pack(records: Iterable[bytes]) -> bytes:
    """Return one input of several messages, each behind its length in two bytes."""
    return b"".join(len(record[:65_535]).to_bytes(2, "little") + record[:65_535] for record in records)


def unpack(data: bytes) -> list[bytes]:
    """Return the messages of an input; the last one may be cut."""
    records = []
    position = 0
    while position + 2 <= len(data):
        end = position + 2 + int.from_bytes(data[position : position + 2], "little")
        records.append(data[position + 2 : end])
        position = end
    return records


def spoil_records(random: Random, data: bytes, other: bytes, kind: type[Message]) -> bytes:
    """Return an input of messages of `kind` with some of them spoilt, dropped, repeated or exchanged."""
    records = unpack(data)
    strange = unpack(other)
    for _ in range(1 << random.randrange(3)):
        at = random.randrange(len(records)) if records else 0
        match random.randrange(8):
            case 0:
                del records[at : at + 1]
            case 1:
                records[at:at] = records[at : at + 1]
            case 2 if strange:
                records.insert(at, random.choice(strange))
            case 3 if records:
                records[at] = spoil(random, records[at], other)
            case _ if records:
                records[at] = spoilt_message(random, kind, records[at])
    return pack(records)[:MAX_INPUT]


def spoilt_message(random: Random, kind: type[Message], data: bytes) -> bytes:
    """Return a serialized message of `kind` with some fields spoilt; a new one if `data` is none."""
    message = kind()
    try:
        message.MergeFromString(data)
    except Exception:  # protobuf's DecodeError differs in class between its implementations
        message.Clear()
    for _ in range(1 << random.randrange(3)):
        spoil_message(random, message)
    return message.SerializeToString()
