"""Tasks on real engines: placed by the controller, with every default on."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

import enginery
from enginery.errors import (
    DependencyFailed,
    KernelDied,
    OperationCancelled,
    OperationTimedOut,
    TaskLost,
    TaskNotPlaced,
    TaskReject,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(n=3) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: enginery.Cluster) -> enginery.Client:
    """The cluster's client, its engines emptied."""
    cluster.client.wait_for_engines(3, timeout=20)
    cluster.client[:].reset()
    return cluster.client


def square(x: int) -> int:
    return x * x


def where() -> int:
    return int(enginery.get_engine().id)


def test_tasks_run_on_all_engines(client: enginery.Client, tmp_path: Path) -> None:
    """Their values come back, in order; while one engine is busy the others work."""

    def slowly(x: int) -> tuple[int, int]:
        time.sleep(0.02)
        return x, int(enginery.get_engine().id)

    group = enginery.Group([client.submit(slowly, n) for n in range(12)])
    values = group.result(20)
    assert [value for value, _ in values] == list(range(12))
    assert {engine for _, engine in values} == set(client.ids)
    assert [operation.engine_id for operation in group] == [engine for _, engine in values]
    assert {operation.attempts for operation in group} == {1}
    assert group.serial_time >= 12 * 0.02

    def meets(own: Path, others: Path) -> None:
        own.touch()
        while not others.exists():
            time.sleep(0.005)

    here, there = tmp_path / "here", tmp_path / "there"
    enginery.Group([client.submit(meets, here, there), client.submit(meets, there, here)]).result(20)


def test_map_over_engines(client: enginery.Client) -> None:
    """Thousands of items, in order and as they come; an endless iterable; an error at its place."""
    assert list(client.map(square, range(3000))) == [n * n for n in range(3000)]
    assert sorted(client.map(square, range(300), ordered=False, chunksize=7)) == [n * n for n in range(300)]
    with client.map(square, itertools.count()) as values:
        assert list(itertools.islice(values, 500)) == [n * n for n in range(500)]

    def inverse(n: int) -> float:
        return 1 / n

    values_or_errors: list[Any] = list(client.map(inverse, [2, 0, 4], chunksize=3, return_exceptions=True))
    assert values_or_errors[::2] == [0.5, 0.25]
    assert isinstance(values_or_errors[1], ZeroDivisionError)
    assert "in inverse" in str(values_or_errors[1].__cause__)


