"""enginery doctor on a cluster that runs, on one of which a part is stopped, and on one that does not run."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import psutil

from enginery._state_dir import StateDirectory
from tests.cli.conftest import eventually

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


def test_all_is_well_and_then_it_is_not(shell: Shell) -> None:
    """Exit code 0 while the cluster runs; 1, the fault and the command that mends it else."""
    shell.run("up", "-n", "1")
    assert "all is well" in shell.run("doctor").stdout
    state = StateDirectory(shell.runtime / "enginery" / "default")
    host = next(psutil.Process(pid) for pid, kind in state.processes().items() if kind == "host")
    host.send_signal(signal.SIGSTOP)
    eventually(lambda: host.status() == psutil.STATUS_STOPPED, host.status)
    said = shell.run("doctor", code=1).stdout
    assert f"the host, pid {host.pid}, is stopped" in said
    subprocess.run(["bash", "-c", said.partition("mend it by:")[2].splitlines()[0]], check=True, timeout=10)
    assert "all is well" in shell.run("doctor").stdout
    shell.run("down", "--keep")
    said = shell.run("doctor", code=1).stdout
    assert "none runs in" in said
    assert "enginery up --state-dir" in said
