"""Resident memory of client, controller, host and kernels over a million tasks: it must stay flat.

    python -m benchmarks.million_tasks [--tasks N] [--items N]

First single tasks by `submit`, 10,000 of them on their way at a time, whose answers are read and dropped; then
one `map` over as many items of an endless iterable. Memory is taken ten times on the way.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import deque
from typing import TYPE_CHECKING

import enginery
from benchmarks.on_enginery import resident_by_role

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 10_000
ENGINES = 4


def double(number: int) -> int:
    """Do next to nothing, remotely."""
    return 2 * number


def submitted(client: enginery.Client) -> Iterator[int]:
    """Give out the answers of endless single tasks."""
    window: deque[enginery.Operation[int]] = deque()
    for number in itertools.count():
        if len(window) == WINDOW:
            yield window.popleft().result()
        window.append(client.submit(double, number))


def report(title: str, values: Iterator[int], count: int) -> None:
    """Take `count` values, and print a line with the rate and everybody's memory after each tenth of them."""
    print(f"\n{title}")
    print(f"{'done':>10} {'a second':>10}   resident MB")
    step = max(1, count // 10)
    for done in range(step, count + 1, step):
        began = time.perf_counter()
        deque(itertools.islice(values, step), maxlen=0)
        rate = step / (time.perf_counter() - began)
        memory = "  ".join(f"{role} {size:.0f}" for role, size in resident_by_role().items())
        print(f"{done:>10,} {rate:>10,.0f}   {memory}", flush=True)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million_tasks", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="single tasks, default 1,000,000")
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the map, default 1,000,000")
    options = parser.parse_args()
    with enginery.Cluster(n=ENGINES) as cluster:
        client = cluster.client
        report(f"submit, {ENGINES} engines", submitted(client), options.tasks)
        with client.map(double, itertools.count()) as values:
            report("map", values, options.items)


if __name__ == "__main__":
    main()
