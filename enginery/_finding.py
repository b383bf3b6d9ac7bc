"""What one check of a cluster found, and the commands that mend faults."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

COPY_ANEW = "copy client.json anew from the controller's state directory"
"""What mends most faults on a machine that has nothing but a copy of that file."""


@dataclass(frozen=True)
class Finding:
    """What one check found. It is a fault if there is a command that mends it."""

    check: str
    text: str
    mend: str = ""
    """What to do, a command where there is one; empty if all is well."""
    hides_others: bool = True
    """Whether checks after this fault would only say the same in other words."""

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong."""
        return bool(self.mend)


def start(directory: Path) -> str:
    """Return the command that starts a cluster there."""
    return f"enginery up --state-dir {shlex.quote(str(directory))}"


def restart(directory: Path, between: str = "") -> str:
    """Return the command that starts the cluster there anew, with `between` done while it is down."""
    steps = [f"enginery down --keep --state-dir {shlex.quote(str(directory))}", between, start(directory)]
    return " && ".join(step for step in steps if step)


def set_aside(path: Path) -> str:
    """Return the command that gives a path free, and removes nothing."""
    return f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}"


def make_private(path: Path, mode: str) -> str:
    """Return the command after which a file or directory is this user's, and nobody else can read it."""
    quoted = shlex.quote(str(path))
    try:
        is_own = path.stat().st_uid == os.getuid()
    except OSError:
        is_own = False
    change = f"chmod {mode} {quoted}"
    return change if is_own else f'sudo chown -R "$(id -u)" {quoted} && {change}'
