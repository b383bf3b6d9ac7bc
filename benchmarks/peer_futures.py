"""The cases that `concurrent.futures.ProcessPoolExecutor` has: stateless, and on this machine alone."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks import measure

if TYPE_CHECKING:
    from collections.abc import Iterator


def nothing(*_: object) -> None:
    """Do nothing, remotely."""


@contextmanager
def _pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, float]]:
    """Yield a pool of new processes and the seconds until it could be called."""
    start = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        wait([pool.submit(time.sleep, 0.01) for _ in range(workers)])
        yield pool, time.perf_counter() - start


def main() -> None:
    """Measure."""
    numbers: measure.Numbers = {}
    with _pool(4) as (pool, ready):
        numbers["4 ready"] = ready
        numbers |= measure.round_trips(lambda: pool.submit(nothing).result(), "apply")
        numbers["in flight"] = measure.calls_per_second(lambda _: pool.submit(nothing))
        numbers["tasks"] = measure.rate(
            lambda count: wait([pool.submit(nothing) for _ in range(count)]), 20_000
        )
        numbers["map"] = measure.rate(lambda count: list(pool.map(nothing, range(count))), 20_000)
    with _pool(16) as (pool, ready):
        numbers["16 ready"] = ready
        numbers |= measure.round_trips(
            lambda: wait([pool.submit(nothing) for _ in range(16)]), "fan-out", 1_000
        )
    json.dump(numbers, sys.stdout)


if __name__ == "__main__":
    main()
