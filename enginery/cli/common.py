"""What several commands share: finding the cluster that is meant, options, and output."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from enginery._state_dir import VARIABLE, StateDirectory, default_path, runtime_directory
from enginery.errors import ControllerNotRunning, SeveralClusters

if TYPE_CHECKING:
    from collections.abc import Iterator

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

StateDir = Annotated[
    Path | None,
    typer.Option(
        envvar=VARIABLE, show_default=False, metavar="DIR",
        help="State directory of the cluster, or a folder with the client.json of a cluster elsewhere. "
        "Default: the one that runs here, else a per-user runtime directory.",
    ),
]  # fmt: skip


def find_cluster(named: Path | None) -> StateDirectory:
    """Return the state directory of the running cluster that is meant.

    That is the named one, which may be remote, else the only one that runs here. Raises ControllerNotRunning or
    SeveralClusters.
    """
    if named is not None:
        state = StateDirectory(named)
        if not state.is_running() and not state.is_remote:
            raise ControllerNotRunning(f"no controller runs in {state.path}: start one by `enginery up`")
        return state
    running = StateDirectory.discover()
    if not running:
        raise ControllerNotRunning("no cluster runs here: start one by `enginery up`")
    if len(running) > 1:
        raise SeveralClusters(_several(running))
    return running[0]


def find_own_cluster(named: Path | None) -> StateDirectory:
    """Return the state directory that `enginery down` means, running or not.

    Clusters that a Python process started for itself do not count: they end with it. Raises SeveralClusters.
    """
    if named is not None:
        return StateDirectory(named)
    own = [state for state in StateDirectory.discover() if not _is_temporary(state)]
    if len(own) > 1:
        raise SeveralClusters(_several(own))
    return own[0] if own else StateDirectory(default_path())


def _is_temporary(state: StateDirectory) -> bool:
    return state.path.parent == runtime_directory() and state.path.name.startswith("temporary-")


def _several(states: list[StateDirectory]) -> str:
    paths = "".join(f"\n  --state-dir {state.path}" for state in states)
    return f"several clusters run here; say which by one of{paths}"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore signals while things are put away; what is put away has deadlines of its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminated(BaseException):
    """SIGTERM or SIGHUP came; `number` is which."""

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        self.number = number


class Interrupted(KeyboardInterrupt):
    """SIGINT came.

    A class of our own: one plain KeyboardInterrupt that passes through an `eval` of text, of which imports are
    full, makes CPython end the process by SIGINT even if it was caught, and the exit code would be lost.
    """


def interrupt(_number: int, _frame: object) -> NoReturn:
    """Handle SIGINT."""
    raise Interrupted


def plural(count: int, noun: str) -> str:
    """Return `1 engine`, `2 engines`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
