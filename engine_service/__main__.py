"""The engine host as a program: `python -m engine_service`, or `enginery engine`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from enginery._channel import prepare_grpc

prepare_grpc()  # before anything imports grpc

import asyncio  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import uuid  # noqa: E402

from engine_service.app import Host  # noqa: E402
from engine_service.config import HostConfig, parse  # noqa: E402
from engine_service.kernel_exit import KernelExited  # noqa: E402
from enginery import _logs  # noqa: E402
from enginery._alive import HostLock  # noqa: E402
from enginery._malloc import keep_freed  # noqa: E402
from enginery._state_dir import StateDirectory  # noqa: E402
from enginery._stopping import StopReason, StopRequest  # noqa: E402
from enginery.errors import EngineryError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("engine_service")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a host until it is told to stop or all of its engines have left; return the exit code."""
    config = parse(argv)
    keep_freed()
    directory = config.connection_file.absolute().parent
    is_local = (directory / "processes").is_dir()
    file, held = config.log_file, -1
    if file is None and (directory / "logs").is_dir():
        file, held = _logs.claim(directory / "logs", "host")
    _logs.setup("host", config.log_level, file, config.log_format)
    state = StateDirectory(directory) if is_local else None
    host_id = str(uuid.uuid4())
    lock = None
    try:
        if state is not None:
            try:
                state.add_process(os.getpid(), "host")
                lock = HostLock(state.processes_directory, host_id)
            except (OSError, EngineryError) as error:
                # Such as a full disk. Only what finds processes without a controller misses it.
                logger.warning("this host is not noted in %s: %s", directory, error)
        return asyncio.run(run(config, host_id, lock))
    finally:
        if lock is not None:
            lock.release()
        if state is not None:
            state.remove_process(os.getpid())
        if held >= 0:
            os.close(held)


async def run(config: HostConfig, host_id: str, lock: HostLock | None = None) -> int:
    """Run the host of that id; return its exit code. `lock` is kept if no controller heard that it ends."""
    host = Host(config, host_id)
    try:
        return await serve(host, config)
    finally:
        if lock is not None and host.link is not None:
            lock.is_kept = host.link.has_left_unheard


async def serve(host: Host, config: HostConfig) -> int:
    """Run the host to its end; return the exit code."""
    with StopRequest(life_line=config.life_line) as stop:
        asked = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(host.start())
        await asyncio.wait((asked, starting), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            logger.info("stopping: %s", asked.result().text)
            starting.cancel()
        try:
            await starting
        except asyncio.CancelledError:
            return asked.result().exit_code
        except (KernelExited, EngineryError, OSError) as error:
            asked.cancel()
            logger.error("the host does not start: %s", error)
            return 1
        left = asyncio.create_task(host.wait_stopped())
        await asyncio.wait((asked, left), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if asked.done():
            return await leave(host, stop, asked.result(), config.drain_grace)
        asked.cancel()
        await host.stop()
        logger.info("all engines have left")
        return 1 if config.mpi and host.engines[0].last_failure else 0  # so that mpiexec ends the others


async def leave(host: Host, stop: StopRequest, reason: StopReason, grace: float) -> int:
    """Let the host finish what it runs, unless nobody waits for that any more; return the exit code."""
    logger.info("stopping: %s", reason.text)
    stopping = asyncio.create_task(host.stop(reason.text, grace=grace if reason.exit_code else 0.0))
    again = asyncio.create_task(stop.wait_again())
    await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
    if again.done():
        logger.info("stopping at once: %s", again.result().text)
        host.hurry(again.result().text)
    again.cancel()
    await stopping
    return reason.exit_code


if __name__ == "__main__":
    sys.exit(main())
