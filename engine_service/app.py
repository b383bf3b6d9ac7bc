"""The engine host: engines, their link to the controller and its own port, started and stopped in order."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING

from engine_service.direct import DirectPort
from engine_service.engine import Engine, EngineOptions
from engine_service.kernel_options import STARTUP_TIMEOUT
from engine_service.kernel_process import KernelOptions
from engine_service.link import Link
from enginery._connection_file import read

if TYPE_CHECKING:
    from engine_service.config import HostConfig

_MPI_STARTUP = 300.0  # seconds: a process of MPI waits for all others
_MPI_STOP_GRACE = 0.2

logger = logging.getLogger(__name__)


class Host:
    """An engine host. `engines` are its engines by slot; `direct_port` is its own port, None if it has none."""

    def __init__(self, config: HostConfig, host_id: str | None = None) -> None:
        """Take the options, and the id of this process, by default a new one; nothing runs before `start`."""
        self.config = config
        self._host_id = host_id
        self.engines = [Engine(_engine_options(config), slot=slot) for slot in range(config.n)]
        self.link: Link | None = None
        self._direct: DirectPort | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def direct_port(self) -> int | None:
        """Number of the host's own port."""
        return self._direct.port if self._direct is not None else None

    async def start(self) -> None:
        """Start all engines and begin to look for the controller.

        KernelExited if a kernel does not come up, OSError if the port cannot be had.
        """
        config = self.config
        try:
            if config.direct:
                self._direct = DirectPort(
                    self.engines, bind=config.bind, advertise=config.advertise, port=config.port
                )
            starts = await asyncio.gather(*(engine.start() for engine in self.engines), return_exceptions=True)
            for failure in starts:
                if failure is not None:
                    raise failure
        except BaseException:
            await self.stop("the host did not start")
            raise
        read_connection = functools.partial(read, config.connection_file, "engine")
        self.link = Link(
            self.engines,
            read_connection,
            direct=self._direct,
            host_id=self._host_id,
            orphan_timeout=config.orphan_timeout,
        )
        self._task = asyncio.create_task(self.link.run(), name="link to the controller")
        count = len(self.engines)
        waiting = "1 engine waits" if count == 1 else f"{count} engines wait"
        logger.info("%s for %s", waiting, config.connection_file)

    async def wait_stopped(self) -> None:
        """Wait until all engines have left, by themselves or by `stop`."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self, reason: str = "the host stops", *, grace: float = 0.0) -> None:
        """Stop all engines, say goodbye and close the port. Again does nothing.

        What runs gets `grace` seconds to end, cut short by `hurry`; what waits is handed back at once.
        """
        if self.config.mpi:  # mpiexec ends a job by a signal, and kills what is left a second later
            self.engines[0].keeper.stop_grace = _MPI_STOP_GRACE
        if grace > 0 and self.link is not None:
            self.link.drain(reason, grace)
        else:
            self.hurry(reason)
        for engine in self.engines:
            await engine.wait_stopped()
        if self._task is not None:
            await self._task
        if self._direct is not None:
            await self._direct.close()

    def hurry(self, reason: str) -> None:
        """Stop all engines at once; see `stop`."""
        for engine in self.engines:
            engine.stop(reason)


def _engine_options(config: HostConfig) -> EngineOptions:
    return EngineOptions(
        kernel=KernelOptions(
            engine_id=-1 if config.engine_id is None else config.engine_id,
            value_limit=config.value_limit,
            shell=config.shell,
            mpi=config.mpi,
            startup_timeout=_MPI_STARTUP if config.mpi else STARTUP_TIMEOUT,
            exec_lines=config.exec_lines,
            exec_files=config.exec_files,
            properties=config.properties,
        ),
        queue_calls=config.queue_limit,
        queue_bytes=config.queue_bytes,
        value_limit=config.value_limit,
        store_limit=config.store_limit,
        output_limit=config.output_limit,
        memory_limit=config.memory_limit,
    )
