"""Keeps one engine's kernel running: starts another when it has ended, for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from engine_service import memory
from engine_service.kernel_memory import end
from engine_service.kernel_process import KernelExited, KernelOptions, KernelProcess
from enginery import _logs

if TYPE_CHECKING:
    from engine_service.kernel_process import KernelListener

logger = logging.getLogger(__name__)

_STOP_GRACE = 2.0
_MPI_STOP_GRACE = 5.0  # one process of MPI ends with the others
_RESTART_DELAYS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

StartKernel = Callable[..., Awaitable[KernelProcess]]


class KernelOwner(Protocol):
    """The engine, as the keeper of its kernel sees it."""

    @property
    def engine_id(self) -> int:
        """The id that the next kernel is told."""

    def kernel_started(self) -> None:
        """There is a kernel; what is submitted can run."""

    def kernel_lost(self) -> None:
        """The kernel has ended, and there will be no other."""

    def kernel_not_starting(self, cause: KernelExited | OSError) -> None:
        """Another attempt to start one has failed; more will follow."""


class KernelKeeper:
    """The kernel of one engine, or the last one while another starts."""

    def __init__(
        self,
        options: KernelOptions,
        owner: KernelOwner,
        listener: KernelListener,
        *,
        start_kernel: StartKernel,
        memory_limit: int | None,
    ) -> None:
        """Keep kernels that are started with `options`; `listener` hears what they say. See `start`.

        One that has more than `memory_limit` bytes of resident memory is killed; None means no limit.
        """
        self.last_failure = ""
        self.kill_cause = ""
        """Why the host has killed it, empty if it has not; it may have answered just before."""
        self.memory_exceeded = 0
        """Bytes of resident memory for which it was killed, 0 if it was not."""
        self.stop_grace = _MPI_STOP_GRACE if options.mpi else _STOP_GRACE
        """Seconds that an idle kernel has to end by itself."""
        self._options = options
        self._owner = owner
        self._listener = listener
        self._start_kernel = start_kernel
        self._memory_limit = memory_limit
        self._kernel: KernelProcess | None = None
        self._watching: asyncio.Task[None] | None = None  # ends with its kernel
        self._starting: asyncio.Task[None] | None = None  # `run` awaits it
        self._wake = asyncio.Event()
        self._is_stopping = False

    @property
    def kernel(self) -> KernelProcess:
        """The kernel, or the last one while another starts."""
        assert self._kernel is not None, "the engine was not started"
        return self._kernel

    async def start(self) -> None:
        """Start the first kernel and wait until it is ready; KernelExited if it does not come up."""
        options = replace(self._options, engine_id=self._owner.engine_id)
        kernel = await self._start_kernel(options, self._listener)
        kernel.exited.add_done_callback(lambda _: self._wake.set())
        self._kernel = kernel
        self.kill_cause = ""
        self.memory_exceeded = 0
        if self._memory_limit is not None:
            watching = self._watch_memory(kernel, self._memory_limit)
            self._watching = asyncio.create_task(watching, name=f"memory of kernel {kernel.pid}")
        self._owner.kernel_started()

    @property
    def is_ready(self) -> bool:
        """Whether there is a kernel that takes commands."""
        kernel = self._kernel
        return not self.kill_cause and kernel is not None and not kernel.exited.done()

    def kill(self, cause: str) -> None:
        """Kill the kernel with all that it started; another follows. `cause` is how people read of its end."""
        self.kill_cause = cause
        self.kernel.kill(cause=cause)

    def stop(self) -> None:
        """Let `run` come to its end. A kernel that has not come up yet is not waited for."""
        self._is_stopping = True
        self._wake.set()
        if self._starting is not None:
            self._starting.cancel()

    async def run(self) -> None:
        """Replace each kernel that ends, until `stop`."""
        while not self._is_stopping:
            if self.kernel.exited.done():
                await self._replace()
            else:
                self._wake.clear()
                await self._wake.wait()

    async def close(self) -> None:
        """Stop the kernel and wait until it is gone."""
        await self.kernel.stop(self.stop_grace)
        if self._watching is not None:
            await self._watching

    async def _watch_memory(self, kernel: KernelProcess, limit: int) -> None:
        """Measure a kernel until it has ended, and kill it if it has more memory than it may."""
        loop = asyncio.get_running_loop()
        watch = memory.MemoryWatch(limit)
        group_at = loop.time()
        while not kernel.exited.done():
            group_bytes = None
            if loop.time() >= group_at:
                group_bytes = await asyncio.to_thread(kernel.group_bytes, above=limit)
                group_at = loop.time() + memory.GROUP_INTERVAL
            size = watch.observe(kernel.resident_bytes(), group_bytes)
            if size and self.is_ready:
                # Those that have left its process group outlive it, and may be the ones that have the memory.
                started = await asyncio.to_thread(kernel.descendants) if group_bytes is not None else []
                self.memory_exceeded = size
                self.kill(f"killed at {size} bytes of resident memory, over its limit of {limit}")
                await asyncio.to_thread(end, started)
            await asyncio.wait((kernel.exited,), timeout=memory.OWN_INTERVAL)

    async def _replace(self) -> None:
        status = await self.kernel.exited
        if self._watching is not None:
            await self._watching
        self.last_failure = status.describe()
        about = _logs.about(engine=self._owner.engine_id)
        logger.warning("the kernel died: %s", self.last_failure, extra=about)
        if self._options.mpi:
            self._owner.kernel_lost()
        attempt = 0
        while not self._is_stopping:
            self._starting = asyncio.create_task(self.start(), name="start of a kernel")
            try:
                await self._starting
            except asyncio.CancelledError:
                if not self._is_stopping:
                    raise
            except (KernelExited, OSError) as error:  # OSError: no process or memory is left for it just now
                logger.error("the kernel does not start: %s", error, extra=about)
                self._owner.kernel_not_starting(error)
                attempt = min(attempt + 1, len(_RESTART_DELAYS) - 1)
                await self._pause(_RESTART_DELAYS[attempt])
            else:
                logger.info("kernel %s, pid %d", self.kernel.incarnation, self.kernel.pid, extra=about)
                return
            finally:
                self._starting = None

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                while not self._is_stopping:
                    await self._wake.wait()
                    self._wake.clear()
        except TimeoutError:
            return
