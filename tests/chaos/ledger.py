"""What is written down while it happens: clients note what they send and hear, engines what they run.

Every note is one write to a file opened for appending, so a process that is killed loses none and spoils none.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


UNKNOWN = "?"
"""The machine of an engine that has not come back to a new controller yet, and so not said where it is."""
ANY_ENGINE = -1
"""The engine of a task, for which the controller chooses it."""
MAPPED = "mapped"
"""The kind of an item of a map."""
ABANDONED = "abandoned"
"""How an item ended whose client was killed."""
AWAY = "ENGINE_AWAY"
UNSURE = frozenset({"OPERATION_NOT_FOUND", AWAY})
"""Answers to a question for an operation, after which it may still turn up."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One execution, as its engine wrote it down. `time` is the monotonic clock that all processes share."""

    name: str
    nonce: str
    pid: int
    engine_id: int
    file_id: int
    """The engine that it was sent to."""
    time: float


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer, as its client took it: `outcome` is "ok", "raised" or the reason of an error."""

    outcome: str
    nonce: str
    text: str
    time: float


@dataclass(slots=True)
class Sent:
    """A job as its client sent it, and every answer to it."""

    name: str
    operation_id: str
    engine_id: int
    machine: str
    kind: str
    time: float
    heard: list[Heard] = field(default_factory=list)
    attempts: int = 1
    """How often it may run, if it is lost."""
    after: str = ""
    """The job after which it comes."""

    @property
    def is_open(self) -> bool:
        """Whether nothing was heard of it that settles how it ended."""
        return self.answer is None or self.answer.outcome in UNSURE

    @property
    def answer(self) -> Heard | None:
        """The answer that counts: the last, since a restarted client asks again where it heard of nothing."""
        return self.heard[-1] if self.heard else None


class Notes:
    """The file of one client, through all its lives."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it."""
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def sent(
        self,
        name: str,
        operation_id: str,
        engine_id: int,
        machine: str,
        kind: str,
        *,
        attempts: int = 1,
        after: str = "",
    ) -> None:
        """Note a job that was sent."""
        of_task = {"attempts": attempts, "after": after} if engine_id == ANY_ENGINE else {}
        self._write("sent", name=name, id=operation_id, engine=engine_id, machine=machine, kind=kind, **of_task)

    def heard(self, name: str, outcome: str, nonce: str = "", text: str = "") -> None:
        """Note an answer."""
        self._write("heard", name=name, outcome=outcome, nonce=nonce, text=text[:400])

    def again(self, name: str, outcome: str, nonce: str = "") -> None:
        """Note an answer that was asked for once more."""
        self._write("again", name=name, outcome=outcome, nonce=nonce)

    def trouble(self, text: str) -> None:
        """Note something that should not have happened."""
        self._write("trouble", text=text[:2000])

    def _write(self, what: str, **details: object) -> None:
        line = json.dumps({"what": what, "t": time.monotonic(), **details})
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_notes(path: Path) -> tuple[dict[str, Sent], list[str]]:
    """Return the jobs of one client by name, and its troubles."""
    jobs: dict[str, Sent] = {}
    troubles: list[str] = []
    for line in _lines(path):
        note = json.loads(line)
        if note["what"] == "sent":
            name = note["name"]
            jobs[name] = Sent(name, note["id"], note["engine"], note["machine"], note["kind"], note["t"])
            jobs[name].attempts, jobs[name].after = note.get("attempts", 1), note.get("after", "")
        elif note["what"] == "heard":
            jobs[note["name"]].heard.append(Heard(note["outcome"], note["nonce"], note["text"], note["t"]))
        else:
            troubles.append(f"{path.name}: {note['text']}")
    return jobs, troubles


def read_again(path: Path) -> dict[str, Heard]:
    """Return the answers that were asked for once more, by name."""
    notes = [json.loads(line) for line in _lines(path)]
    return {note["name"]: Heard(note["outcome"], note["nonce"], "", note["t"]) for note in notes}


def read_runs(folder: Path) -> list[Ran]:
    """Return every execution on every engine, in the order of each engine's file."""
    runs = []
    for path in sorted(folder.glob("engine-*")):
        file_id = int(path.name.removeprefix("engine-"))
        for line in _lines(path):
            name, nonce, pid, engine_id, at = line.split()
            runs.append(Ran(name, nonce, int(pid), int(engine_id), file_id, float(at)))
    return runs


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open() as file:
            yield from file
