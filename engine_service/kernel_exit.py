"""How a kernel ended, in words."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a kernel ended: `returncode` as subprocess has it, negative for a signal.

    `ordered` says that Enginery itself killed or stopped it, `cause` why if that was no user's wish;
    `peak_bytes` is its largest resident memory, 0 if unknown; `out_of_memory` that the system's OOM killer
    struck.
    """

    returncode: int
    ordered: bool = False
    cause: str = ""
    peak_bytes: int = 0
    out_of_memory: bool = False

    @property
    def signal(self) -> int:
        """Number of the signal that ended it, 0 if none did."""
        return -self.returncode if self.returncode < 0 else 0

    def describe(self) -> str:
        """Return how it ended, for people: `SIGSEGV (signal 11)`, `exit code 3`."""
        if self.cause:
            return self.cause
        if not self.signal:
            return f"exit code {self.returncode}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:  # a real-time signal has no name
            name = "a signal"
        text = f"{name} (signal {self.signal})"
        if self.signal != signal.SIGKILL or self.ordered:
            return text
        memory = f"; its memory had peaked at {self.peak_bytes >> 20} MB" if self.peak_bytes else ""
        if self.out_of_memory:
            return f"{text}: killed by the system's OOM killer{memory}"
        return f"{text}, not sent by Enginery{memory}"


class KernelExited(Exception):
    """A kernel ended while something waited for it. Carries how, and the last that it wrote to stderr."""

    def __init__(self, status: ExitStatus, last_words: bytes = b"", *, has_begun: bool = True) -> None:
        """Take how it ended, and the end of its stderr since the operation (or the start) began.

        `has_begun` says whether the operation may have, which it was given.
        """
        self.status = status
        self.has_begun = has_begun
        self._last_words = last_words.decode("utf-8", "backslashreplace").strip()
        super().__init__(status.describe() + (f"\n{self._last_words}" if self._last_words else ""))

    def describe(self) -> str:
        """Return how it ended, for people; of one that ended itself with an error, what it said last."""
        text = self.status.describe()
        if self.status.returncode <= 0 or self.status.cause:
            return text
        last = self._last_words.rpartition("\n")[2].strip()
        return f"{text}: {last[:300]}" if last else text


def count_oom_kills() -> int:
    """Return how many processes the OOM killer took in our control group, 0 if nobody counts them."""
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::/")[2].splitlines()[0]
        events = (Path("/sys/fs/cgroup") / group / "memory.events").read_text()
        return int(events.partition("oom_kill ")[2].split()[0])
    except (OSError, IndexError, ValueError):  # no such control group, or one of version 1
        return 0
