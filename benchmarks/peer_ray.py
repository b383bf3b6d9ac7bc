"""The same cases on Ray, with actors for engines, in an environment of its own; prints its numbers as JSON."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

ray: Any = importlib.import_module("ray")  # untyped, and of another environment
STORE = 1_000_000_000  # bytes of shared memory


class Engine:
    """A process with a state."""

    def __init__(self) -> None:
        """Hold nothing."""
        self.value: object = None

    def nothing(self) -> None:
        """Do nothing, remotely."""

    def push(self, value: object) -> None:
        """Keep a value."""
        self.value = value

    def pull(self) -> object:
        """Return it."""
        return self.value


def nothing() -> None:
    """Do nothing, remotely."""


class _Answer:
    """A reference with the name that `measure` waits by."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> object:
        return ray.get(self._reference)


@contextmanager
def _cluster(engines: int, spare: int) -> Iterator[tuple[list[Any], float]]:
    """Yield actors of a new cluster with CPUs to spare, and the seconds until all could be called."""
    start = time.perf_counter()
    ray.init(
        num_cpus=engines + spare,
        include_dashboard=False,
        logging_level=logging.ERROR,
        object_store_memory=STORE,
    )
    try:
        actors = [ray.remote(num_cpus=1)(Engine).remote() for _ in range(engines)]
        ray.get([actor.nothing.remote() for actor in actors])
        yield actors, time.perf_counter() - start
    finally:
        ray.shutdown()


def main() -> None:
    """Measure."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    numbers: measure.Numbers = {}
    with _cluster(4, spare=4) as (actors, ready):
        numbers["4 ready"] = ready
        one, task = actors[0], ray.remote(num_cpus=1)(nothing)
        numbers |= measure.round_trips(lambda: ray.get(one.nothing.remote()), "apply")
        numbers["in flight"] = measure.calls_per_second(
            lambda number: _Answer(actors[number % len(actors)].nothing.remote())
        )
        numbers["tasks"] = measure.rate(lambda count: ray.get([task.remote() for _ in range(count)]), 5_000)
        for size in measure.SIZES:
            data = np.ones(size * measure.MB, dtype=np.uint8)

            def push(data: object = data) -> object:
                return ray.get(one.push.remote(data))

            numbers[f"push {size} MB"] = measure.throughput(push, size)
            numbers[f"pull {size} MB"] = measure.throughput(lambda: ray.get(one.pull.remote()), size)
    with _cluster(16, spare=0) as (actors, ready):
        numbers["16 ready"] = ready
        numbers |= measure.round_trips(
            lambda: ray.get([actor.nothing.remote() for actor in actors]), "fan-out", 300
        )
    json.dump(numbers, sys.stdout)


if __name__ == "__main__":
    main()
