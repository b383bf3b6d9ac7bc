"""What host and kernel say to each other, as frames. No asyncio, gRPC, protobuf or pickle.

Bytes from a kernel are hostile, since user code runs there: `read_reply` and its like check every field, and
raise `WireError` for whatever does not fit. The host then kills that kernel.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

from engine_service import kernel_short
from engine_service.kernel_frames import MAX_PARTS, Frame, WireError
from engine_service.kernel_messages import (
    Command,
    DisplayData,
    Failure,
    Progress,
    Ready,
    Reply,
    Shown,
    Start,
    Transferred,
)
from enginery._encoded import Codec, Encoded, Stored
from enginery.errors import RaisedError, RemoteFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enginery._encoded import Buffer

T = TypeVar("T")

_CODECS = {int(codec): codec for codec in Codec}  # faster than Codec(number)
_MAX_SIZE = 1 << 62
_MAX_EXACT = 1 << 53
_MAX_DIGITS = 40
_CATEGORIES = frozenset({"USER", "INTERRUPTED", "SERIALIZATION", "RESOURCE", "REJECTED"})


# ---- writing


class _Writer:
    """Gathers the raw parts and files of a frame while its JSON part is built."""

    def __init__(self) -> None:
        self.parts: list[Buffer] = []
        self.fds: list[int] = []

    def value(self, value: Transferred) -> list[object]:
        where: list[int] | int
        if isinstance(value, Stored):
            self.fds.append(value.fd)
            where = list(value.part_sizes)
        else:
            self.parts.extend(value.parts)
            where = len(value.parts)
        described: list[object] = [int(value.codec), where]
        if value.python_version:
            described.append(value.python_version)
        elif value.dtype:
            described += [value.dtype, list(value.shape), value.fortran_order]
        return described

    def values(self, values: Iterable[tuple[str, Transferred]]) -> list[list[object]]:
        return [[name, self.value(value)] for name, value in values]

    def frame(self, meta: dict[str, object]) -> Frame:
        return Frame(meta, self.parts, self.fds)


def write_start(start: Start) -> Frame:
    """Return the frame of `start`."""
    writer = _Writer()
    return writer.frame(
        {
            "kind": "start",
            "engine_id": start.engine_id,
            "host_pid": start.host_pid,
            "value_limit": start.value_limit,
            "shell": start.shell,
            "mpi": start.mpi,
            "exec_lines": start.exec_lines,
            "exec_files": start.exec_files,
            "properties": writer.values(start.properties.items()),
        }
    )


def write_ready(ready: Ready) -> Frame:
    """Return the frame of `ready`."""
    writer = _Writer()
    properties = writer.values(ready.properties.items())
    return writer.frame(
        {
            "kind": "ready",
            "python_version": ready.python_version,
            "properties": properties,
            "rank": ready.rank,
        }
    )


def write_command(serial: int, command: Command) -> Frame | bytes:
    """Return the frame of `command`; its operation id stays here, `serial` stands for it."""
    return kernel_short.write_command(serial, command) or _write_any_command(serial, command)


def _write_any_command(serial: int, command: Command) -> Frame:
    writer = _Writer()
    meta: dict[str, object] = {
        "serial": serial,
        "method": command.method,
        "engine_id": command.engine_id,
        "inline_limit": command.inline_limit,
    }
    if command.number:
        meta["number"] = command.number
    if command.code:
        meta["code"] = command.code
    if command.function_name:
        meta["function_name"] = command.function_name
    if command.keys:
        meta["keys"] = command.keys
    if command.values:
        meta["values"] = writer.values(command.values)
    if command.accept:
        meta["accept"] = command.accept
    if command.is_task:
        meta["is_task"] = True
    if command.digest:
        meta["digest"] = command.digest.hex()
        meta["forgets"] = command.forgets
    return writer.frame(meta)


def write_progress(progress: Progress) -> Frame:
    """Return the frame of `progress`."""
    return Frame({"kind": "progress", "fraction": progress.fraction, "text": progress.text})


def write_shown(shown: Shown) -> Frame:
    """Return the frame of an object that is displayed."""
    writer = _Writer()
    display = _describe_display(shown.display, writer)
    return writer.frame({"kind": "shown", "number": shown.number, "display": display})


def write_reply(serial: int, reply: Reply, acknowledgement: int = 0) -> Frame | bytes:
    """Return the frame of `reply`; output is in the pipes. `acknowledgement` is a number to wait for."""
    if not acknowledgement and (short := kernel_short.write_reply(serial, reply)) is not None:
        return short
    writer = _Writer()
    meta: dict[str, object] = {
        "kind": "reply",
        "serial": serial,
        "started_at": reply.started_at,
        "duration": reply.duration,
    }
    if reply.values:
        meta["values"] = writer.values(reply.values.items())
    if reply.failure:
        meta["failure"] = _describe_failure(reply.failure, writer)
    if reply.text is not None:
        meta["text"] = reply.text
        meta["pretty"] = reply.pretty
    if reply.value_error is not None:
        meta["value_error"] = reply.value_error
    if reply.keys:
        meta["keys"] = reply.keys
    if reply.displays:
        meta["displays"] = [_describe_display(display, writer) for display in reply.displays]
    if reply.properties is not None:
        meta["properties"] = writer.values(reply.properties.items())
    if reply.was_revoked:
        meta["was_revoked"] = True
    if acknowledgement:
        meta["acknowledgement"] = acknowledgement
    return writer.frame(meta)


def _describe_failure(failure: Failure, writer: _Writer) -> dict[str, object]:
    return {
        "errors": [asdict(error) for error in failure.errors],
        "traceback": failure.traceback,
        "category": failure.category,
        "pickled": writer.value(failure.pickled) if failure.pickled else None,
    }


def _describe_display(display: DisplayData, writer: _Writer) -> list[object]:
    data: dict[str, str | None] = {}
    for mime, content in display.data.items():
        if isinstance(content, str):
            data[mime] = content
        else:
            data[mime] = None
            writer.parts.append(content)
    return [data, display.metadata]


# ---- reading


class _Reader:
    """Hands out the raw parts and files of a frame in order, each once."""

    def __init__(self, frame: Frame, *, hostile: bool) -> None:
        self._parts = iter(frame.parts)
        self._fds = iter(frame.fds)
        self._hostile = hostile

    def part(self) -> Buffer:
        part = next(self._parts, None)
        if part is None:
            raise WireError("a frame speaks of more parts than it has")
        return part

    def value(self, described: object) -> Transferred:
        fields = _list(described)
        if len(fields) not in (2, 3, 5):
            raise WireError("a value has neither two, three nor five fields")
        codec, where = _CODECS[_int(fields[0])], fields[1]
        version = _text(fields[2]) if len(fields) == 3 else ""
        dtype = _text(fields[2]) if len(fields) == 5 else ""
        shape = tuple(_int(n) for n in _list(fields[3])) if dtype else ()
        fortran = bool(fields[4]) if dtype else False
        if self._hostile:
            _check_form(codec, len(where) if isinstance(where, list) else _int(where), dtype)
        if isinstance(where, list):
            return self._stored(codec, tuple(_int(size) for size in where), version, dtype, shape, fortran)
        parts = tuple(self.part() for _ in range(_int(where)))
        return Encoded(codec, parts, version, dtype, shape, fortran)

    def _stored(
        self,
        codec: Codec,
        sizes: tuple[int, ...],
        version: str,
        dtype: str,
        shape: tuple[int, ...],
        fortran: bool,
    ) -> Stored:
        fd = next(self._fds, -1)
        if fd < 0:
            raise WireError("a frame speaks of more files than it brings")
        if self._hostile:
            _check_file(fd, sum(sizes))
        return Stored(codec, fd, sizes, version, dtype, shape, fortran)

    def encoded(self, described: object) -> Encoded:
        value = self.value(described)
        if isinstance(value, Stored):
            raise WireError("a file where a value belongs into the frame")
        return value

    def values(self, described: object, read: Callable[[object], T]) -> dict[str, T]:
        pairs = [_list(pair) for pair in _list(described)]
        if any(len(pair) != 2 for pair in pairs):
            raise WireError("a named value is no pair")
        return {_text(pair[0]): read(pair[1]) for pair in pairs}


def _check_form(codec: Codec, part_count: int, dtype: str) -> None:
    """WireError unless a value of that codec can have so many parts, and that dtype."""
    fits = 1 <= part_count <= MAX_PARTS if codec is Codec.PICKLE else part_count == 1
    if not fits or bool(dtype) is not (codec is Codec.NDARRAY):
        raise WireError(f"no form of {codec.name}: {part_count} parts, dtype {dtype[:20]!r}")


def _check_file(fd: int, size: int) -> None:
    """WireError unless it is a file of that size which its maker can no longer change."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        raise WireError(f"a file is no regular one of {size} bytes")
    if sys.platform == "linux":
        wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & wanted != wanted:
            raise WireError("a file is not sealed")


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise WireError(f"a list was expected, not {type(value).__name__}")
    return value


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise WireError(f"an object was expected, not {type(value).__name__}")
    return value


