"""enginery run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated, Any, Self

import typer

from enginery import launchers
from enginery._channel import environment
from enginery._launch import Launched, LaunchOptions, temporary_state
from enginery._state_dir import VARIABLE
from enginery.cli import launching
from enginery.cli.common import undisturbed

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Runs in the script's process before the script: on Linux it asks to be told if `enginery run` is killed.
_PRELUDE = """
import ctypes, os, signal, sys
starter, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != starter:
        sys.exit(1)
os.execv(command[0], command)
"""


@launching.takes_options(drain_grace=0.0)
def run(
    settings: LaunchOptions,
    script: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="A Python script.", show_default=False, metavar="SCRIPT"
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Arguments of the script; behind -- whatever they look like.",
            show_default=False,
            metavar="ARGUMENTS",
        ),
    ] = None,
    on: launching.On = None,
    timeout: launching.Timeout = 30.0,
) -> None:
    """Run a Python script against a cluster of its own, which ends with it.

    [bold]enginery.connect()[/bold] in the script finds that cluster. The exit code is the script's.

    What the script left running when it ends is stopped, unless --drain-grace gives it time.
    """
    launched = Launched(temporary_state(), settings, attached=True, temporary=True, launcher=launchers.find(on))
    try:
        launching.start(launched, timeout).close()
        code = _run(launched, [str(script), *(arguments or ())])
    finally:
        with undisturbed():
            launched.stop()
    raise typer.Exit(code)


def _run(launched: Launched, command: list[str]) -> int:
    variables = {**environment(), VARIABLE: str(launched.state.path)}
    python = [sys.executable, "-I", "-c", _PRELUDE, str(os.getpid()), sys.executable]
    with _Signals() as signals:
        process = subprocess.Popen([*python, *command], env=variables)
        signals.pass_to(process)
        code = process.wait()
    return code if code >= 0 else 128 - code


class _Signals:
    """Hands signals on to the script, and leaves it to the script what becomes of it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_to(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._process is None:
            self._early.append(number)
        elif number != signal.SIGINT or not _is_in_foreground():
            self._process.send_signal(number)


def _is_in_foreground() -> bool:
    """Return whether Ctrl-C in the terminal reaches the script as well, by itself."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # no terminal, or stdin is closed
        return False
