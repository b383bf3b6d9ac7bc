"""enginery logs."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated

import typer

from enginery.cli.common import StateDir, find_own_cluster
from enginery.errors import EngineryError

_BEGIN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
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
    directory = find_own_cluster(state_dir).logs
    if not directory.is_dir():
        raise EngineryError(f"nothing was logged in {directory}: no cluster has run there")
    wanted = None if engine is None else re.compile(rf"\bengine {engine}\b")
    readers: dict[Path, _Reader] = {}
    found = _new(directory, readers)
    found = [entry for entry in found if wanted is None or wanted.search(entry)]
    _show(found if lines is None else found[len(found) - min(lines, len(found)) :])
    while follow:
        time.sleep(_POLL)
        _show([entry for entry in _new(directory, readers) if wanted is None or wanted.search(entry)])
        if not directory.is_dir():
            return  # the cluster is down


def _show(entries: list[str]) -> None:
    for entry in entries:
        print(entry)
    sys.stdout.flush()


def _new(directory: Path, readers: dict[Path, _Reader]) -> list[str]:
    """Return the entries that were added since the last time, of all files, by time."""
    for path in sorted([*directory.glob("*.log.1"), *directory.glob("*.log")]):
        if path not in readers and (path.suffix == ".log" or not readers):
            readers[path] = _Reader(path)
    entries = [entry for reader in readers.values() for entry in reader.read()]
    return sorted(entries, key=lambda entry: entry[:23])


class _Reader:
    """Reads one growing file; an entry is a line with a time and what follows it, such as a traceback."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> list[str]:
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
        entries: list[str] = []
        for line in whole.decode(errors="replace").splitlines():
            if _BEGIN.match(line) or not entries:
                entries.append(line)
            else:
                entries[-1] += "\n" + line
        return entries
