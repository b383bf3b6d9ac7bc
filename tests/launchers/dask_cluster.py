"""A Dask cluster of real processes, for tests."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import distributed
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PATIENCE = 20.0


def eventually(condition: Callable[[], bool], what: str, timeout: float = _PATIENCE) -> None:
    """Wait until `condition()` holds; fail with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass
class DaskCluster:
    """A scheduler and workers, each a process of its own."""

    directory: Path
    address: str = ""
    """`HOST:PORT` of the scheduler."""
    workers: list[psutil.Popen] = field(default_factory=list)
    """The processes that were started: a worker, or the nanny of one."""
    _scheduler: psutil.Popen | None = None

    def start(self) -> None:
        """Start the scheduler."""
        file = self.directory / "scheduler.json"
        self._scheduler = self._run("scheduler", "--port", "0", "--scheduler-file", str(file))
        eventually(file.exists, "no Dask scheduler")
        self.address = json.loads(file.read_text())["address"].removeprefix("tcp://")

    def add_worker(self, *, nanny: bool = False) -> psutil.Popen:
        """Start a worker of one thread, which registers by itself."""
        where = ["--local-directory", str(self.directory / f"worker-{len(self.workers)}")]
        options = ["--nanny" if nanny else "--no-nanny", "--nthreads", "1", "--memory-limit", "0", *where]
        process = self._run("worker", self.address, *options)
        self.workers.append(process)
        return process

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many workers have registered."""
        with distributed.Client(f"tcp://{self.address}", set_as_default=False) as client:
            client.wait_for_workers(count, timeout=_PATIENCE)

    def plugins(self) -> list[str]:
        """Return the names of Enginery's plugins, of workers and of the scheduler."""

        def names(dask_scheduler: distributed.Scheduler) -> list[str]:
            return [*dask_scheduler.worker_plugins, *dask_scheduler.plugins]

        with distributed.Client(f"tcp://{self.address}", set_as_default=False) as client:
            found = client.run_on_scheduler(names)
        return [name for name in found if name.startswith("enginery")]

    def _run(self, what: str, *arguments: str) -> psutil.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments, "--no-dashboard"]
        log = self.directory / f"{what}-{len(self.workers)}.log"
        with log.open("wb") as output:
            local = ["--host", "127.0.0.1"]
            return psutil.Popen([*command, *local], stdout=output, stderr=output, start_new_session=True)

    def nannied_workers(self) -> list[psutil.Process]:
        """Return the workers that a nanny watches."""
        return [
            child for nanny in self.workers for child in _children(nanny) if "spawn_main" in _command(child)
        ]

    def hosts(self) -> list[psutil.Process]:
        """Return the engine hosts that workers have started."""
        return [child for worker in self.workers for child in _children(worker) if _is_host(child)]

    def files(self) -> list[Path]:
        """Return what Enginery has put into the workers' directories."""
        return list(self.directory.glob("worker-*/**/enginery-*"))

    def stop(self) -> None:
        """Stop the workers, then the scheduler, as people do."""
        for processes in (self.workers, [self._scheduler] if self._scheduler else []):
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(_PATIENCE)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_host(process: psutil.Process) -> bool:
    return " engine_service " in _command(process)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())  # empty once it has ended
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
