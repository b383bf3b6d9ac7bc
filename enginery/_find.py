"""Which cluster `connect()` means."""

from __future__ import annotations

import os
import time
from pathlib import Path

from enginery._state_dir import VARIABLE, StateDirectory, default_path
from enginery.errors import ControllerNotRunning, FileTimeoutError, SeveralClusters

_START = "start one with `enginery up`, or in Python with `enginery.Cluster()`"
_POLL = 0.05  # seconds between looks for a connection file


def find(connection_file: str | os.PathLike[str] | None, timeout: float) -> Path:
    """Return the path of the client's connection file.

    A named file, or the `client.json` of a named state directory, is waited for: FileTimeoutError if it is not
    there after `timeout` seconds. Without a name it is the state directory of `ENGINERY_STATE_DIR` or, if that
    is not set, that of the one cluster of this user that runs: ControllerNotRunning if none does,
    SeveralClusters if several do.
    """
    if connection_file is not None:
        return _wait(Path(connection_file).expanduser(), timeout)
    if os.environ.get(VARIABLE):
        state = StateDirectory()
        if not state.client_file.exists():
            raise ControllerNotRunning(f"no controller runs in {state.path} (from {VARIABLE}): {_START}")
        return state.client_file
    running = StateDirectory.discover()
    if not running:
        raise ControllerNotRunning(
            f"no cluster of this user is running (looked for {default_path()}): {_START}"
        )
    if len(running) > 1:
        listed = "\n".join(f"  enginery.connect({str(state.client_file)!r})" for state in running)
        raise SeveralClusters(f"{len(running)} clusters are running; say which one:\n{listed}")
    return running[0].client_file


def _wait(path: Path, timeout: float) -> Path:
    if path.is_dir():
        path = path / "client.json"
    deadline = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() >= deadline:
            raise FileTimeoutError(
                f"no connection file {path} after {timeout:g} s: is a controller running? {_START}"
            )
        time.sleep(_POLL)
    return path
