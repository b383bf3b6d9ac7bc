"""The same cases on ipyparallel, in an environment of its own; prints its numbers as JSON.

Its defaults: ZeroMQ on loopback, messages signed, nothing encrypted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import ipyparallel
import numpy as np

from benchmarks import measure

if TYPE_CHECKING:
    from collections.abc import Iterator


def nothing() -> None:
    """Do nothing, remotely."""


def nothing_of(_: object) -> None:
    """Do nothing with an argument, remotely."""


class _Answer:
    """An AsyncResult with the name that `measure` waits by."""

    def __init__(self, pending: ipyparallel.AsyncResult) -> None:
        self._pending = pending

    def result(self) -> object:
        return self._pending.get()


@contextmanager
def _cluster(engines: int) -> Iterator[tuple[ipyparallel.Client, float]]:
    """Yield a client of a new cluster and the seconds until all engines could be called."""
    start = time.perf_counter()
    with ipyparallel.Cluster(n=engines, log_level=logging.ERROR) as client:
        client.wait_for_engines(engines)
        client[:].apply_sync(nothing)
        yield client, time.perf_counter() - start


def main() -> None:
    """Measure."""
    os.environ["IPYTHONDIR"] = tempfile.mkdtemp()
    numbers: measure.Numbers = {}
    with _cluster(4) as (client, ready):
        numbers["4 ready"] = ready
        one = client[0]
        numbers |= measure.round_trips(lambda: one.apply_sync(nothing), "apply")
        numbers |= measure.round_trips(lambda: one.execute("1", block=True), "execute", 1_000)
        views = [client[engine] for engine in client.ids]
        numbers["in flight"] = measure.calls_per_second(
            lambda number: _Answer(views[number % len(views)].apply_async(nothing))
        )
        balanced = client.load_balanced_view()
        numbers["tasks"] = measure.rate(
            lambda count: balanced.map_sync(nothing_of, range(count), chunksize=1), 2_000
        )
        numbers["map"] = numbers["tasks"]  # its map puts nothing together by default
        for size in measure.SIZES:
            data = np.ones(size * measure.MB, dtype=np.uint8)
            numbers[f"push {size} MB"] = measure.throughput(partial(one.push, {"a": data}, block=True), size)
            numbers[f"pull {size} MB"] = measure.throughput(lambda: one.pull("a", block=True), size)
    with _cluster(16) as (client, ready):
        numbers["16 ready"] = ready
        everyone = client[:]
        numbers |= measure.round_trips(lambda: everyone.apply_sync(nothing), "fan-out", 300)
    json.dump(numbers, sys.stdout)


if __name__ == "__main__":
    main()
