"""How much memory a kernel has, and with it all that it started."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 if it has just ended. Takes microseconds on Linux."""
    try:
        return (
            _resident_on_linux(pid) if sys.platform == "linux" else int(psutil.Process(pid).memory_info().rss)
        )
    except (OSError, psutil.Error):
        return 0


def _resident_on_linux(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE


def group_bytes(pid: int, *, above: int = 0) -> int:
    """Return the memory in bytes of a process and its descendants. May take a while: call it in a thread.

    Adds up resident memory; where that is over `above`, memory that several of them share is counted once (on
    Linux), else children that were forked to look at large data would each count all of it.
    """
    pids = [pid, *(child.pid for child in descendants(pid))]
    total = sum(map(resident_bytes, pids))
    if total <= above or len(pids) == 1 or sys.platform != "linux":
        return total
    return sum(map(_proportional_bytes, pids))


def descendants(pid: int) -> list[psutil.Process]:
    """Return all processes that a process has started, and those that they have. May take a while."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:  # it has just ended
        return []


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes, but for those that have ended, whatever has their numbers by now."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _proportional_bytes(pid: int) -> int:
    """Return the memory of a process, of what it shares its share."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.partition("\nPss:")[2].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError):  # it has just ended, or this system does not tell
        return resident_bytes(pid)
