"""Processes that tests started: also those that are nobody's children any more, as what `enginery up` leaves.

A variable in their environment, which every program passes on, names the run of the tests.
"""

from __future__ import annotations

import os

import psutil

_MARK = "ENGINES_OF_TESTS"


def mark(worker: str | None = None) -> str:
    """Mark what this process starts from now on; return the mark. `worker` is one of several of a run."""
    os.environ[_MARK] = f"{os.environ[_MARK]}.{worker}" if worker else str(os.getpid())
    return os.environ[_MARK]


def of_this_process() -> list[psutil.Process]:
    """Return what runs of this process: its children, their children, and what bears exactly its mark."""
    found = set(psutil.Process().children(recursive=True))
    found |= {process for process in psutil.process_iter() if _mark_of(process) == os.environ[_MARK]}
    return [process for process in found if _counts(process)]


def of_the_run(run: str) -> list[psutil.Process]:
    """Return what runs of all the processes of a run."""
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and f"{_mark_of(process)}.".startswith(f"{run}.") and _counts(process)
    ]


def is_alive(pid: int) -> bool:
    """Whether a process is there and runs: one that has ended and awaits its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def describe(process: psutil.Process) -> str:
    """Return its id and command."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid} (gone)"


def _counts(process: psutil.Process) -> bool:
    return is_alive(process.pid) and "resource_tracker" not in describe(process)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(_MARK)
    except (psutil.Error, OSError):
        return None  # somebody else's, or gone
