"""Commands of a command line, for code that asks for them by `!`: what interrupts the code interrupts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

_GRACE = 0.5  # seconds from SIGINT to SIGKILL


class Done(NamedTuple):
    """How a command ended, and those of its texts that were asked for; the others are empty."""

    code: int
    stdout: str = ""
    stderr: str = ""


def call(command: str) -> int:
    """Run a line of the shell, and return its exit code; its output goes where that of the process goes."""
    return run(command).code


def output_of(command: str) -> str:
    """Run a line of the shell, and return what it wrote to stdout and stderr."""
    return _run(command, None, subprocess.PIPE, subprocess.STDOUT).stdout


def run(command: str | Sequence[str], text: str | None = None, *, out: bool = False, err: bool = False) -> Done:
    """Run a line of the shell, or a program with its arguments, which reads `text`.

    What it writes is returned with `out` and `err`. Else it goes where that of the process goes, or to what
    user code put in the place of `sys.stdout` and `sys.stderr`.
    """
    pipes = [subprocess.PIPE if wanted or _is_replaced(name) else None for name, wanted in _both(out, err)]
    done = _run(command, text, *pipes)
    for (name, wanted), written in zip(_both(out, err), done[1:], strict=True):
        if written and not wanted:
            getattr(sys, name).write(written)
    return Done(done.code, done.stdout if out else "", done.stderr if err else "")


def _both(out: bool, err: bool) -> tuple[tuple[str, bool], ...]:
    return ("stdout", out), ("stderr", err)


def _is_replaced(name: str) -> bool:
    stream: Any = getattr(sys, name, None)
    return stream is not getattr(sys, f"__{name}__") and callable(getattr(stream, "write", None))


def _run(command: str | Sequence[str], text: str | None, stdout: int | None, stderr: int | None) -> Done:
    is_line = isinstance(command, str)
    process = subprocess.Popen(
        command,
        shell=is_line,  # what is asked for is run
        executable=(os.environ.get("SHELL") or None) if is_line else None,
        stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
    )
    try:
        texts = process.communicate(None if text is None else text.encode("utf-8", "replace"))
    except BaseException:
        _end(process)
        raise
    return Done(process.returncode, *((one or b"").decode("utf-8", "backslashreplace") for one in texts))


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
