"""Commands of a command line, for code that asks for them by `!`: what interrupts the code interrupts them."""

from __future__ import annotations

import os
import signal
import subprocess

_GRACE = 1.0  # seconds from SIGINT to SIGKILL


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
        start_new_session=False,
        process_group=0,  # so that it can be interrupted with what it starts
    )
    try:
        output = process.communicate()[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(_GRACE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        raise
    return process.returncode, (output or b"").decode("utf-8", "backslashreplace")
