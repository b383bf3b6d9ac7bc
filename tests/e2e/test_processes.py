"""Real processes: how they end, and what they say when they cannot start."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import enginery
from enginery import operation as operations
from tests.e2e.services import PATIENCE, children, controller, host, started, until

if TYPE_CHECKING:
    import subprocess

SCRIPT = Path(sys.executable).with_name("enginery")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state directory that is not there yet."""
    return tmp_path / "state"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signals_stop_services_cleanly(state: Path, number: signal.Signals) -> None:
    """A signal stops host and controller: exit code 128 + signal, no traceback, no process left."""
    with controller(state) as first, host(state, 2) as second:
        with enginery.connect(state / "client.json") as client:
            client.wait_for_engines(2, timeout=PATIENCE)
            kernels = children(second.pid)
            assert kernels
        for process in (second, first):
            process.send_signal(number)
            output, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 128 + number, output
            assert "Traceback" not in output
        psutil.wait_procs(kernels, timeout=PATIENCE)
        assert not [kernel for kernel in kernels if kernel.is_running()]


def test_engines_may_start_first(state: Path) -> None:
    """A host that starts before its controller waits, reads the file when it comes, and registers."""
    with host(state) as process, controller(state), enginery.connect(state / "client.json") as client:
        client.wait_for_engines(1, timeout=PATIENCE)
        assert client[0].execute("1+1").value == 2
        assert process.poll() is None


def test_a_host_starts_though_it_cannot_be_noted(state: Path) -> None:
    """As on a full disk: only what finds processes without a controller misses it."""
    state.mkdir(mode=0o700)
    (state / "processes").symlink_to("/proc/self/task")  # where nobody can write, not even root
    with host(state) as process:
        assert process.stdout is not None
        heard = [process.stdout.readline() for _ in range(2)]
        assert "is not noted" in heard[0]
        assert "1 engine waits" in heard[1]


def test_a_killed_host_is_noticed_at_once(state: Path) -> None:
    """The end of a host's connection makes its engines away, long before any ping is missed."""
    with controller(state), host(state) as process, enginery.connect(state / "client.json") as client:
        client.wait_for_engines(1, timeout=PATIENCE)
        process.kill()
        until(lambda: client.engines[0].state == "away", "the engine to be away", 5)


@pytest.mark.slow
def test_a_frozen_host_is_noticed(state: Path) -> None:
    """A host that answers no ping is away soon; awake again within the lease it has id and namespace."""
    with controller(state), host(state) as process, enginery.connect(state / "client.json") as client:
        client.wait_for_engines(1, timeout=PATIENCE)
        client[0]["kept"] = 1
        process.send_signal(signal.SIGSTOP)
        try:
            until(
                lambda: client.engines[0].state == "away", "the engine to be away", seconds=30
            )  # 15 on a machine with nothing else to do
        finally:
            process.send_signal(signal.SIGCONT)
        assert client[0]["kept"] == 1
        assert client.ids == [0]


def test_a_host_takes_its_kernels_along(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of a host leaves no kernel behind, not even a busy one; a cancel then waits for nobody."""
    monkeypatch.setattr(operations, "_CANCEL_PATIENCE", 0.2)
    with controller(state), host(state) as process, enginery.connect(state / "client.json") as client:
        client.wait_for_engines(1, timeout=PATIENCE)
        kernels = children(process.pid)
        operation = client[0].execute("while True: pass", block=False)
        until(lambda: client[0].queue_status().pending is not None, "the loop to run")
        process.kill()
        psutil.wait_procs(kernels, timeout=PATIENCE)
        assert not [kernel for kernel in kernels if kernel.is_running()]
        assert operation.cancel()


def test_two_controllers_on_one_state_directory(state: Path) -> None:
    """The second says who has it and what to do, and ends with 1; the first does not notice."""
    with controller(state) as first, started("-m", "controller_service", "--state-dir", str(state)) as second:
        output, _ = second.communicate(timeout=PATIENCE)
        assert second.returncode == 1
        assert str(first.pid) in output
        assert "--state-dir" in output
        assert "Traceback" not in output
        with enginery.connect(state / "client.json") as client:
            assert client.ids == []


def test_two_controllers_on_one_port(state: Path, tmp_path: Path) -> None:
    """A port that is taken is an error that names it, never a silent share."""
    with controller(state):
        port = json.loads((state / "client.json").read_text())["address"].rsplit(":", 1)[1]
        other = str(tmp_path / "other")
        with started("-m", "controller_service", "--state-dir", other, "--port", port) as second:
            output, _ = second.communicate(timeout=PATIENCE)
            assert second.returncode == 1
            assert port in output
            assert "Traceback" not in output


def test_a_remote_exit_is_an_error_not_an_exit() -> None:
    """`sys.exit()` on an engine ends neither the engine nor the caller's script."""
    with enginery.Cluster(1) as cluster:
        view = cluster.client[0]
        view["kept"] = 1
        with pytest.raises(enginery.RemoteError) as caught:
            view.execute("import sys; sys.exit(3)")
        assert caught.value.type_name == "SystemExit"
        assert view["kept"] == 1


def test_run_finds_its_own_cluster(tmp_path: Path) -> None:
    """`enginery run` gives the script a cluster, passes its arguments and exit code on, and leaves nothing."""
    script = tmp_path / "script.py"
    script.write_text(
        "import enginery, sys\n"
        "client = enginery.connect()\n"
        "print(client[:].apply(lambda x: x * 2, int(sys.argv[1])))\n"
        "sys.exit(7)\n"
    )
    with started(str(SCRIPT), "run", str(script), "-n", "2", "--", "21") as process:
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 7, output
        assert "[42, 42]" in output


def test_run_tears_down_on_a_signal(tmp_path: Path) -> None:
    """SIGTERM during `enginery run` stops the script and every process of its cluster."""
    script = tmp_path / "script.py"
    script.write_text(
        "import enginery\n"
        "client = enginery.connect()\n"
        "print('begun', flush=True)\n"
        "client[:].execute('import time; time.sleep(600)')\n"
    )
    with started(str(SCRIPT), "run", str(script), "-n", "1") as process:
        assert process.stdout is not None
        _read_until(process, "begun")
        family = children(process.pid)
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal.SIGTERM
        psutil.wait_procs(family, timeout=PATIENCE)
        assert not [one for one in family if one.is_running()]


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen, deadline = "", time.monotonic() + PATIENCE
    fd = process.stdout.fileno()
    while text not in seen:
        left = deadline - time.monotonic()
        assert left > 0, f"waited for {text!r}, saw: {seen}"
        if select.select([fd], [], [], left)[0]:
            data = os.read(fd, 65536)
            assert data, f"ended without {text!r}: {seen}"
            seen += data.decode(errors="replace")
    return seen


@pytest.mark.slow
def test_the_main_job() -> None:
    """The census of a package runs on a temporary cluster, and what the engines found is what is there."""
    with started(str(SCRIPT), "run", "examples/stdlib_census.py", "-n", "2", "--", "json") as process:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "exactly what the serial run found" in output
        assert "2 engines" in output
