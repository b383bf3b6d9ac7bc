"""What runs in each Dask worker: a plugin that starts this worker's engine host, watches it and stops it.

Dask sets the plugin up in every worker there is, and in every one that comes later or is restarted, and tears
it down when the worker closes or the plugin is removed. A worker that is killed does neither: its host watches
a pipe that the worker holds, and leaves at once.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import WorkerPlugin

from enginery import _connection_file
from enginery.launchers.process import Process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distributed import Worker

    from enginery._connection_file import ConnectionInfo

_LOOK = 0.2  # seconds between looks at whether the host has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many engines each worker starts."""

    first: Mapping[str, int] = field(default_factory=dict)
    """Of the workers that there were at the beginning, by address."""
    later: int | None
    """Of those that come later; None for one for each thread."""

    def of(self, worker: str, threads: int) -> int:
        """Return how many engines a worker starts."""
        return self.first.get(worker, threads if self.later is None else self.later)


def even(n: int | None, workers: Mapping[str, int]) -> Share:
    """Return how `workers`, with their numbers of threads, share `n` engines; None for one for each thread."""
    if n is None:
        return Share(later=None)
    each, more = divmod(n, len(workers))
    first = {worker: each + (place < more) for place, worker in enumerate(sorted(workers))}
    return Share(first=first, later=math.ceil(n / len(workers)))


class EnginesPlugin(WorkerPlugin):
    """Starts one engine host in each worker. Made by `DaskLauncher`, which says what the parameters are."""

    def __init__(
        self,
        name: str,
        share: Share,
        arguments: tuple[str, ...],
        *,
        connection_file: str,
        connection: ConnectionInfo | None,
        grace: float,
    ) -> None:
        """Take what to start.

        `connection` is the connection file itself, if the way to the workers is encrypted; else they read
        `connection_file`, a path that they share with the controller.
        """
        self.name = name
        self._share = share
        self._arguments = arguments
        self._connection_file = connection_file
        self._connection = connection
        self._grace = grace
        self._directory: Path | None = None
        self._process: Process | None = None
        self._watching: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show nothing that is secret: Dask logs plugins."""
        return f"<EnginesPlugin {self.name}>"

    async def setup(self, worker: Worker) -> None:
        """Start the host; it is up when its engines register.

        ConnectionFileError if this worker cannot read the connection file.
        """
        n = self._share.of(worker.address, worker.state.nthreads)
        if n == 0:
            return
        await asyncio.to_thread(self._start, worker, n)
        self._watching = asyncio.create_task(self._watch(worker), name=f"engines of {self.name}")

    def _start(self, worker: Worker, n: int) -> None:
        file = Path(self._connection_file)
        if self._connection is None:
            _connection_file.read(file, "engine")  # or the host would wait for it, and nobody would know why
        self._directory = Path(tempfile.mkdtemp(prefix="enginery-", dir=worker.local_directory))  # 0700
        if self._connection is not None:
            file = self._directory / "engine.json"
            _connection_file.write(file, self._connection)
        shared = file.parent / "logs"
        logs = shared if shared.is_dir() else self._directory
        where = ["--connection-file", str(file), "-n", str(n)]
        where.append(f"--property=dask_worker={json.dumps(worker.address)}")
        self._process = Process("host", "engine_service", [*where, *self._arguments], logs=logs, attached=True)

    async def _watch(self, worker: Worker) -> None:
        assert self._process is not None
        self._tell(worker, "started")
        while (how := self._process.end()) is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(_LOOK)
        self._tell(worker, "ended", how, await asyncio.to_thread(self._process.last_words))

    def _tell(self, worker: Worker, kind: str, reason: str = "", log: str = "") -> None:
        worker.log_event(self.name, {"kind": kind, "worker": worker.address, "reason": reason, "log": log})

    def signal(self, number: int) -> None:
        """Send a signal to this worker's host, if it has one."""
        if self._process is not None:
            self._process.signal(number)

    async def teardown(self, worker: Worker) -> None:
        """Stop the host and remove its files."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._process is not None:
            await asyncio.to_thread(self._process.stop, self._grace)
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)


def signal_host(name: str, number: int, dask_worker: Worker) -> None:
    """Run in a worker: send a signal to the host that the plugin of that name started there."""
    plugin = dask_worker.plugins.get(name)
    if isinstance(plugin, EnginesPlugin):
        plugin.signal(number)
