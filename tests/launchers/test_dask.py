"""Engines on an existing Dask cluster, of real processes: they come and go with its workers."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import distributed
import psutil
import pytest

import enginery
from enginery.errors import EngineryError, EngineStopped
from enginery.launchers.dask import DaskLauncher
from tests.cli.conftest import Shell

from .dask_cluster import DaskCluster, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler and two workers, the second one with a nanny."""
    made = DaskCluster(tmp_path_factory.mktemp("dask"))
    made.start()
    try:
        made.add_worker()
        made.add_worker(nanny=True)
        made.wait_for_workers(2)
        yield made
    finally:
        made.stop()


def connected(client: enginery.Client) -> list[enginery.EngineInfo]:
    """Return the engines that are there."""
    return [engine for engine in client.engines if engine.state != "away"]


def test_workers_share_the_engines(dask: DaskCluster) -> None:
    """All n come, spread evenly; each says on which worker it is; at the end no process and no file is left."""
    with enginery.Cluster(n=3, on=f"dask://{dask.address}", properties={"a": 1}) as cluster:
        client = cluster.client
        assert client.ids == [0, 1, 2]
        assert "n=3" in repr(cluster)
        workers = [engine.properties["dask_worker"] for engine in client.engines]
        assert sorted(Counter(workers).values()) == [1, 2]
        assert len(dask.hosts()) == 2
        assert client[0].get_properties() == {"a": 1, "dask_worker": workers[0]}
        eventually(lambda: len(cluster.host_events()) == 2, "no events")
        assert {event.kind for event in cluster.host_events()} == {"started"}
    assert dask.hosts() == []
    assert dask.files() == []
    assert dask.plugins() == []


def test_engines_come_and_go_with_their_workers(dask: DaskCluster) -> None:
    """
    1. A worker is killed: its engine ends at once, and so does what ran and waited there.
    2. Its nanny starts it again, and it has an engine. The other worker's engine has lost nothing.
    3. A worker is added, and has an engine.
    4. A host is killed: how is told. Its worker goes on without.
    """
    with enginery.Cluster(n=2, on=f"dask://{dask.address}") as cluster:
        client = cluster.client
        (worker,) = dask.nannied_workers()
        (host,) = [host for host in dask.hosts() if host.ppid() == worker.pid]
        kernels = {child.pid for child in host.children()}
        (lost,) = [engine.engine_id for engine in client.engines if engine.pid in kernels]
        (kept,) = [engine_id for engine_id in client.ids if engine_id != lost]
        client[kept]["a"] = 1
        runs = client[lost].execute("import time; time.sleep(60)", block=False)
        waits = client[lost].execute("pass", block=False)
        eventually(lambda: client[lost].queue_status().pending is not None, "it does not run")
        worker.kill()
        for operation in (runs, waits):
            with pytest.raises(EngineStopped):
                operation.result(timeout=20)

        eventually(lambda: len(connected(client)) == 2, "the worker that came again has no engine")
        dask.add_worker()
        eventually(lambda: len(connected(client)) == 3, "the worker that was added has no engine")
        assert client[kept]["a"] == 1
        eventually(lambda: len(cluster.host_events()) == 5, "no events")
        kinds = Counter(event.kind for event in cluster.host_events())
        assert kinds == {"started": 4, "lost": 1}

        cluster.signal_engines(signal.SIGKILL)
        eventually(lambda: len(cluster.host_events()) == 8, "no events")
        ended = cluster.host_events()[-1]
        assert (ended.kind, ended.reason) == ("ended", "signal SIGKILL")
        assert "registered" in ended.log
    assert dask.plugins() == []


def test_a_task_of_a_worker_that_is_killed(dask: DaskCluster, tmp_path: Path) -> None:
    """It runs once more elsewhere, and one retry is enough: it is not given to the engine that is leaving."""
    started, go_on = tmp_path / "started", tmp_path / "go on"

    def task() -> int:
        with started.open("a") as file:
            file.write("x")
        while not go_on.exists():
            time.sleep(0.02)
        return os.getpid()

    with enginery.Cluster(on=f"dask://{dask.address}") as cluster:
        client = cluster.client
        before = len(connected(client))
        tasks = [client.submit(task, retries=1) for _ in range(before)]  # one for each engine
        eventually(lambda: started.exists() and len(started.read_text()) == before, "they do not run")
        (worker,) = dask.nannied_workers()
        worker.kill()
        eventually(lambda: len(started.read_text()) == before + 1, "it does not run again")
        go_on.touch()
        for operation in tasks:
            operation.result(timeout=20)
        assert sorted(operation.attempts for operation in tasks) == [1] * (before - 1) + [2]
        eventually(lambda: len(connected(client)) == before, "its worker does not come again")


def test_up_and_down(dask: DaskCluster, tmp_path: Path) -> None:
    """`enginery up` leaves engines on the workers, and `enginery down` stops them."""
    shell = Shell(tmp_path / "run", {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    state = ("--state-dir", str(tmp_path / "state"))
    up = shell.run("up", "-n", "2", "--on", f"dask://{dask.address}", *state)
    assert "2 engines ready" in up.stdout
    note = (tmp_path / "state" / "launcher.json").read_text()
    assert dask.address in note
    assert len(dask.hosts()) == 2
    shell.run("down", *state)
    eventually(lambda: dask.hosts() == [], "hosts are left")
    assert not (tmp_path / "state").exists()
    assert dask.plugins() == []


KILLED = """
import enginery, os, signal
import enginery.launchers.dask
enginery.launchers.dask._AWAY = 0.1
enginery.Cluster(2, on="dask://{address}").start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_starter_that_is_killed(dask: DaskCluster) -> None:
    """The scheduler takes the plugin back, so that no engine is left and no worker starts more."""
    code = KILLED.format(address=dask.address)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=40, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    eventually(lambda: dask.plugins() == [], "the plugin stays")
    eventually(lambda: dask.hosts() == [], "hosts are left")
    assert dask.files() == []


async def test_tls(tmp_path: Path) -> None:
    """Over TLS the connection file itself is sent, into a private directory of the worker that goes with it."""
    security = distributed.Security.temporary()
    async with (
        distributed.Scheduler(
            security=security, host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", protocol="tls"
        ) as scheduler,
        distributed.Worker(
            scheduler.address, security=security, nthreads=1, local_directory=str(tmp_path)
        ) as worker,
    ):
        launcher = DaskLauncher(scheduler.address, security=security)
        cluster = enginery.Cluster(on=launcher)
        before = psutil.Process().children()
        await asyncio.to_thread(cluster.start)
        try:
            (command,) = [
                child.cmdline()
                for child in psutil.Process().children()
                if child not in before and "engine_service" in child.cmdline()
            ]
            file = Path(command[command.index("--connection-file") + 1])
            assert file.is_relative_to(worker.local_directory)
            assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
            assert await asyncio.to_thread(cluster.client[0].apply, abs, -1) == 1
            token = enginery._connection_file.read(file, "engine").token
            assert token not in repr(list(worker.plugins.values()))
        finally:
            await asyncio.to_thread(cluster.stop)
        assert not file.parent.exists()


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none answers, that is said, and nothing is left running."""
    monkeypatch.setattr("enginery.launchers.dask._ANSWER", 0.2)
    with pytest.raises(EngineryError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        enginery.Cluster(1, on="dask://127.0.0.1:1").start()
