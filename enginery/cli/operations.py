"""What ops, attach, cancel and exec share: which operation is meant, its states, how its events show."""

from __future__ import annotations

import enum
import re
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from enginery import _ids
from enginery.cli.shown import printable
from enginery.errors import EngineryError, OperationNotFound, remote_of

if TYPE_CHECKING:
    from pathlib import Path

    from enginery.client import Client
    from enginery.operation import Operation
    from enginery.operations import Event


class State(enum.Enum):
    """How an operation stands, as an option takes it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"


COLOURS = {
    "queued": "cyan",
    "running": "yellow",
    "stopping": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "timed": "magenta",
    "lost": "red",
}
EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 3, "timed_out": 4, "lost": 5}
"""How `attach` and `exec` end; 2 is wrong usage, 130 Ctrl-C."""

OperationId = Annotated[
    str,
    typer.Argument(
        help="The operation; its first or last digits are enough if no other has them.",
        show_default=False,
        metavar="ID",
    ),
]

_SHORTENED = re.compile(r"[0-9a-fA-F-]+")
_PROGRESS = 1.0  # seconds between two lines of progress
_CANDIDATES = 10  # that an error lists


def hint(command: str, what: str, state_dir: Path | None) -> str:
    """Return a command line for people to type, which finds the same cluster."""
    where = "" if state_dir is None else f" --state-dir {shlex.quote(str(state_dir))}"
    return f"enginery {command} {what}{where}"


def find(client: Client, text: str) -> Operation[Any]:
    """Return the operation that a person named; OperationNotFound, or EngineryError if several fit."""
    try:
        operation_id = _ids.show(_ids.parse(text))
    except ValueError:
        operation_id = _complete(client, text)
    return client.operation(operation_id)


def _complete(client: Client, text: str) -> str:
    """Return the one id that begins or ends as `text` does."""
    if not _SHORTENED.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is not an operation's id, nor a part of one", param_hint="ID")
    part = text.lower()
    known = [info.operation_id for info in client.operations(limit=_ALL)]
    found = [name for name in known if name.startswith(part) or name.endswith(part)]
    if not found:
        raise OperationNotFound(
            f"no operation that begins or ends with {text}: `enginery ops` lists those there are"
        )
    if len(found) > 1:
        listed = "".join(f"\n  {name}" for name in found[:_CANDIDATES])
        more = f"\n  and {len(found) - _CANDIDATES} more" if len(found) > _CANDIDATES else ""
        raise EngineryError(f"{len(found)} operations begin or end with {text}; say more of it:{listed}{more}")
    return found[0]


_ALL = 1_000_000


class Follower:
    """Prints what one operation does, as it comes: its output as it is, what is said about it to stderr."""

    def __init__(self) -> None:
        """Begin without events."""
        self.last = 0
        """Sequence of the last event that was printed."""
        self._inside: set[TextIO] = set()  # streams whose last line has no end yet
        self._progress_time: float | None = None
        self._progress = ""  # what was reported and not printed yet

    def follow(self, operation: Operation[Any], after: int = 0) -> int:
        """Print events from `after` on until the outcome; return the exit code that says which one it was.

        Errors of the connection are raised; the operation's own is printed.
        """
        self.last = after
        state = ""
        for event in operation.events(after=after):
            if event.kind == "outcome" and self.last == 0:
                self._show_output(operation)
            self._show(event)
            self.last = event.sequence
            state = event.state or state
        self._say_progress()
        self._show_answer(operation, state)
        return EXIT_CODES.get(state, 1)

    def end_lines(self) -> None:
        """End the lines that output left open."""
        for stream in sorted(self._inside, key=lambda stream: stream is sys.stderr):
            print(file=stream, flush=True)
        self._inside.clear()

    def _show_output(self, operation: Operation[Any]) -> None:
        """Print what the answer has of its output: the journal keeps that, and no other events."""
        self._write(sys.stdout, operation.stdout)
        self._write(sys.stderr, operation.stderr)

    def _show(self, event: Event) -> None:
        if event.kind == "stdout":
            self._write(sys.stdout, event.text)
        elif event.kind == "stderr":
            self._write(sys.stderr, event.text)
        elif event.kind == "display":
            self._line(sys.stdout, repr(event.display))
        elif event.kind == "dropped":
            self._line(sys.stderr, f"[... {event.dropped_bytes} bytes of output were dropped ...]")
        elif event.kind == "progress":
            self._take_progress(event)

    def _take_progress(self, event: Event) -> None:
        percent = "" if event.fraction is None else f"{event.fraction:.0%}"
        self._progress = f"[{' '.join(part for part in (percent, printable(event.text)) if part)}]"
        time = event.time.timestamp()
        if self._progress_time is None or time - self._progress_time >= _PROGRESS:
            self._progress_time = time
            self._say_progress()

    def _say_progress(self) -> None:
        if self._progress:
            self._line(sys.stderr, self._progress)
            self._progress = ""

    def _show_answer(self, operation: Operation[Any], state: str) -> None:
        """Print the value of the last expression, or what went wrong. Nothing is unpickled."""
        if state == "succeeded":
            text = operation.result().text if operation.method == "execute" else None
            if text is not None:
                self._line(sys.stdout, text)
        else:
            for line in describe(operation.exception()):
                self._line(sys.stderr, line)
        self.end_lines()

    def _line(self, stream: TextIO, text: str) -> None:
        if stream in self._inside:
            self._inside.discard(stream)
            text = f"\n{text}"
        print(text, file=stream, flush=True)

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()
        if text:
            (self._inside.discard if text.endswith("\n") else self._inside.add)(stream)


def describe(error: Exception | None) -> list[str]:
    """Return what to print of an operation's error: the remote traceback, and what stopped it."""
    if error is None:
        return []
    remote = remote_of(error)
    if remote is None and not isinstance(error, EngineryError):
        raise error  # a defect of ours
    lines = [] if remote is None else [remote.traceback.rstrip("\n")]
    if error is not remote:
        lines.append(f"enginery: {error}")
    return lines
