"""enginery down."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Annotated

import psutil
import typer

from enginery import launchers
from enginery._connection_file import read
from enginery._engine import MAX_SECONDS
from enginery.cli.common import StateDir, err, find_own_cluster, interrupt, out, undisturbed
from enginery.errors import EngineryError
from enginery.launchers.launcher import STOP_GRACE

if TYPE_CHECKING:
    from enginery._state_dir import StateDirectory

_AGAIN = 0.2  # seconds between two SIGTERM


def down(
    state_dir: StateDir = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep port, credentials, results and logs for the next start.")
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            min=0, max=MAX_SECONDS, help="What runs has so long to end; Ctrl-C ends it now.", metavar="SECONDS"
        ),
    ] = 5.0,
) -> None:
    """Stop the cluster: all engines, wherever they run, and the controller. Leaves no process and no file.

    With the folder of a client.json that was copied here it stops the processes alone.
    """
    state = find_own_cluster(state_dir)
    if state.is_remote:
        _stop_remote(state, grace)
        return
    if not state.is_used:
        out.print(f"no cluster in {state.path}", markup=False)
        return
    with undisturbed():
        stopped = _stop(state, grace)
        if not keep:
            state.remove()
    processes = "1 process" if stopped == 1 else f"{stopped} processes"
    out.print(f"stopped {processes}, {'kept' if keep else 'removed'} {state.path}", markup=False)


def _stop_remote(state: StateDirectory, grace: float) -> None:
    """Ask a controller of another machine to stop everything. Its files are there, and the one here stays."""
    from enginery.client import connect

    address = read(state.client_file, "client").address
    with connect(state.client_file, timeout=STOP_GRACE) as client:
        client.shutdown(grace=grace)
    out.print(f"the controller at {address} stops, and all of its engines", markup=False)


def _stop(state: StateDirectory, grace: float) -> int:
    """Ask the controller to stop everything, then see to this machine's processes; return how many."""
    pids = set(state.processes())
    controller = state.controller_pid()
    if controller is not None:
        pids.add(controller)
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    if controller is not None:
        _ask(state, processes, grace)
    _stop_elsewhere(state, grace)
    alive = _wait(processes, 0.0)
    # A host lets what runs come to its end at the first SIGTERM; a second one stops it at once.
    patience = _AGAIN if controller is not None else grace
    for act, time_left in (
        (psutil.Process.terminate, patience),
        (psutil.Process.terminate, STOP_GRACE),
        (psutil.Process.kill, STOP_GRACE),
    ):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)
        alive = _wait(alive, time_left)
    if alive:
        raise EngineryError(f"these processes do not end: {sorted(process.pid for process in alive)}")
    return len(pids)


def _stop_elsewhere(state: StateDirectory, grace: float) -> None:
    """Stop what a launcher started on other machines, and would start there again."""
    note = state.launcher()
    if note is None:
        return
    try:
        launchers.noted(note).stop(grace + STOP_GRACE)
    except EngineryError as error:
        out.print(f"engines elsewhere may go on: {error}", markup=False)
    else:
        state.note_launcher(None)


def _ask(state: StateDirectory, processes: list[psutil.Process], grace: float) -> None:
    """Let the controller stop everything; wait until it has, or Ctrl-C says not to wait for what runs."""
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with err.status(f"stopping; what runs has {grace:g} s to end, Ctrl-C ends it now"):
            _shut_down(state, grace)
            _wait(processes, grace + STOP_GRACE)
    except KeyboardInterrupt:
        err.print("not waiting for what runs")
    finally:
        signal.signal(signal.SIGINT, before)


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


def _shut_down(state: StateDirectory, grace: float) -> None:
    """Send the Shutdown rpc, which reaches engines of other machines too. Signals follow if it fails."""
    from enginery.client import connect

    try:
        with connect(state.client_file, timeout=STOP_GRACE) as client:
            client.shutdown(grace=grace)
    except EngineryError as error:
        out.print(f"the controller does not answer ({error}); stopping its processes by signals", markup=False)
