"""A controller or an engine host as a process of this machine, with its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginery import _logs
from enginery._channel import environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LAST_WORDS = 15  # lines of a log that an error shows


@dataclass(frozen=True, slots=True)
class _Log:
    """The log file of a process, and where in it this process began."""

    path: Path
    start: int

    def tail(self) -> str:
        """Return the last lines for an error's text; empty if nothing was logged."""
        try:
            lines = self.path.read_bytes()[self.start :].decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        shown = [f"\n  {line}" for line in lines[-_LAST_WORDS:]]
        return "".join([f"\nthe end of {self.path}:", *shown]) if shown else ""


class Process:
    """One service, started by its module. An `attached` one ends with this process: it watches a pipe."""

    def __init__(self, kind: str, module: str, arguments: Sequence[str], *, logs: Path, attached: bool) -> None:
        """Start it, with a log file `KIND-1.log`, or the next free number, in the directory `logs`."""
        path, fd = _logs.claim(logs, kind)
        self._log = _Log(path, path.stat().st_size)
        life_line = ["--life-line"] if attached else []
        try:
            self._process = subprocess.Popen(
                # -P: modules of the current directory must not stand in for ours
                [sys.executable, "-P", "-m", module, *arguments, "--log-file", str(path), *life_line],
                stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=fd,  # a crash before logging is set up, or in C, is found there too
                env=environment(),
                start_new_session=True,  # Ctrl-C in the terminal goes to the starter alone
            )
        finally:
            os.close(fd)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def end(self) -> str | None:
        """Return how it ended, `exit code 1` or `signal SIGKILL`; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def last_words(self) -> str:
        """Return the end of its log as more lines of an error's text; empty if it logged nothing."""
        return self._log.tail()

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def stop(self, grace: float) -> None:
        """End it: SIGTERM, and SIGKILL after `grace` seconds. Again does nothing."""
        if self.end() is None:
            self._process.terminate()
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
