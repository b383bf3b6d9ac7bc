"""What people do every day, over a real cluster: the rows of docs/features.md."""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tqdm import tqdm

import enginery
from enginery import get_engine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(n=3) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: enginery.Cluster) -> enginery.Client:
    """The cluster's client, its engines emptied."""
    cluster.client[:].reset()
    return cluster.client


def test_views_by_index(client: enginery.Client) -> None:
    """One engine answers with a value, several with a list, in the order in which they were named."""
    assert client.ids == [0, 1, 2]
    assert len(client) == 3
    assert client[0].pull("id") == 0
    assert client[-1].pull("id") == 2
    assert client[::2].pull("id") == [0, 2]
    assert client[[2, 0]].pull("id") == [2, 0]
    assert client["all"].pull("id") == [one.pull("id") for one in client] == [0, 1, 2]


async def test_results_are_futures(client: enginery.Client) -> None:
    """They are waited for in every way: all, the first, by engine, with callbacks, in coroutines."""
    view = client[:]
    group = view.apply(lambda: get_engine().id, block=False)
    called = threading.Event()
    group.add_done_callback(lambda _: called.set())
    assert await group == group.get(10) == [0, 1, 2]
    assert group.get_dict() == {0: 0, 1: 1, 2: 2}
    assert called.wait(10)
    assert group.progress.fraction == 1
    assert concurrent.futures.wait(group, 10).not_done == set()
    uneven = view.apply(lambda: time.sleep(60 * get_engine().id), block=False)
    done, not_done = uneven.wait(10, return_when=concurrent.futures.FIRST_COMPLETED)
    assert ({one.engine_id for one in done}, len(not_done)) == ({0}, 2)
    assert uneven.partial() == {0: None}
    with pytest.raises(TimeoutError):
        uneven.result(0.01)
    assert uneven.cancel()
    assert {one.engine_id async for one in uneven} == {0, 1, 2}
    _, *errors = uneven.get(return_exceptions=True)
    assert all(isinstance(error, enginery.OperationCancelled) for error in errors)


def test_progress_is_shown_on_a_terminal_alone(
    client: enginery.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a bar of Enginery's, or by tqdm around anything that gives results as they come."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    group = enginery.Group([client.submit(abs, -x) for x in range(5)])
    assert group.wait_interactive(10)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert group.wait_interactive(10)
    assert "5/5" in terminal.getvalue()
    with tqdm(group.as_completed(), file=io.StringIO()) as bar:
        assert {operation.result() for operation in bar} == set(range(5))
        assert (bar.n, bar.total) == (5, 5)
    assert list(tqdm(client.map(abs, range(5)), file=io.StringIO())) == list(range(5))


def test_errors_of_one_and_of_many(client: enginery.Client) -> None:
    """The exception itself, from the remote traceback; of several one group, of which each engine is told."""
    with pytest.raises(ZeroDivisionError) as one:
        client[0].execute("def f(x):\n    return 1 / x\n\nf(0)")
    assert "line 2, in f" in str(one.value.__cause__)
    with pytest.raises(enginery.CompositeError) as many:
        client[:].apply(lambda: [1, 2][get_engine().id])
    assert "[2:apply]: IndexError: list index out of range" in str(many.value)
    assert many.value.split(IndexError)[1] is None
    with pytest.raises(enginery.CompositeError, match="in 1 of 3 tasks"):
        enginery.Group([client.submit(divmod, 1, x) for x in range(3)]).result(10)


def test_a_map_is_lazy_and_says_each_error_at_its_place(client: enginery.Client) -> None:
    """In order or as values come, in chunks or one by one; errors as values; endless ones can be closed."""
    items = [1, 0, 4, "a"]
    values: list[Any] = list(client.map(lambda x: 4 // x, items, return_exceptions=True, chunksize=3))
    assert values[::2] == [4, 1]
    assert [type(value) for value in values[1::2]] == [ZeroDivisionError, TypeError]
    mapped = client.map(lambda x: 4 // x, [1, 0, 4])
    assert next(mapped) == 4
    with pytest.raises(ZeroDivisionError):
        next(mapped)
    assert list(mapped) == [1]
    assert sorted(client.map(pow, range(50), itertools.repeat(2), ordered=False)) == [x * x for x in range(50)]
    read: list[int] = []

    def count() -> Iterator[int]:
        for x in itertools.count():
            read.append(x)
            yield x

    with client.map(abs, count(), max_outstanding=9) as endless:
        assert list(itertools.islice(endless, 20)) == list(range(20))
    assert len(read) <= 20 + 9


def test_times(client: enginery.Client) -> None:
    """What the engines took together, and what the caller waited."""
    group = client[:].apply(time.sleep, 0.05, block=False)
    group.wait(10)
    assert group.serial_time >= 3 * 0.05
    assert group.elapsed == group.wall_time >= 0.05
    assert group.speedup == pytest.approx(group.serial_time / group.wall_time)


def test_one_large_value_for_all(client: enginery.Client) -> None:
    """As an argument and pushed, in one upload; each engine has a copy of its own, to write to."""
    view, array = client[:], np.arange(1 << 18)
    view.push({"a": array})
    view.execute("a[0] = id + 1")
    mine = enginery.reference("a")
    assert view.apply(lambda a, other: int(a[0] + other[-1]), mine, array) == [(1 << 18) + x for x in range(3)]
