"""Clocks and numbers. Standard library alone: peers are measured with it in an environment of their own."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1_000_000
ROUND_TRIPS = 5_000
WARM_UP = 500
SIZES = (1, 10, 100)
"""Sizes pushed and pulled, in MB."""
LARGE = 1_000
"""MB of the transfer beside which round trips are measured."""
REPEATS = {1: 20, 10: 8, 100: 3}
IN_FLIGHT = 64
CALLS_IN_FLIGHT = 10_000

Numbers = dict[str, float]
"""Measured numbers by the name of their row, in the row's unit."""


class Pending(Protocol):
    """A call whose answer has not been waited for."""

    def result(self) -> object:
        """Wait for the answer."""


def percentile(samples: list[float], fraction: float) -> float:
    """Return the sample below which `fraction` of them lie."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def median(samples: list[float]) -> float:
    """Return the middle sample."""
    return percentile(samples, 0.5)


def round_trips(call: Callable[[], object], name: str, count: int = ROUND_TRIPS) -> Numbers:
    """Return p50 and p99 in microseconds of `count` calls, one after the other, after a warm-up."""
    for _ in range(min(WARM_UP, count)):
        call()
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e6)
    return {f"{name} p50": percentile(samples, 0.5), f"{name} p99": percentile(samples, 0.99)}


def round_trips_beside(call: Callable[[], object], other: Callable[[], object]) -> float:
    """Return p99 in microseconds of calls, one after the other, for as long as `other` runs in a thread."""
    beside = threading.Thread(target=other)
    samples = []
    beside.start()
    while beside.is_alive():
        start = time.perf_counter()
        call()
        samples.append((time.perf_counter() - start) * 1e6)
    beside.join()
    return percentile(samples, 0.99)


def calls_per_second(submit: Callable[[int], Pending], count: int = CALLS_IN_FLIGHT) -> float:
    """Return calls per second with a window of 64: the oldest is waited for before the next goes out."""
    window: deque[Pending] = deque()
    start = time.perf_counter()
    for number in range(count):
        if len(window) == IN_FLIGHT:
            window.popleft().result()
        window.append(submit(number))
    while window:
        window.popleft().result()
    return count / (time.perf_counter() - start)


def rate(run: Callable[[int], object], count: int) -> float:
    """Return how many a second `run(count)` does: the median of three, after a tenth of it to warm up."""
    run(count // 10)
    return median([count / seconds(lambda: run(count)) for _ in range(3)])


def throughput(action: Callable[[], object], size: int) -> float:
    """Return MB/s of an action that moves `size` MB: the median of several, after one to warm up."""
    action()
    return median([size / seconds(action) for _ in range(REPEATS[size])])


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB, 0 where there is no /proc."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / MB
    except OSError:
        return 0.0
    return 0.0
