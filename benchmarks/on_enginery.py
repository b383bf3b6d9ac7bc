"""The cases on Enginery with every default on: TLS, tokens, calls that go directly to hosts."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import psutil

import enginery
from benchmarks import measure

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from enginery.view import EngineView

FEW, MANY = 50_000, 100_000
"""Calls after which resident memory is taken: from the first to the second it must not grow.

The first is enough for four engines to have all the operations that a host keeps, 10,000 of each.
"""


TASKS = 10_000
"""Tasks of one measurement: all of them are submitted before the first answer is waited for."""
ITEMS = 100_000
"""Items of one map."""


def nothing(*_: object) -> None:
    """Do nothing, remotely."""


def measure_enginery() -> measure.Numbers:
    """Measure on 4 engines, then start 16."""
    numbers: measure.Numbers = {}
    start = time.perf_counter()
    with enginery.Cluster(4) as cluster:
        numbers["4 ready"] = time.perf_counter() - start
        client = cluster.client
        numbers |= {f"idle {role}": size for role, size in resident_by_role().items() if role != "client"}
        one = client[0]
        numbers |= measure.round_trips(lambda: one.apply(nothing), "apply")
        numbers |= measure.round_trips(lambda: one.execute("1"), "execute")
        with enginery.connect(cluster.state_dir, direct=False) as relayed:
            numbers |= measure.round_trips(lambda: relayed[0].apply(nothing), "relayed")
        numbers["in flight"] = _in_flight(client, measure.CALLS_IN_FLIGHT)
        numbers["tasks"] = measure.rate(partial(_tasks, client), TASKS)
        numbers["tasks async"] = asyncio.run(_tasks_async(cluster.state_dir))
        numbers["map"] = measure.rate(lambda count: list(client.map(nothing, range(count))), ITEMS)
        for size in measure.SIZES:
            numbers |= _bulk(one, size)
        with enginery.connect(cluster.state_dir, direct=False) as relayed:
            numbers |= {f"relayed {name}": rate for name, rate in _bulk(relayed[0], max(measure.SIZES)).items()}
        numbers |= _beside(one, client[1])
    with enginery.Cluster(4) as cluster:
        numbers |= _growth(cluster.client)
    start = time.perf_counter()
    with enginery.Cluster(16) as cluster:
        numbers["16 ready"] = time.perf_counter() - start
        everyone = cluster.client[:]
        numbers |= measure.round_trips(lambda: everyone.apply(nothing), "fan-out", 1_000)
    return numbers


def _bulk(view: EngineView, size: int) -> measure.Numbers:
    """Return MB/s of `size` MB to an engine and back."""
    data = np.ones(size * measure.MB, dtype=np.uint8)
    return {
        f"push {size} MB": measure.throughput(partial(view.push, {"a": data}), size),
        f"pull {size} MB": measure.throughput(partial(view.pull, "a"), size),
    }


def _beside(one: EngineView, other: EngineView) -> measure.Numbers:
    """Return p99 of calls on an engine while another of the same host is sent, or sends, what is large."""
    data = np.ones(measure.LARGE * measure.MB, dtype=np.uint8)
    call = partial(other.apply, nothing)
    return {
        "beside push p99": measure.round_trips_beside(call, partial(one.push, {"a": data})),
        "beside pull p99": measure.round_trips_beside(call, partial(one.pull, "a")),
    }


def _tasks(client: enginery.Client, count: int) -> None:
    for task in [client.submit(nothing) for _ in range(count)]:
        task.result()


async def _tasks_async(state_dir: Path | None) -> float:
    """Return tasks per second of the client for asyncio: the median of three, after some to warm up."""
    async with enginery.aconnect(state_dir) as client:
        rates = []
        for count in (TASKS // 10, TASKS, TASKS, TASKS):
            start = time.perf_counter()
            await asyncio.gather(*[client.submit(nothing) for _ in range(count)])
            rates.append(count / (time.perf_counter() - start))
        return measure.median(rates[1:])


def _in_flight(client: enginery.Client, count: int) -> float:
    views = [client[engine] for engine in client.ids]
    return measure.calls_per_second(
        lambda number: views[number % len(views)].apply(nothing, block=False), count
    )


def _growth(client: enginery.Client) -> measure.Numbers:
    """Return the memory of every process after FEW and after MANY calls, and what it grew by."""
    _calls(client, FEW)
    few = resident_by_role()
    _calls(client, MANY - FEW)
    many = resident_by_role()
    numbers = {f"{role} after {FEW}": size for role, size in few.items()}
    numbers |= {f"{role} after {MANY}": size for role, size in many.items()}
    return numbers | {f"{role} growth": many[role] - few[role] for role in few}


def _calls(client: enginery.Client, count: int) -> None:
    """Make `count` calls, half of them `apply`, half `execute`, whose records the hosts keep."""
    views = [client[engine] for engine in client.ids]

    def submit(number: int) -> measure.Pending:
        view = views[number % len(views)]
        if number // len(views) % 2:
            return view.execute("1", block=False)
        return view.apply(nothing, block=False)

    measure.calls_per_second(submit, count)


def resident_by_role() -> measure.Numbers:
    """Return resident MB by role; of several processes of a role the largest."""
    me = psutil.Process()
    children = me.children(recursive=True)
    hosts = [child for child in children if _runs(child, "engine_service") and child.children()]
    kernels = [kernel for host in hosts for kernel in host.children()]
    return {
        "client": _largest([me]),
        "controller": _largest(child for child in children if _runs(child, "controller_service")),
        "host": _largest(hosts),
        "kernel": _largest(kernels),
    }


def _runs(process: psutil.Process, module: str) -> bool:
    return any(module in word for word in process.cmdline())


def _largest(processes: Iterable[psutil.Process]) -> float:
    return max(measure.resident(process.pid) for process in processes)
