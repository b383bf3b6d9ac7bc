"""Short frames: calls of functions and their values, as most are, with a fixed head in the place of JSON.

What does not fit one goes as an ordinary frame, which holds anything (`kernel_wire`). Bytes from a kernel are
hostile here too. No asyncio, gRPC, protobuf or pickle.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from engine_service.kernel_frames import MAX_SHORT, SHORT_HEADER, SHORT_MAGIC, WireError
from engine_service.kernel_messages import Command, Reply
from enginery._encoded import Codec, Encoded

if TYPE_CHECKING:
    from engine_service.kernel_messages import Transferred

MAX_TIME = 253_402_300_799.0  # the last second of the year 9999: protobuf's bound, as that of durations
MAX_DURATION = 315_576_000_000.0
_CODECS = {int(codec): codec for codec in Codec}  # faster than Codec(number)
_PLAIN = {int(codec): codec for codec in Codec if codec is not Codec.NDARRAY}  # bytes, and a version at most
_ACCEPT: dict[bytes, tuple[Codec, ...]] = {bytes((codec,)): (codec,) for codec in Codec}  # most accept one
_REPLY = struct.Struct("<IIQddBB")
"""The header; serial number, begin, duration, codec, and length of the version. Version and value follow."""
_APPLY = struct.Struct("<IIQqIBBBBI16s")
"""The header; serial number, engine, inline limit, flags, lengths, and the function's digest.

Lengths are those of: the accepted codecs, the versions of function and arguments, the function. All of these
and the arguments follow.
"""
_IS_TASK, _HAS_FUNCTION, _HAS_ARGUMENTS, _FORGETS, _HAS_DIGEST = 1, 2, 4, 8, 16
_NO_DIGEST = bytes(16)
_MAX_BYTE = 255


def write_reply(serial: int, reply: Reply) -> bytes | None:
    """Return the short frame of an answer that is one small value and nothing else, None for any other."""
    if len(reply.values) != 1 or not (
        reply.failure is None
        and reply.text is None
        and reply.value_error is None
        and reply.properties is None
        and not (reply.keys or reply.displays or reply.was_revoked)
    ):
        return None
    value = reply.values.get("value")
    if type(value) is not Encoded or value.codec not in _PLAIN or len(value.parts) != 1:
        return None
    data, version = value.parts[0], value.python_version.encode()
    size = _REPLY.size + len(version) + (data.nbytes if isinstance(data, memoryview) else len(data))
    if size > MAX_SHORT:
        return None
    head = _REPLY.pack(
        SHORT_MAGIC,
        size - SHORT_HEADER.size,
        serial,
        reply.started_at,
        reply.duration,
        value.codec,
        len(version),
    )
    return b"".join((head, version, data))


def read_reply(frame: bytes, serial: int) -> Reply:
    """Return the answer to command `serial`; WireError if it is malformed, or another's."""
    if len(frame) < _REPLY.size:
        raise WireError("a short answer is too short")
    _, _, answered, started_at, duration, codec, version_size = _REPLY.unpack_from(frame)
    if answered != serial or serial <= 0:
        raise WireError("an answer to what was not asked")
    if not (0 <= started_at <= MAX_TIME and 0 <= duration <= MAX_DURATION):
        raise WireError("a number was expected")
    start = _REPLY.size + version_size
    kind = _PLAIN.get(codec)
    if kind is None or start > len(frame):
        raise WireError("a short answer without a value")
    try:
        version = str(frame[_REPLY.size : start], "ascii")
    except UnicodeDecodeError:
        raise WireError("a version that is none") from None
    value = Encoded(kind, (frame[start:],), version)
    return Reply(values={"value": value}, started_at=started_at, duration=duration)


def write_command(serial: int, command: Command) -> bytes | None:
    """Return the short frame of the call of a function with small arguments, None for any other command."""
    if command.method != "apply" or command.function_name:
        return None
    flags = (_IS_TASK if command.is_task else 0) | (_FORGETS if command.forgets else 0)
    if command.digest:
        flags |= _HAS_DIGEST
    function = arguments = version = arguments_version = b""
    for name, value in command.values:
        data = value.parts[0] if type(value) is Encoded and len(value.parts) == 1 else None
        if type(data) is not bytes or value.codec is not Codec.PICKLE:
            return None
        if name == "function":
            flags |= _HAS_FUNCTION
            function, version = data, value.python_version.encode()
        else:
            flags |= _HAS_ARGUMENTS
            arguments, arguments_version = data, value.python_version.encode()
    accept = bytes(command.accept)
    rest = b"".join((accept, version, arguments_version, function, arguments))
    if (
        _APPLY.size + len(rest) > MAX_SHORT
        or max(len(accept), len(version), len(arguments_version)) > _MAX_BYTE
    ):
        return None
    head = _APPLY.pack(
        SHORT_MAGIC,
        _APPLY.size - SHORT_HEADER.size + len(rest),
        serial,
        command.engine_id,
        command.inline_limit,
        flags,
        len(accept),
        len(version),
        len(arguments_version),
        len(function),
        command.digest or _NO_DIGEST,
    )
    return head + rest


def read_command(frame: bytes) -> tuple[int, Command]:
    """Return a serial number and the call. The host is trusted: nothing is checked."""
    _, _, serial, engine_id, inline_limit, flags, *sizes, digest = _APPLY.unpack_from(frame)
    accept_end = _APPLY.size + sizes[0]
    version_end = accept_end + sizes[1]
    start = version_end + sizes[2]
    end = start + sizes[3]
    values: list[tuple[str, Transferred]] = []
    if flags & _HAS_FUNCTION:
        version = str(frame[accept_end:version_end], "utf-8")
        values.append(("function", Encoded(Codec.PICKLE, (frame[start:end],), version)))
    if flags & _HAS_ARGUMENTS:
        version = str(frame[version_end:start], "utf-8")
        values.append(("arguments", Encoded(Codec.PICKLE, (frame[end:],), version)))
    accept = frame[_APPLY.size : accept_end]
    command = Command(
        method="apply",
        operation_id=b"",
        engine_id=engine_id,
        values=tuple(values),
        accept=_ACCEPT.get(accept) or tuple(_CODECS[number] for number in accept),
        inline_limit=inline_limit,
        is_task=bool(flags & _IS_TASK),
        digest=digest if flags & _HAS_DIGEST else b"",
        forgets=bool(flags & _FORGETS),
    )
    return serial, command
