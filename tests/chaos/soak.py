"""A long steady load: `python -m tests.chaos.soak --minutes 30`. Ends with 1 if the memory of anybody grows.

A client works steadily, another reads slowly what comes fast, a third asks for much and is killed. Memory may
grow until the bounds of what is kept are reached; after that it must be flat.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from signal import SIGKILL

import psutil

from tests.chaos.machines import Machines
from tests.chaos.network import Loopback
from tests.chaos.schedule import CONTROLLER

HOST = "host-0"
CLIENTS = ("steady", "slow", "vanishing")
MEASURED = (CONTROLLER, HOST, "steady", "slow")
SAMPLES = 240  # in a run
VANISHING = 4.0  # seconds between two lives of the client that vanishes
GROWTH = 1.05  # of the last quarter of a run over the quarter before: what is more is no noise
SLACK = 6.0  # MB that are noise in any case
_STARTING = 20.0
_LINES = 24  # of the table


def soak(folder: Path, minutes: float, seed: int) -> bool:
    """Run the load and print memory over time; return whether it was flat and nobody died."""
    machines = Machines(
        folder, Loopback(), [HOST], dict.fromkeys(CLIENTS, "tests.chaos.soak_client"), lease=60.0, seed=seed
    )
    try:
        machines.start(CONTROLLER)
        deadline = time.monotonic() + _STARTING
        while not machines.is_ready():
            assert time.monotonic() < deadline, "the controller does not start"
            time.sleep(0.02)
        for name in (HOST, *CLIENTS):
            machines.start(name)
        series = _load(machines, minutes * 60)
        dead = [name for name in (CONTROLLER, HOST, *CLIENTS) if not machines.is_running(name)]
        (folder / "finish").touch()
        endings = {name: machines.wait(name, 30.0) for name in CLIENTS}
    finally:
        machines.close()
    growing = [name for name in MEASURED if not _is_flat(series[name])]
    failed = [name for name, code in endings.items() if code != 0]
    for what, names in (("died", dead), ("failed", failed), ("not flat", growing)):
        if names:
            print(f"BROKEN     {what}: {', '.join(names)}")
    return not dead and not failed and not growing


def _load(machines: Machines, seconds: float) -> dict[str, list[float]]:
    """Sample memory, in MB, while the vanishing client is killed and started again and again."""
    series: dict[str, list[float]] = {name: [] for name in MEASURED}
    print("seconds   " + "".join(f"{name:>12}" for name in MEASURED) + "   (MB)", flush=True)
    start = time.monotonic()
    vanish_at = start + VANISHING
    for number in range(SAMPLES):
        time.sleep(max(0.0, start + (number + 1) * seconds / SAMPLES - time.monotonic()))
        for name in MEASURED:
            process = machines.all[name].process
            if process is not None and process.poll() is None:
                series[name].append(psutil.Process(process.pid).memory_info().rss / 1e6)
        if number % (SAMPLES // _LINES) == 0:
            now = "".join(f"{series[name][-1]:12.1f}" for name in MEASURED if series[name])
            print(f"{time.monotonic() - start:7.0f}   {now}", flush=True)
        if time.monotonic() > vanish_at:
            machines.end("vanishing", SIGKILL)
            machines.start("vanishing")
            vanish_at = time.monotonic() + VANISHING
    return series


def _is_flat(series: list[float]) -> bool:
    """Return whether the last quarter is not above the one before."""
    quarter = len(series) // 4
    before, last = statistics.median(series[-2 * quarter : -quarter]), statistics.median(series[-quarter:])
    return last <= before * GROWTH + SLACK


def main() -> int:
    """Run, and keep notes and logs if something broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (default: 1)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="enginery-soak-"))
    if soak(folder, arguments.minutes, arguments.seed):
        shutil.rmtree(folder)
        return 0
    print(f"logs: {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
