"""One kernel as the host holds it: a child process, its socket, its output and its end.

Runs on an event loop. Start it from a thread that lives as long as the kernel shall: on Linux a kernel is killed when the
thread that started it ends.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from engine_service.kernel_exit import ExitStatus, KernelExited
from engine_service.kernel_wire import Command, DisplayData, Failure, Reply, Transferred, WireError
from enginery._engine import DEFAULT_VALUE_LIMIT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from enginery._encoded import Encoded

__all__ = [
    "Command",
    "DisplayData",
    "ExitStatus",
    "Failure",
    "KernelExited",
    "KernelOptions",
    "KernelProcess",
    "Reply",
    "Transferred",
    "WireError",
]


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How a kernel is started. Sizes in bytes, times in seconds.

    `output_limit` is what is kept of each stream of one operation; `value_limit` the largest value that it may
    return. `exec_lines` and then `exec_files` run before it is ready; one that raises is a failed start.
    """

    engine_id: int = -1
    output_limit: int = 64 << 20
    value_limit: int = DEFAULT_VALUE_LIMIT
    startup_timeout: float = 30.0
    directory: Path | None = None
    exec_lines: tuple[str, ...] = ()
    exec_files: tuple[Path, ...] = ()
    properties: Mapping[str, Encoded] = field(default_factory=dict)


class KernelProcess:
    """A running kernel.

    `incarnation` names it; `properties` are those that it has once it is ready; `exited` is resolved when it has
    ended and its process group is gone.
    """

    incarnation: str
    pid: int
    python_version: str
    properties: dict[str, Encoded]
    exited: asyncio.Future[ExitStatus]

    @classmethod
    async def start(
        cls,
        options: KernelOptions,
        *,
        on_output: Callable[[str, bytes], None],
        on_progress: Callable[[float, str], None],
    ) -> Self:
        """Start a kernel and wait until it is ready.

        `on_output` gets what is written outside operations: the stream (`stdout` or `stderr`) and the bytes.
        `on_progress` gets the fraction and text that the running operation reports. KernelExited if it does not
        come up, with its output; one that takes too long is killed.
        """
        raise NotImplementedError

    async def run(self, command: Command) -> Reply:
        """Run a command; one at a time. KernelExited if the kernel ends before it answers.

        If the caller is cancelled the command runs on, and no other can be run until it ends. Stored values of
        the command stay the caller's to close; those of the reply become the caller's.
        """
        raise NotImplementedError

    def interrupt(self, operation_id: bytes = b"") -> bool:
        """Interrupt that operation, or whichever runs if empty. Returns whether it runs; never hits another."""
        raise NotImplementedError

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the kernel and all processes of its group."""
        raise NotImplementedError

    async def stop(self, grace: float) -> ExitStatus:
        """Let an idle kernel end by itself, kill it after `grace` seconds, and wait until it is gone."""
        raise NotImplementedError

    def resident_bytes(self) -> int:
        """Return its resident memory in bytes, 0 if unknown."""
        raise NotImplementedError