async def test_coroutine_functions_are_awaited_there(client: enginery.Client) -> None:
    """In tasks, in maps, and in chunks of them."""

    async def twice(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    assert await client.submit(twice, 4) == 8
    assert [value async for value in client.map(twice, range(20), chunksize=6)] == [2 * n for n in range(20)]


def test_short_tasks_do_not_stay_behind_a_long_one(client: enginery.Client, tmp_path: Path) -> None:
    """Many are placed ahead of time; what then lies behind one that takes long is run by free engines."""
    enginery.Group([client.submit(square, n) for n in range(600)]).result(20)
    gate = tmp_path / "gate"

    def wait_for_gate() -> None:
        while not gate.exists():
            time.sleep(0.01)

    first = [client.submit(square, n) for n in range(90)]
    long = client.submit(wait_for_gate)
    rest = [client.submit(square, n) for n in range(600)]
    done = enginery.Group([*first, *rest])
    try:
        in_kernel = 7  # behind the one that waits
        deadline = time.monotonic() + 20
        while done.progress.done < len(done) - in_kernel:
            assert time.monotonic() < deadline, done.progress
            time.sleep(0.01)
        assert not long.done()
    finally:
        gate.touch()
    assert done.result(20) == [n * n for n in (*range(90), *range(600))]


def test_where_chooses_engines_by_their_properties(client: enginery.Client) -> None:
    """Those that have them; a task for which there is none waits, and no longer than it may."""
    client[1].set_properties({"gpu": True, "memory": 16})
    tasks = client.tasks(where={"gpu": True, "memory": 16})
    assert {task.result(20) for task in [tasks.submit(where) for _ in range(6)]} == {1}
    with pytest.raises(TaskNotPlaced, match="no engine"):
        client.tasks(where={"gpu": False}, placement_timeout=0.05).submit(where).result(20)
    later = client.submit(where, where={"colour": "red"})
    client[2].set_properties({"colour": "red"})
    assert later.result(20) == 2


def test_a_rejected_task_runs_elsewhere(client: enginery.Client) -> None:
    """Until no engine is left for it; that is no attempt."""

    def only(wanted: int) -> int:
        here = int(enginery.get_engine().id)
        if here != wanted:
            raise TaskReject(f"not on {here}")
        return here

    task = client.submit(only, 2)
    assert (task.result(20), task.engine_id, task.attempts) == (2, 2, 1)
    with pytest.raises(TaskReject):
        client.submit(only, 99).result(20)
    assert list(client.map(only, [0, 1, 2] * 3)) == [0, 1, 2] * 3


def test_retries_run_a_task_again(client: enginery.Client, tmp_path: Path) -> None:
    """If it raised or was lost with its kernel, as often as was said; the last error is what it ends with."""

    def at_last(mark: Path, times: int, how: str) -> int:
        with mark.open("a") as file:
            file.write("x")
        runs = len(mark.read_text())
        if runs < times and how == "raise":
            raise ValueError(f"run {runs}")
        if runs < times:
            os.kill(os.getpid(), signal.SIGKILL)
        return runs

    task = client.submit(at_last, tmp_path / "raises", 3, "raise", retries=2)
    assert (task.result(20), task.attempts) == (3, 3)
    with pytest.raises(ValueError, match="run 1"):
        client.submit(at_last, tmp_path / "once", 3, "raise").result(20)
    killed = client.submit(at_last, tmp_path / "dies", 2, "die", retries=1)
    assert (killed.result(20), killed.attempts) == (2, 2)


def test_a_poison_task_stops_after_its_retries_and_names_itself(client: enginery.Client) -> None:
    """It does not go through all engines; the error says which task, where and why."""

    def poison() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    task = client.submit(poison, retries=1)
    with pytest.raises(TaskLost, match="lost 2 times") as caught:
        task.result(20)
    assert task.id in str(caught.value)
    with pytest.raises(KernelDied):
        client.submit(poison).result(20)


def test_tasks_come_after_others(client: enginery.Client, tmp_path: Path) -> None:
    """After all of them succeeded; if one fails it is not run, unless any outcome will do."""

    def write(path: Path, seconds: float) -> None:
        time.sleep(seconds)
        path.touch()

    first = [client.submit(write, tmp_path / str(n), 0.05) for n in range(2)]
    group = enginery.Group(first)
    last = client.submit(os.listdir, tmp_path, after=group)
    assert sorted(last.result(20)) == ["0", "1"]
    failing = client.submit(square, "x")
    with pytest.raises(DependencyFailed):
        client.submit(square, 2, after=failing).result(20)
    assert client.tasks(after=failing.id, after_any_outcome=True).submit(square, 3).result(20) == 9


def test_a_task_is_cancelled_wherever_it_is(client: enginery.Client) -> None:
    """Running, on its way or waiting; and its timeout stops it too."""
    sleeping = [client.submit(time.sleep, 60) for _ in range(3)]
    waiting = client.submit(where, where={"no": "such engine"})
    while any(task.status != "running" for task in sleeping):
        time.sleep(0.01)
    tasks: list[enginery.Operation[Any]] = [*sleeping, waiting]
    assert enginery.Group(tasks).cancel()
    for task in tasks:
        with pytest.raises(OperationCancelled):
            task.result(20)
    with pytest.raises(OperationTimedOut):
        client.submit(time.sleep, 60, timeout=0.05).result(20)


def test_closing_a_map_stops_what_it_runs(client: enginery.Client) -> None:
    """So the engines are free at once."""
    with client.map(time.sleep, [60] * 10):
        pass
    began = time.monotonic()
    assert client.submit(square, 4).result(20) == 16
    assert time.monotonic() - began < 10


def test_another_client_has_a_task_by_its_id(cluster: enginery.Cluster, client: enginery.Client) -> None:
    """While it waits, runs, and when it has ended; and what it wrote."""

    def speak(x: int) -> int:
        print("hello")
        time.sleep(0.1)
        return x

    task = client.submit(speak, 7, label="speaks")
    with enginery.connect(cluster.state_dir) as other:
        same = other.operation(task.id)
        assert same.result(20) == 7
        assert (same.stdout, same.attempts) == ("hello\n", 1)
        assert same.engine_id in client.ids
        assert other.operation(task.id).result(20) == 7
        info = same.info()
        assert (info.attempts, info.label) == (1, "speaks")


def test_operations_name_their_functions(client: enginery.Client) -> None:
    """Of calls and tasks, whichever way the function went, and again when it is known there already."""

    def a_function_of_some_size(x: int) -> str:
        return "a text that makes its pickle larger than what is not worth to be sent apart " * x

    done = [client.submit(a_function_of_some_size, 1), client.submit(a_function_of_some_size, 2)]
    done += client[:].apply(a_function_of_some_size, 1, block=False)
    for operation in done:
        operation.result(20)
        assert operation.info().arguments.endswith("test_tasks_on_engines.a_function_of_some_size")


def test_large_values_come_back(client: enginery.Client) -> None:
    """Of single tasks and of chunks; arguments ride up to the size of a message."""
    assert client.submit(bytes, 5 << 20).result(20) == bytes(5 << 20)
    assert [len(value) for value in client.map(bytes, [1 << 20] * 6, chunksize=3)] == [1 << 20] * 6
    assert client.submit(len, bytes(3 << 20)).result(20) == 3 << 20
