"""The same cases on dask.distributed, in an environment of its own; prints its numbers as JSON.

Its defaults for one machine: a scheduler in this process, plain TCP on loopback; one thread for each worker.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import measure

if TYPE_CHECKING:
    from collections.abc import Iterator


distributed: Any = importlib.import_module("distributed")  # untyped, and of another environment


def nothing(*_: object) -> None:
    """Do nothing, remotely."""


@contextmanager
def _cluster(workers: int) -> Iterator[tuple[Any, list[str], float]]:
    """Yield a client of a new cluster, its workers, and the seconds until all of them could be called."""
    start = time.perf_counter()
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        client.run(nothing)
        yield client, sorted(client.scheduler_info(n_workers=-1)["workers"]), time.perf_counter() - start


def _submit(client: Any, worker: str) -> Any:
    return client.submit(nothing, pure=False, workers=[worker])


def main() -> None:
    """Measure."""
    numbers: measure.Numbers = {}
    with _cluster(4) as (client, workers, ready):
        numbers["4 ready"] = ready
        numbers |= measure.round_trips(lambda: _submit(client, workers[0]).result(), "apply", 1_000)
        numbers["in flight"] = measure.calls_per_second(
            lambda number: _submit(client, workers[number % len(workers)]), 3_000
        )
        numbers["tasks"] = measure.rate(
            lambda count: client.gather(client.map(nothing, range(count), pure=False)), 5_000
        )
        numbers["map"] = numbers["tasks"]  # which is how it makes many tasks
        for size in measure.SIZES:
            data = np.ones(size * measure.MB, dtype=np.uint8)
            future = client.scatter(data, workers=[workers[0]], hash=False)

            def push(data: object = data) -> object:
                return client.scatter(data, workers=[workers[0]], hash=False)

            def pull(future: Any = future) -> object:
                return future.result()

            numbers[f"push {size} MB"] = measure.throughput(push, size)
            numbers[f"pull {size} MB"] = measure.throughput(pull, size)
    with _cluster(16) as (client, _, ready):
        numbers["16 ready"] = ready
        numbers |= measure.round_trips(lambda: client.run(nothing), "fan-out", 200)
    json.dump(numbers, sys.stdout)


if __name__ == "__main__":
    main()
