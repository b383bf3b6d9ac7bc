"""Engines on this machine: one host process with all of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from enginery._signals import signals_later
from enginery._state_dir import StateDirectory
from enginery.launchers.launcher import HostEvent
from enginery.launchers.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enginery._connection_file import ConnectionInfo
    from enginery.launchers.launcher import EngineSpec


def default_engines() -> int:
    """Return how many engines to start if nobody said: one per CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalLauncher:
    """Starts engines as processes of this machine, while their controller comes up. See `Launcher`."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: Process | None = None
        self._state: StateDirectory | None = None

    def start(self, spec: EngineSpec, connection: Callable[[], ConnectionInfo]) -> int:
        """Start the host, without waiting for anything: it waits for the connection file itself."""
        n = default_engines() if spec.n is None else spec.n
        if n:
            where = ["--connection-file", str(spec.connection_file), "-n", str(n)]
            self._state = StateDirectory(spec.connection_file.parent)
            with signals_later():  # or one might come between the process and its entry in the state directory
                self._process = Process(
                    "host", "engine_service", [*where, *spec.arguments], logs=spec.logs, attached=spec.attached
                )
                self._state.add_process(self._process.pid, "host")
        return n

    def events(self) -> Sequence[HostEvent]:
        """Return what has happened to the host."""
        if self._process is None:
            return []
        found = [HostEvent("started", "host")]
        how = self._process.end()
        if how is not None:
            found.append(HostEvent("ended", "host", how, self._process.last_words()))
        return found

    def last_words(self) -> str:
        """Return the end of the host's log."""
        return "" if self._process is None else self._process.last_words()

    def signal(self, number: int) -> None:
        """Send a signal to the host."""
        if self._process is not None:
            self._process.signal(number)

    def stop(self, grace: float) -> None:
        """Stop the host."""
        if self._process is not None and self._state is not None:
            self._process.stop(grace)
            self._state.remove_process(self._process.pid)

    def note(self) -> None:
        """Return None: processes of this machine are noted one by one."""
        return
