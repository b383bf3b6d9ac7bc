"""The commands as a user runs them: processes, exit codes, what is printed, what is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIMEOUT = 40


@dataclass(frozen=True)
class Shell:
    """Runs commands in an environment whose runtime directory is a temporary one."""

    runtime: Path
    """Where state directories are made."""
    environment: dict[str, str]

    @contextlib.contextmanager
    def start(self, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        """Start `enginery ARGUMENTS`; `more` is environment. A test that fails does not leave it running."""
        with subprocess.Popen(
            [sys.executable, "-m", "enginery", *arguments],
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise

    def run(self, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `enginery ARGUMENTS` to its end, which must have the exit code `code` and no traceback."""
        with self.start(*arguments, **more) as process:
            out, error = process.communicate(timeout=TIMEOUT)
        assert process.returncode == code, (process.returncode, out, error)
        if code != 1:
            assert "Traceback" not in error, error
        return subprocess.CompletedProcess(list(arguments), process.returncode, out, error)

    def processes(self) -> list[psutil.Process]:
        """Return every process that has this runtime directory in its command line or environment."""
        found = []
        for process in psutil.process_iter():
            try:
                is_own = process.pid != os.getpid() and process.environ().get("XDG_RUNTIME_DIR") == str(
                    self.runtime
                )
                if is_own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it ended meanwhile, or is somebody else's
                continue
        return found

    def left(self) -> list[Path]:
        """Return every file below the runtime directory."""
        return sorted(self.runtime.rglob("*"))


def eventually(condition: Callable[[], bool], what: Callable[[], object], timeout: float = 15) -> None:
    """Wait until `condition()` holds; fail with `what()` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def _shell(runtime: Path) -> Shell:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ENGINERY", "GRPC"))
    }
    return Shell(runtime, environment | {"XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "120"})


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell of its own; at the end none of its processes may be left."""
    made = _shell(tmp_path_factory.mktemp("r"))  # short, for the path of a socket has few characters
    yield made
    _end(made)


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A cluster of two engines that the tests here share."""
    made = _shell(tmp_path_factory.mktemp("run"))
    try:
        made.run(
            "up", "-n", "2", "--property", "colour=red", "--property", "size=3", "--exec-line", "start = 7"
        )
        yield made
        made.run("down")
    finally:
        _end(made)


def _end(shell: Shell) -> None:
    left = shell.processes()
    shown = [_shown(process) for process in left]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not left, shown


def _shown(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {process.status()} {process.cmdline()}"
    except psutil.Error as error:
        return str(error)
