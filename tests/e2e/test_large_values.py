"""Values of any size pass through the controller, and leave nothing there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

import enginery

SIZE = 1_000_000_000
ROOM = 32_000_000


def _peak(pid: int) -> int:
    """Return the highest resident memory that a process ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _controller() -> int:
    """Return the process id of the controller that this process started."""
    children = psutil.Process().children(recursive=True)
    return next(child.pid for child in children if "controller_service" in child.cmdline())


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peaks of memory from /proc (Linux)")
def test_a_gigabyte_through_the_controller() -> None:
    """1 GB there and 1 GB back raise the controller's peak by less than 32 MB: a few chunks at a time."""
    with enginery.Cluster(1) as cluster:
        view = cluster.client[0]
        view["warm"] = np.ones(10_000_000, dtype=np.uint8)
        assert view["warm"].size == 10_000_000
        controller = _controller()
        before = _peak(controller)
        view["big"] = np.ones(SIZE, dtype=np.uint8)
        assert view.execute("int(big.sum())").value == SIZE
        back = view["big"]
        assert back.size == SIZE
        assert back[-1] == 1
        assert _peak(controller) - before < ROOM
