"""controller and engine in the foreground."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .conftest import Shell, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


def wait_for(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read stderr until a line holds `text`; return the lines."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"ended without {text!r}: {lines}")


@pytest.fixture
def controller(shell: Shell) -> Iterator[subprocess.Popen[str]]:
    """A controller in the foreground."""
    with shell.start("controller", PYTHONUNBUFFERED="1") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "grpcurl" in line:
                break
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_controller_stops_on_a_signal(
    shell: Shell, controller: subprocess.Popen[str], number: signal.Signals
) -> None:
    """Exit code by the signal, no traceback, the socket is gone."""
    socket = shell.runtime / "enginery" / "default" / "client.sock"
    assert socket.exists()
    controller.send_signal(number)
    _, error = controller.communicate(timeout=20)
    assert controller.returncode == 128 + number
    assert "Traceback" not in error
    assert not socket.exists()


def test_a_second_controller_is_refused(shell: Shell, controller: subprocess.Popen[str]) -> None:
    """The first is named, and the ways out."""
    error = shell.run("controller", code=1).stderr
    assert f"pid {controller.pid}" in error
    assert "--state-dir" in error
    assert "Traceback" not in error


def test_insecure_is_for_loopback(shell: Shell) -> None:
    """Any other bind is refused before anything listens."""
    error = shell.run("controller", "--insecure", "--bind", "0.0.0.0", code=1).stderr
    assert "--insecure is refused" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_engines_wait_for_a_controller(shell: Shell, number: signal.Signals) -> None:
    """Started first, they wait; a signal ends them cleanly; so does the end of the cluster."""
    with shell.start("engine", "-n", "1") as waiting:
        eventually(lambda: len(shell.processes()) >= 2, shell.processes)
        wait_for(waiting, "waits for")
        waiting.send_signal(number)
        _, error = waiting.communicate(timeout=20)
        assert waiting.returncode == 128 + number
        assert "Traceback" not in error
    assert shell.processes() == []


def test_an_engine_comes_before_its_controller(shell: Shell) -> None:
    """The engine finds the controller that is started after it."""
    with shell.start("engine") as engine:
        wait_for(engine, "waits for")
        with shell.start("controller") as controller:
            wait_for(engine, "registered")
            assert shell.run("exec", "6 * 7").stdout == "42\n"
            shell.run("down")
            controller.communicate(timeout=20)
            assert controller.returncode == 0
        engine.communicate(timeout=20)
        assert engine.returncode == 0
    assert shell.processes() == []


@pytest.mark.parametrize("module", ["controller_service", "engine_service"])
def test_modules_are_the_same_programs(shell: Shell, module: str) -> None:
    """`python -m` shows the options of the command."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=shell.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--state-dir" in done.stdout
