"""Commands of a command line, for code that asks for them by `!`: what interrupts the code interrupts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import psutil

_GRACE = 0.5  # seconds from SIGINT to SIGKILL


def call(command: str) -> int:
    """Run a command, and return its exit code; its output goes where that of the process goes."""
    return _run(command, None)[0]


def output_of(command: str) -> str:
    """Run a command, and return what it wrote to stdout and stderr."""
    return _run(command, subprocess.PIPE)[1]


def _run(command: str, stdout: int | None) -> tuple[int, str]:
    process = subprocess.Popen(  # noqa: S602  # what is asked for is run
        command,
        shell=True,
        executable=os.environ.get("SHELL") or None,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=None if stdout is None else subprocess.STDOUT,
    )
    try:
        output = process.communicate()[0]
    except BaseException:
        _end(process)
        raise
    return process.returncode, (output or b"").decode("utf-8", "backslashreplace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command with what it has started; all are of the kernel's process group, and end with it too."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    _signal(process, started, signal.SIGINT)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(process, started, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], started: list[psutil.Process], number: int) -> None:
    process.send_signal(number)
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(number)
