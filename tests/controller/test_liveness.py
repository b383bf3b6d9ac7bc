"""Peers that stop without a word are noticed: at once if they die, soon if they freeze."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.controller.fakes import FakeCluster, running
from tests.controller.processes import ProcessCluster, controller_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FROZEN = 30.0  # seconds: keepalive interval plus ping timeout are 15, and room for a busy machine
SCRIPT = Path(__file__).with_name("silent_engine.py")


@contextmanager
def silent_engine(cluster: FakeCluster) -> Iterator[subprocess.Popen[str]]:
    """Run a host in a process of its own, registered."""
    command = [sys.executable, str(SCRIPT), str(cluster.controller.state.engine_file)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def registered(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "registered\n"


async def seconds_until(condition: Callable[[], bool], limit: float) -> float:
    start = time.monotonic()
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - what is waited for is plain state
            await asyncio.sleep(0.01)
    return time.monotonic() - start


async def test_killed_host_is_noticed_at_once(tmp_path: Path) -> None:
    """kill -9 of a host makes its engine away without any timeout."""
    async with running(tmp_path / "state", insecure=False) as cluster:
        with silent_engine(cluster) as process:
            await registered(process)
            process.send_signal(signal.SIGKILL)
            statistics = cluster.controller.registry.statistics
            await seconds_until(lambda: statistics().away == 1, FROZEN / 4)


@pytest.mark.slow
async def test_frozen_host_is_noticed(tmp_path: Path) -> None:
    """SIGSTOP of a host makes its engine away before long."""
    async with running(tmp_path / "state", insecure=False) as cluster:
        with silent_engine(cluster) as process:
            await registered(process)
            process.send_signal(signal.SIGSTOP)
            statistics = cluster.controller.registry.statistics
            assert await seconds_until(lambda: statistics().away == 1, FROZEN + 5) < FROZEN


@pytest.mark.slow
async def test_frozen_controller_is_noticed(tmp_path: Path) -> None:
    """SIGSTOP of the controller ends the streams of hosts and clients before long."""
    async with controller_process(tmp_path / "state") as cluster:
        assert isinstance(cluster, ProcessCluster)
        host = cluster.host()
        await host.hello()
        session = await cluster.session()
        os.kill(cluster.pid, signal.SIGSTOP)
        try:
            over = host.over.is_set
            assert await seconds_until(lambda: over() and session.is_over, FROZEN + 5) < FROZEN
        finally:
            os.kill(cluster.pid, signal.SIGCONT)
