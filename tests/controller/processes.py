"""A controller in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from controller_service.app import Controller
from controller_service.config import Config
from tests.controller.fakes import PATIENCE, FakeCluster, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class ProcessCluster(FakeCluster):
    """A FakeCluster whose controller is the process `pid`."""

    def __init__(self, state_dir: Path, process: subprocess.Popen[str]) -> None:
        super().__init__(Controller(Config(state_dir=state_dir)))
        self.process = process
        self.pid = process.pid


def start(state_dir: Path, *options: str, life_line: bool = False) -> subprocess.Popen[str]:
    """Start `python -m controller_service`, with a pipe as stdin if `life_line`."""
    command = [sys.executable, "-m", "controller_service", "--state-dir", str(state_dir), *options]
    stdin = subprocess.PIPE if life_line else subprocess.DEVNULL
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of a process; return exit code, stdout and stderr."""
    try:
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


@asynccontextmanager
async def controller_process(state_dir: Path, *options: str) -> AsyncIterator[ProcessCluster]:
    """Run a controller, with TLS and tokens, and stop it at the end."""
    process = start(state_dir, "--port", "0", *options)
    try:
        await until(lambda: (state_dir / "client.json").exists() or process.poll() is not None)
        assert process.poll() is None, await finish(process)
        cluster = ProcessCluster(state_dir, process)
        try:
            yield cluster
        finally:
            await cluster.close()
    finally:
        if process.poll() is None:
            process.terminate()
        await finish(process)
