"""Values of any size pass through the controller, and leave nothing there; connections may break on the way."""

from __future__ import annotations

import dataclasses
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import enginery
from enginery import _connection_file
from tests.e2e.cutting_relay import CuttingRelay
from tests.e2e.services import controller, host, until
from tests.e2e.test_direct_path import free_port, goes_directly

SIZE = 1_000_000_000
ROOM = 32_000_000
CUTS = (3 * SIZE // 10, 7 * SIZE // 10)
DIRECT_SIZE = 50_000_000
ON_ITS_WAY = 10_000_000  # bytes at most, of a connection
PATTERN = 1_000_003  # bytes that are repeated: no piece is like its neighbour


def _peak(pid: int) -> int:
    """Return the highest resident memory that a process ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _controller() -> int:
    """Return the process id of the controller that this process started."""
    children = psutil.Process().children(recursive=True)
    return next(child.pid for child in children if "controller_service" in child.cmdline())


def _array(size: int) -> Any:
    """Return an array of `size` bytes in Fortran's order."""
    return np.resize(np.arange(PATTERN).astype(np.uint8), size).reshape((10, size // 10)).T


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
                client[0].execute("import zlib")
                client[0]["warm"] = _array(10_000_000)
                assert client[0]["warm"].size == 10_000_000
                process = _controller()
                before = _peak(process)
                big = _array(SIZE)
                checksum, shape = zlib.crc32(big.T), big.shape
                relay.cut_after("up", *CUTS)
                client[0]["big"] = big
                moved = relay.count()
                assert (moved["left"], moved["up"] < 1.05 * SIZE) == (0, True)
                del big  # its memory serves for what comes back
                assert client[0].execute("zlib.crc32(big.T)").value == checksum
                relay.cut_after("down", *CUTS)
                back = client[0]["big"]
                moved = relay.count()
                assert (moved["left"], moved["down"] < 1.05 * SIZE) == (0, True)
                assert (back.dtype, back.shape, back.flags.f_contiguous) == (np.uint8, shape, True)
                assert zlib.crc32(back.T) == checksum
                back[-1, -1] = 1  # writable
                assert _peak(process) - before < ROOM
                assert client.statistics()["reconnects"] == 0, "calls do not share the connection that broke"


def test_a_value_whose_direct_connection_breaks(tmp_path: Path) -> None:
    """It goes on through the controller from where it was: only what was on its way is sent by both."""
    state = tmp_path / "state"
    with ExitStack() as stack:
        stack.enter_context(controller(state))
        port = free_port()
        direct = stack.enter_context(CuttingRelay(f"127.0.0.1:{port}"))
        stack.enter_context(host(state, 1, "--port", str(port), "--advertise", direct.address))
        info = _connection_file.read(state / "client.json", "client")
        relay = stack.enter_context(CuttingRelay(info.address))
        file = tmp_path / "client.json"
        _connection_file.write(file, dataclasses.replace(info, address=relay.address))
        client = stack.enter_context(enginery.connect(file))
        client.wait_for_engines(1)
        big = _array(DIRECT_SIZE)
        client[0]["before"] = big
        for direction in ("up", "down"):
            until(lambda: goes_directly(client), "the direct path")
            direct.cut_after(direction, 4 * DIRECT_SIZE // 10)
            relay.count()
            if direction == "up":
                client[0]["big"] = big
                assert client[0].execute("(big == before).all()").value
            else:
                assert np.array_equal(client[0]["big"], big)
            directly, by_controller = direct.count(), relay.count()
            assert directly["left"] == 0
            assert by_controller[direction] > DIRECT_SIZE // 2
            assert directly[direction] + by_controller[direction] < DIRECT_SIZE + ON_ITS_WAY