def _int(value: object, low: int = 0, high: int = _MAX_SIZE) -> int:
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"a number from {low} to {high} was expected")
    return value


def _float(value: object, high: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= high:
        raise WireError(f"a number from 0 to {high:g} was expected")
    return float(value)


def _text(value: object) -> str:
    if type(value) is not str:
        raise WireError(f"a text was expected, not {type(value).__name__}")
    if value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()  # lone surrogates fit nowhere beyond


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _guarded(frame: Frame, read: Callable[[], T]) -> T:
    """Run `read`; if the frame is malformed its files are closed, and WireError says so."""
    try:
        return read()
    except WireError:
        frame.close()
        raise
    except (KeyError, ValueError, TypeError, OSError, OverflowError, struct.error) as error:
        frame.close()
        raise WireError(f"malformed: {type(error).__name__}: {error}") from error


def read_start(frame: Frame | bytes) -> Start:
    """Return what the host's first frame says."""
    assert isinstance(frame, Frame)

    def read() -> Start:
        reader, meta = _Reader(frame, hostile=False), frame.meta
        return Start(
            engine_id=_int(meta["engine_id"], -1),
            host_pid=_int(meta["host_pid"]),
            value_limit=_int(meta["value_limit"]),
            shell=_text(meta["shell"]),
            mpi=meta["mpi"] is True,
            exec_lines=_texts(meta["exec_lines"]),
            exec_files=_texts(meta["exec_files"]),
            properties=reader.values(meta["properties"], reader.encoded),
        )

    return _guarded(frame, read)


def read_command(frame: Frame | bytes) -> tuple[int, Command]:
    """Return a serial number and the command that the host's frame holds, its operation id empty.

    The host is trusted and this is on the way of every call: nothing is checked.
    """
    if isinstance(frame, bytes):
        return kernel_short.read_command(frame)
    reader, meta = _Reader(frame, hostile=False), cast("dict[str, Any]", frame.meta)
    command = Command(
        method=meta["method"],
        operation_id=b"",
        engine_id=meta["engine_id"],
        number=meta.get("number", 0),
        code=meta.get("code", ""),
        function_name=meta.get("function_name", ""),
        keys=tuple(meta.get("keys", ())),
        values=tuple((name, reader.value(value)) for name, value in meta.get("values", ())),
        accept=tuple(_CODECS[codec] for codec in meta.get("accept", ())),
        inline_limit=meta["inline_limit"],
        is_task=meta.get("is_task", False),
        digest=bytes.fromhex(meta.get("digest", "")),
        forgets=meta.get("forgets", False),
    )
    return meta["serial"], command


def read_from_kernel(frame: Frame | bytes, serial: int) -> Ready | Progress | Shown | Reply:
    """Return what a kernel's frame says; it may answer command `serial` alone. WireError otherwise."""
    if isinstance(frame, bytes):
        return kernel_short.read_reply(frame, serial)

    def read() -> Ready | Progress | Shown | Reply:
        kind = frame.meta.get("kind")
        if kind == "reply":
            if frame.meta["serial"] != serial:
                raise WireError("an answer to what was not asked")
            return _read_reply(frame)
        if kind == "progress":
            fraction, text = _float(frame.meta["fraction"], 1), _text(frame.meta["text"])
            if len(text) > MAX_PROGRESS_TEXT or frame.fds:
                raise WireError("a progress that is none")
            return Progress(fraction, text)
        if kind == "shown" and not frame.fds:
            display = _read_display(frame.meta["display"], _Reader(frame, hostile=True))
            return Shown(_int(frame.meta["number"]), display)
        if kind == "ready" and serial == 0:
            reader = _Reader(frame, hostile=True)
            properties = reader.values(frame.meta["properties"], reader.encoded)
            return Ready(_text(frame.meta["python_version"]), properties, _int(frame.meta["rank"], -1))
        raise WireError("a frame of no known kind")

    return _guarded(frame, read)


MAX_PROGRESS_TEXT = 1000  # after lone surrogates were written out


def _read_reply(frame: Frame) -> Reply:
    reader, meta = _Reader(frame, hostile=True), frame.meta
    values = reader.values(meta.get("values", []), reader.value)
    if sum(isinstance(value, Stored) for value in values.values()) != len(frame.fds):
        raise WireError("files that belong to no value")
    return Reply(
        values=values,
        failure=_read_failure(meta["failure"], reader) if "failure" in meta else None,
        text=_optional_text(meta.get("text")),
        pretty=_optional_text(meta.get("pretty")),
        value_error=_optional_text(meta.get("value_error")),
        keys=_texts(meta.get("keys", [])),
        displays=[_read_display(display, reader) for display in _list(meta.get("displays", []))],
        started_at=_float(meta["started_at"], kernel_short.MAX_TIME),
        duration=_float(meta["duration"], kernel_short.MAX_DURATION),
        properties=reader.values(meta["properties"], reader.encoded) if "properties" in meta else None,
        was_revoked=bool(meta.get("was_revoked", False)),
        acknowledgement=_int(meta.get("acknowledgement", 0)),
    )


def _read_failure(described: object, reader: _Reader) -> Failure:
    meta = _dict(described)
    errors = tuple(_read_error(error) for error in _list(meta["errors"]))
    count = len(errors)
    links = (
        link for error in errors for link in (error.cause_index, error.context_index, *error.member_indexes)
    )
    if not errors or any(link is not None and link >= count for link in links):
        raise WireError("links between errors lead nowhere")
    category = _text(meta["category"])
    if category not in _CATEGORIES:
        raise WireError(f"no such category of error: {category[:100]}")
    pickled = reader.encoded(meta["pickled"]) if meta["pickled"] is not None else None
    return Failure(errors, _text(meta["traceback"]), category, pickled)


def _read_error(described: object) -> RaisedError:
    meta = _dict(described)

    def link(name: str) -> int | None:
        return None if meta[name] is None else _int(meta[name])

    return RaisedError(
        module=_text(meta["module"]),
        type_name=_text(meta["type_name"]),
        hierarchy=_texts(meta["hierarchy"]),
        message=_text(meta["message"]),
        representation=_text(meta["representation"]),
        notes=_texts(meta["notes"]),
        frames=tuple(_read_frame(line) for line in _list(meta["frames"])),
        frames_omitted=_int(meta["frames_omitted"], 0, 1 << 31),
        cause_index=link("cause_index"),
        context_index=link("context_index"),
        suppress_context=bool(meta["suppress_context"]),
        member_indexes=tuple(_int(index) for index in _list(meta["member_indexes"])),
    )


def _read_frame(described: object) -> RemoteFrame:
    meta = _dict(described)

    def column(name: str) -> int | None:
        return None if meta[name] is None else _int(meta[name], 0, 1 << 31)

    return RemoteFrame(
        file=_text(meta["file"]),
        line=_int(meta["line"], 0, 1 << 31),
        function=_text(meta["function"]),
        source_line=_text(meta["source_line"]),
        end_line=_int(meta["end_line"], 0, 1 << 31),
        column=column("column"),
        end_column=column("end_column"),
    )


def _read_display(described: object, reader: _Reader) -> DisplayData:
    fields = _list(described)
    if len(fields) != 2:
        raise WireError("a display is no pair")
    data: dict[str, str | bytes] = {}
    for mime, content in _dict(fields[0]).items():
        data[_text(mime)] = bytes(reader.part()) if content is None else _text(content)
    return DisplayData(data, _clean(_dict(fields[1])))


def _clean(metadata: dict[str, object]) -> dict[str, object]:
    """Return hints as protobuf's JSON can hold them; WireError if they are nested too deep to be handed on."""

    def clean(value: object, depth: int) -> object:
        if depth == 0:
            raise WireError("hints are nested too deep")
        if isinstance(value, dict):
            return {_text(key): clean(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item, depth - 1) for item in value]
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, int | float) and not -_MAX_EXACT <= value <= _MAX_EXACT:
            return _text(str(value)[:_MAX_DIGITS])
        return value

    return _dict(clean(metadata, 90))
