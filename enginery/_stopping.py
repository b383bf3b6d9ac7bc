"""Why a service process stops: a signal, or the end of its life line.

The life line is stdin, a pipe whose other end the starter holds. It ends when the starter does, even by
kill -9, so nothing that `Cluster` or `enginery run` started outlives them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class StopReason:
    """What asked the process to stop, and the exit code that says so."""

    text: str
    exit_code: int


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Watches for reasons to stop while it is entered, the first and one more. Needs a running loop."""

    def __init__(self, *, life_line: bool = False) -> None:
        """Watch signals, and stdin too if `life_line`."""
        self._life_line = life_line
        self._loop = asyncio.get_running_loop()
        self._first: asyncio.Future[StopReason] = self._loop.create_future()
        self._second: asyncio.Future[StopReason] = self._loop.create_future()

    def __enter__(self) -> Self:
        """Begin to watch."""
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal, number)
        if self._life_line:
            self._loop.add_reader(sys.stdin.fileno(), self._on_life_line)
        return self

    def __exit__(self, *_exc: object) -> None:
        """Stop to watch. Signals are ignored from here on: the process is at its end."""
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        if self._life_line:
            self._loop.remove_reader(sys.stdin.fileno())
        self._first.cancel()
        self._second.cancel()

    def _on_signal(self, number: signal.Signals) -> None:
        self._settle(StopReason(number.name, 128 + number))

    def _on_life_line(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            self._loop.remove_reader(sys.stdin.fileno())
            self._settle(StopReason("its starter is gone", 0))

    def _settle(self, reason: StopReason) -> None:
        if not self._first.done():
            self._first.set_result(reason)
        elif not self._second.done():
            self._second.set_result(reason)

    async def wait(self) -> StopReason:
        """Return the reason once there is one."""
        return await asyncio.shield(self._first)

    async def wait_again(self) -> StopReason:
        """Return the second reason once there is one: whoever gives it does not want to wait."""
        return await asyncio.shield(self._second)
