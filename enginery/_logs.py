"""Logs: one line an event, for people or for programs, on stderr and in a private file of bounded size.

A line says what it is about: an engine, an operation, a client, each where there is one. `about` takes what the
caller has at hand, and the formatters show it, so that one operation's story is found by its id:

    logger.info("began", extra=_logs.about(engine=3, operation=operation_id))

    2026-01-01 12:00:00,000 INFO    host engine 3 operation 01920000-0000-8000-8000-000000000001: began

What a line says of an engine elsewhere is also spelled `engine N`, so that `enginery logs N` finds it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from enginery import _ids

if TYPE_CHECKING:
    from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("human", "json")
MAX_BYTES = 10 << 20
"""Size at which a log file is moved to `NAME.1`, whose older content is dropped."""

_HUMAN = "%(asctime)s %(levelname)-7s {process}%(subject)s: %(message)s"
_SUBJECT = ("engine", "operation", "client")


def about(
    *, engine: int | None = None, operation: bytes | str = b"", client: bytes | str = b""
) -> dict[str, object]:
    """Return what a record is about, for `extra=`: an engine, an operation, and the session that calls.

    Ids are taken as bytes or as text; what is not given, or -1 for an engine without an id, is left out.
    """
    made: dict[str, object] = {}
    if engine is not None and engine >= 0:
        made["engine"] = engine
    if operation:
        made["operation"] = operation
    if client:
        made["client"] = client
    return made


def setup(
    process: str,
    level: str = "info",
    file: Path | None = None,
    format: str = "human",  # noqa: A002 - the option's name
) -> None:
    """Log everything of `level` and above to stderr, and to `file` if given, as one of FORMATS.

    If stderr is that file already, because the starter made it so to catch crashes as well, lines come once.
    """
    formatter = _Json(process) if format == "json" else _Human(_HUMAN.format(process=process))
    handlers: list[logging.Handler] = []
    if file is not None:
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _same_file(fd, 2):
            os.close(fd)
            handlers.append(_BoundedFile(file, 2))
        else:
            handlers += [logging.StreamHandler(sys.stderr), _BoundedFile(file, fd)]
    else:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("grpc").setLevel(logging.INFO)  # at debug it has a line for each call, which says nothing


def _subject(record: logging.LogRecord) -> dict[str, object]:
    """Return what `about` gave to a record, ids as people read them."""
    given = {key: vars(record)[key] for key in _SUBJECT if key in vars(record)}
    return {key: _text(key, value) if isinstance(value, bytes) else value for key, value in given.items()}


def _text(key: str, value: bytes) -> str:
    return _ids.show(value) if key == "operation" else value.hex()


class _Human(logging.Formatter):
    """Shows what others said, such as a host's reason to leave, so that it cannot pose as a line of its own."""

    _CONTROLS: ClassVar = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """Return the line; further lines of the message are indented, control characters escaped."""
        record.subject = "".join(f" {key} {value}" for key, value in _subject(record).items())
        return super().formatMessage(record).translate(self._CONTROLS).replace("\n", "\n    ")


class _Json(logging.Formatter):
    """One JSON object a line: time, level, process, what it is about, message, and a traceback if any."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, in ASCII."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            **_subject(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def claim(directory: Path, process: str) -> tuple[Path, int]:
    """Return a log file of `directory` that no living process writes, and its descriptor, open for appending.

    It is `process-1.log` or the next free number; whoever holds the descriptor holds the file. Close-on-exec.
    """
    number = 1
    while True:
        path = directory / f"{process}-{number}.log"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            number += 1
        else:
            return path, fd


class _BoundedFile(logging.Handler):
    """Appends to a descriptor; at the limit copies the file away and starts it anew."""

    def __init__(self, path: Path, fd: int) -> None:
        super().__init__()
        self._path = path
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self._fd, (self.format(record) + "\n").encode(errors="backslashreplace"))
            if os.fstat(self._fd).st_size > MAX_BYTES:
                self._start_anew()
        except Exception:
            self.handleError(record)

    def _start_anew(self) -> None:
        # Copied and truncated, not renamed: stderr of this process stays this file.
        older = self._path.with_name(f"{self._path.name}.1")
        older.unlink(missing_ok=True)
        fd = os.open(older, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with self._path.open("rb") as source, os.fdopen(fd, "wb") as target:
            shutil.copyfileobj(source, target)
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        if self._fd > 2:
            os.close(self._fd)
            self._fd = -1
        super().close()


def _same_file(first: int, second: int) -> bool:
    try:
        a, b = os.fstat(first), os.fstat(second)
    except OSError:  # stderr may be closed
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
