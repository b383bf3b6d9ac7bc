"""Whether an engine host of this machine has ended, as another process can tell for certain.

A host holds a lock on a file that bears its id, in its cluster's state directory. The system takes the lock
away when the process ends, however it ends; neither a pid that was given again nor a container's own pids
deceive it. The file names the boot of the machine: nothing is said of a host on another machine that shares the
directory.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PREFIX = "host-"


class HostLock:
    """The lock of one host, held until `release` or the end of the process."""

    is_kept = False
    """Whether the file outlives the lock: then the next controller sees that this host has ended."""

    def __init__(self, directory: Path, host_id: str) -> None:
        """Take the lock in `directory`; OSError if that cannot be."""
        self._path = directory / f"{_PREFIX}{host_id}"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(self._fd, _boot(), 0)  # last: a file that is cut says nothing
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Give the lock back, and remove the file unless it is kept."""
        if not self.is_kept:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def has_ended(directory: Path, host_id: str) -> bool:
    """Return whether that host held a lock in `directory` and has ended; False if it cannot be told."""
    try:
        fd = os.open(directory / f"{_PREFIX}{uuid.UUID(host_id)}", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):  # it is not of this machine, or no id that a host gives itself
        return False
    try:
        if not _boot() or os.pread(fd, 64, 0) != _boot():
            return False
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def forget_ended(directory: Path, known: Collection[str]) -> None:
    """Remove the files of hosts that have ended, but for those that are `known` still."""
    for path in directory.glob(f"{_PREFIX}*"):
        host_id = path.name.removeprefix(_PREFIX)
        if host_id not in known and has_ended(directory, host_id):
            path.unlink(missing_ok=True)


def _boot() -> bytes:
    """Return what tells this boot of this machine from any other; empty where the system does not say."""
    try:
        return _BOOT_ID.read_bytes()
    except OSError:
        return b""
