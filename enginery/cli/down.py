"""enginery down."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import psutil
import typer

from enginery._launch import STOP_GRACE
from enginery.cli.common import StateDir, find_own_cluster, out, undisturbed
from enginery.errors import EngineryError

if TYPE_CHECKING:
    from enginery._state_dir import StateDirectory


def down(
    state_dir: StateDir = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep port, credentials and logs for the next start.")
    ] = False,
) -> None:
    """Stop the cluster: all engines, wherever they run, and the controller. Leaves no process and no file."""
    state = find_own_cluster(state_dir)
    if not state.path.is_dir():
        out.print(f"no cluster in {state.path}")
        return
    with undisturbed():
        stopped = _stop(state)
        if not keep:
            state.remove()
    processes = "1 process" if stopped == 1 else f"{stopped} processes"
    out.print(f"stopped {processes}, {'kept' if keep else 'removed'} {state.path}")


def _stop(state: StateDirectory) -> int:
    """Ask the controller to stop everything, then see to this machine's processes; return how many."""
    pids = set(state.processes())
    controller = state.controller_pid()
    if controller is not None:
        pids.add(controller)
        _shut_down(state)
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    alive = _wait(processes, STOP_GRACE if controller is not None else 0)
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)
        alive = _wait(alive, STOP_GRACE)
    if alive:
        raise EngineryError(f"these processes do not end: {sorted(process.pid for process in alive)}")
    return len(pids)


def _wait(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait until they have ended, return those that have not; one that its parent did not reap yet has."""
    deadline = time.monotonic() + timeout
    while (alive := [process for process in processes if _lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _shut_down(state: StateDirectory) -> None:
    """Send the Shutdown rpc, which reaches engines of other machines too. Signals follow if it fails."""
    from enginery.client import connect

    try:
        with connect(state.client_file, timeout=STOP_GRACE) as client:
            client.shutdown()
    except EngineryError as error:
        out.print(f"the controller does not answer ({error}); stopping its processes by signals")
    deadline = time.monotonic() + STOP_GRACE
    while state.is_running() and time.monotonic() < deadline:
        time.sleep(0.01)
