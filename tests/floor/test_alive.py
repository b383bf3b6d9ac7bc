"""A host that has ended is known to have, and none that may live is taken for dead."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from enginery import _alive

if TYPE_CHECKING:
    from pathlib import Path

_HOLD = """
import pathlib, sys
from enginery._alive import HostLock
lock = HostLock(pathlib.Path(sys.argv[1]), sys.argv[2])
print(flush=True)
input()
"""


def test_killed_hosts_are_known_to_have_ended(tmp_path: Path) -> None:
    """However a host ends; while it lives it has not ended, and nothing is removed."""
    host_id = str(uuid.uuid4())
    command = (sys.executable, "-c", _HOLD, str(tmp_path), host_id)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        host.stdout.readline()
        assert not _alive.has_ended(tmp_path, host_id)
        _alive.forget_ended(tmp_path, ())
        assert len(list(tmp_path.iterdir())) == 1
        host.kill()
        host.wait(10)
    assert _alive.has_ended(tmp_path, host_id)
    _alive.forget_ended(tmp_path, {host_id})
    assert _alive.has_ended(tmp_path, host_id)
    _alive.forget_ended(tmp_path, ())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["another machine", "cut", "released", "no id"])
def test_what_cannot_be_told_counts_as_alive(tmp_path: Path, what: str) -> None:
    """Of a host without a lock of this machine's present boot nothing is known."""
    host_id = str(uuid.uuid4())
    lock = _alive.HostLock(tmp_path, host_id)
    path = tmp_path / f"host-{host_id}"
    content = path.read_bytes()
    lock.release()
    match what:
        case "another machine":
            path.write_bytes(content[::-1])
        case "cut":
            path.write_bytes(b"")
        case "no id":
            host_id = f"../{tmp_path.name}/host-{host_id}"
            path.write_bytes(content)
        case _:
            pass
    assert not _alive.has_ended(tmp_path, host_id)
