"""What holds whatever comes in: the same for every target."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from enginery import _status
from enginery._reasons import TABLE, DeliveryError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from google.protobuf.message import Message

SLOW = 1.0  # seconds of this process's time for one input
_READ_EVERY = 50  # inputs
_READ_SLACK = 0.5  # seconds that the inputs since then may have taken
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where files are written fast, if there is such a place."""
MAX_STATUS = 6 << 10  # bytes: trailers over 8 KB fail
SECRET = "S3CRET-token-of-the-cluster"
"""Which nothing may show."""


class BrokenRule(AssertionError):
    """An input did what none may."""


class Watch(logging.Handler):
    """Hears of defects that code noticed itself: logged errors with a traceback, and tasks that failed."""

    def __init__(self) -> None:
        """Begin to listen."""
        super().__init__(logging.ERROR)
        self.heard: list[str] = []
        self._tried = 0
        self._used = 0.0
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Note an error that says where it was raised; others are for people, and expected here."""
        if record.exc_info:
            self.heard.append(f"{record.getMessage()}: {record.exc_info[1]!r}")
        elif record.name == "asyncio":
            self.heard.append(record.getMessage())

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen to what nobody awaits on `loop`."""
        loop.set_exception_handler(
            lambda _, context: self.heard.append(f"{context['message']}: {context.get('exception')!r}")
        )

    def check(self) -> None:
        """BrokenRule if something was heard since the last time."""
        if self.heard:
            heard, self.heard = self.heard, []
            raise BrokenRule("a defect: " + "; ".join(heard)[:2_000])

    @contextlib.contextmanager
    def in_time(self) -> Iterator[None]:
        """BrokenRule if what is done within took too much of this process's time, which is read now and then
        only: reading it takes as long as some inputs."""
        if self._tried % _READ_EVERY == 0:
            self._used = time.process_time()
        self._tried += 1
        begun = time.perf_counter()
        yield
        if time.perf_counter() - begun > SLOW and time.process_time() - self._used > SLOW + _READ_SLACK:
            raise BrokenRule(f"it took over {SLOW} s of processor time")

    def stop(self) -> None:
        """Listen no more."""
        logging.getLogger().removeHandler(self)


def check_error(error: BaseException) -> str:
    """Return what a rejection says; BrokenRule unless it is one of the table, small, and shows no secret."""
    if not isinstance(error, DeliveryError):
        raise BrokenRule(f"no status with a reason: {error!r}") from error
    if error.reason not in TABLE or error.reason == "INTERNAL":
        raise BrokenRule(f"a rejection that tells of a defect: {error}") from error
    if "unknown)" in error.text:
        raise BrokenRule(f"a text with holes: {error}")
    size = len(_status.to_bytes(error))
    if size > MAX_STATUS:
        raise BrokenRule(f"a status of {size} bytes: {error.reason}")
    check_secret(error.text, *error.metadata.values())
    return str(error)


def check_secret(*texts: str) -> None:
    """BrokenRule if a text shows the secret."""
    if any(SECRET in text for text in texts):
        raise BrokenRule("a secret is shown")


def check_message(kind: type[Message], data: bytes) -> Any:
    """Return the message in `data`; BrokenRule if it is none, or one that cannot be shown as JSON."""
    try:
        message = kind.FromString(data)
        json_format.MessageToDict(message)
    except Exception as error:
        raise BrokenRule(f"a {kind.DESCRIPTOR.name} that clients cannot read: {error!r}") from error
    return message


def open_files() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/dev/fd").iterdir()))
