"""Controller and engine host as programs, for tests that kill them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

from tests.architecture.source import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 40.0  # seconds


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for a condition, at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of this environment; whatever happens it and its children are gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        for child in children(process.pid):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.communicate(timeout=PATIENCE)


def children(pid: int) -> list[psutil.Process]:
    """Return all processes that `pid` started."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def controller(state: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a controller; it is ready."""
    with started("-m", "controller_service", "--state-dir", str(state), *options) as process:
        until(lambda: _is_ready(state, process.pid) or process.poll() is not None, "the controller")
        assert process.poll() is None, process.stdout and process.stdout.read()
        yield process


def _is_ready(state: Path, pid: int) -> bool:
    try:
        return bool(json.loads((state / "client.json").read_text())["pid"] == pid)
    except FileNotFoundError:
        return False


@contextmanager
def host(state: Path, count: int = 1, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a host of `count` engines."""
    file = str(state / "engine.json")
    with started("-m", "engine_service", "-n", str(count), "--connection-file", file, *options) as process:
        yield process
