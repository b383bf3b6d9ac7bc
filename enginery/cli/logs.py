"""enginery logs."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated

import typer

from enginery._connection_file import read
from enginery.cli.common import StateDir, find_own_cluster
from enginery.errors import EngineryError

# How an entry begins, for people (local time) or as JSON (UTC).
_BEGIN = re.compile(r'(?:\{"time": ")?(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[,.]\d+(?:[+-]\d\d:\d\d)?)')
_POLL = 0.2  # seconds between looks at growing files


def logs(
    engine: Annotated[
        int | None,
        typer.Argument(help="Only what concerns this engine.", show_default=False, metavar="ENGINE"),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is logged later.")] = False,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, help="Only the last so many.", show_default="all", metavar="N"),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Show what the controller and the engine hosts of this machine have logged, in the order of time."""
    state = find_own_cluster(state_dir)
    directory = state.logs
    if state.is_remote:
        address = read(state.client_file, "client").address
        raise EngineryError(f"the cluster at {address} has its logs there: run `enginery logs` on that machine")
    if not directory.is_dir():
        raise EngineryError(f"nothing was logged in {directory}: no cluster has run there")
    wanted = re.compile("" if engine is None else rf'\bengine(?:":)? {engine}\b')
    readers: dict[Path, _Reader] = {}
    found = _new(directory, readers, wanted)
    _show(found if lines is None else found[len(found) - min(lines, len(found)) :])
    while follow:
        time.sleep(_POLL)
        _show(_new(directory, readers, wanted))
        if not directory.is_dir():
            return  # the cluster is down


def _show(entries: list[str]) -> None:
    for entry in entries:
        print(entry)
    sys.stdout.flush()


def _new(directory: Path, readers: dict[Path, _Reader], wanted: re.Pattern[str]) -> list[str]:
    """Return the entries that were added since the last time, of all files, by time."""
    for path in sorted([*directory.glob("*.log.1"), *directory.glob("*.log")]):
        if path not in readers and (path.suffix == ".log" or not readers):
            readers[path] = _Reader(path)
    entries = [entry for reader in readers.values() for entry in reader.read()]
    return [entry.text for entry in sorted(entries, key=lambda entry: entry.time) if wanted.search(entry.text)]


@dataclass(slots=True)
class _Entry:
    """A line with a time, in seconds since 1970, and what follows it, such as a traceback."""

    time: float
    text: str


class _Reader:
    """Reads one growing file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._time = 0.0  # of the last entry

    def read(self) -> list[_Entry]:
        try:
            with self._path.open("rb") as file:
                if self._position > file.seek(0, 2):
                    self._position = 0  # it was started anew
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]  # the rest of a line that is being written comes next time
        self._position += len(whole)
        entries: list[_Entry] = []
        for line in whole.decode(errors="replace").splitlines():
            begin = _BEGIN.match(line)
            if begin is not None:
                self._time = _seconds(begin[1])
            if begin is not None or not entries:
                entries.append(_Entry(self._time, line))
            else:
                entries[-1].text += "\n" + line
        return entries


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()  # without a zone it is local time
    except ValueError:  # digits that are no date
        return 0.0
