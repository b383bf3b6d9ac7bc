"""Values of any size pass through the controller, and leave nothing there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

import enginery
from enginery import _connection_file
from tests.e2e.cutting_relay import CuttingRelay

if TYPE_CHECKING:
    from enginery.view import EngineView

SIZE = 1_000_000_000
ROOM = 32_000_000
CUTS = (3 * SIZE // 10, 7 * SIZE // 10)


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
def test_a_gigabyte_through_the_controller_by_connections_that_break(tmp_path: Path) -> None:
    """1 GB there and 1 GB back, each broken at 30 % and at 70 %: it goes on from where it was, so less than
    1.05 GB travels, and raises the controller's peak of memory by less than 32 MB. Calls have a connection of
    their own, which does not break."""
    with enginery.Cluster(1) as cluster:
        assert cluster.state_dir is not None
        info = _connection_file.read(cluster.state_dir / "client.json", "client")
        with CuttingRelay(info.address) as relay:
            file = tmp_path / "client.json"
            _connection_file.write(file, dataclasses.replace(info, address=relay.address))
            with enginery.connect(file, direct=False) as client:
                _there_and_back(client[0], relay)
                assert client.statistics()["reconnects"] == 0, "calls do not share the connection that broke"


def _there_and_back(view: EngineView, relay: CuttingRelay) -> None:
    view["warm"] = np.ones(10_000_000, dtype=np.uint8)
    assert view["warm"].size == 10_000_000
    controller = _controller()
    before = _peak(controller)
    big = np.ones((SIZE // 10, 10), dtype=np.uint8, order="F")
    big[-1, -1] = 7
    relay.cut_after("up", *CUTS)
    view["big"] = big
    moved = relay.count()
    assert (moved["left"], moved["up"] < 1.05 * SIZE) == (0, True)
    assert view.execute("int(big.sum())").value == SIZE + 6

    relay.cut_after("down", *CUTS)
    back = view["big"]
    moved = relay.count()
    assert (moved["left"], moved["down"] < 1.05 * SIZE) == (0, True)
    assert (back.shape, back.dtype, back.flags.f_contiguous) == (big.shape, big.dtype, True)
    assert np.array_equal(back, big)
    back[-1, -1] = 1  # writable
    assert _peak(controller) - before < ROOM
