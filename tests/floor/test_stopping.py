"""A service stops for one reason, and its exit code says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, sys
from enginery._stopping import StopRequest

async def main():
    with StopRequest(life_line="--life-line" in sys.argv) as stop:
        print("ready", flush=True)
        reason = await stop.wait()
        if "--again" in sys.argv:
            print("finishing", flush=True)
            print((await stop.wait_again()).text)
    print(reason.text)
    return reason.exit_code

sys.exit(asyncio.run(main()))
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(number: signal.Signals) -> None:
    """128 and the signal's number, as shells expect; no traceback."""
    with start() as process:
        process.send_signal(number)
        out, error = process.communicate(timeout=10)
    assert (process.returncode, out, error) == (128 + number, f"{number.name}\n", "")


def test_a_second_signal_is_told_apart() -> None:
    """Who finishes something after the first learns that somebody is in a hurry; the first one's code stays."""
    with start("--again") as process:
        assert process.stdout is not None
        process.terminate()
        assert process.stdout.readline() == "finishing\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=10)
    assert (process.returncode, out, error) == (143, "SIGINT\nSIGTERM\n", "")


def test_life_line() -> None:
    """The end of stdin stops it, bytes on stdin do not."""
    with start("--life-line") as process:
        assert process.stdin is not None
        os.write(process.stdin.fileno(), b"still here\n")
        out, error = process.communicate(timeout=10)
    assert (process.returncode, out, error) == (0, "its starter is gone\n", "")


def test_stdin_is_nothing_without_a_life_line() -> None:
    """A service in the background goes on though its stdin is closed."""
    with start() as process:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(10) == 143
