"""What starts engines somewhere: the one interface that this machine and other engines of distribution share.

A launcher starts engine *hosts*; they register with the controller by themselves. That alone proves that an
engine lives: what a launcher tells only explains why one did not come, or has gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from enginery._connection_file import ConnectionInfo

STOP_GRACE = 5.0
"""Seconds that a process has to stop after SIGTERM, besides its time to drain, before SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Which engines to start."""

    n: int | None
    """How many; None leaves it to the launcher: one per CPU that it may use."""
    connection_file: Path
    """The controller's engine.json. No launcher puts what is in it into arguments, environment or logs."""
    logs: Path
    """Directory of log files, on this machine."""
    arguments: tuple[str, ...] = ()
    """Arguments of each host, besides the two above."""
    attached: bool = False
    """Whether the engines are to end with this process, even if it is killed."""
    timeout: float = 30.0
    """Seconds in which the launcher must have done its part."""
    grace: float = STOP_GRACE
    """Seconds that a host has to stop after SIGTERM before SIGKILL."""


@dataclass(frozen=True, slots=True)
class HostEvent:
    """What a launcher knows of an engine host."""

    kind: Literal["started", "ended", "lost"]
    """`started`; `ended` if its process ended by itself; `lost` if whatever it ran on has gone."""
    host: str
    """Which one, as people know it."""
    reason: str = ""
    """Why; empty for `started`."""
    log: str = ""
    """The end of its log, as further lines of an error's text, if that can be had."""


class Launcher(Protocol):
    """Starts engines in one place. Methods are called by one thread at a time, and may block.

    EngineryError if the place cannot be reached or refuses.
    """

    def start(self, spec: EngineSpec, connection: Callable[[], ConnectionInfo]) -> int:
        """Start hosts; return how many engines will register. Called once.

        The connection file may come later: `connection` waits for it, and returns what it says.
        """

    def events(self) -> Sequence[HostEvent]:
        """Return what has happened to the hosts so far, oldest first; of many the latest."""

    def last_words(self) -> str:
        """Return the end of the hosts' logs, as more lines of an error's text; empty if there are none here."""

    def signal(self, number: int) -> None:
        """Send a signal to every host; those that have ended are left out."""

    def stop(self, grace: float) -> None:
        """Stop all hosts and start no more: SIGTERM, and SIGKILL after `grace` seconds. Again does nothing."""

    def note(self) -> dict[str, str] | None:
        """Return what `launchers.noted` needs to stop the engines from another process; None if it cannot.

        The note is kept in a file: it holds no secret.
        """
