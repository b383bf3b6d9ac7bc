"""Defaults of views and what they do with many engines, on real engines."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

import enginery
from enginery.errors import InvalidEngineID, OperationTimedOut, RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(n=3) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: enginery.Cluster) -> Iterator[enginery.Client]:
    """The cluster's client, its engines emptied."""
    cluster.client.wait_for_engines(3, timeout=20)
    cluster.client[:].reset(block=True)
    yield cluster.client
    cluster.client.block = True


# ---- defaults


def test_block_is_a_default_of_client_and_view(client: enginery.Client) -> None:
    """A call that says nothing goes by its view, and the view by its client; items are there at once anyway."""
    view, single = client[:], client[0]
    client.block = False
    view["a"] = 2
    group: Any = view.pull("a")
    assert isinstance(group, enginery.Group)
    assert group.result(10) == [2, 2, 2]
    assert isinstance(single.pull("a"), enginery.Operation)
    assert (single["a"], view["a"]) == (2, [2, 2, 2])
    assert view.pull("a", block=True) == [2, 2, 2]
    view.block = True
    assert (view.block, single.block) == (True, False)
    assert view.pull("a") == [2, 2, 2]
    client.block, single.block = True, False
    assert isinstance(single.pull("a"), enginery.Operation)
    with pytest.raises(TypeError, match="block is True or False"):
        view.block = "no"  # type: ignore[assignment]


def test_targets_may_be_set(client: enginery.Client) -> None:
    """To whatever a client can be indexed with; what is no engine leaves them as they were."""
    view = client[:]
    view.targets = [2, 0]
    assert view.pull("id") == [2, 0]
    view.targets = 1
    assert view.pull("id") == [1]
    view.targets = slice(1, None)
    assert (view.targets, len(view)) == ([1, 2], 2)
    with pytest.raises(InvalidEngineID, match="there are: 0, 1, 2"):
        view.targets = [7]
    assert view.targets == [1, 2]
    view.targets = "all"
    assert "all: [0, 1, 2]" in repr(view)


def test_options_hold_within_their_block(client: enginery.Client) -> None:
    """For the view itself and for the one that `options` returns; within one another; not afterwards."""
    view = client[0]
    with view.options(timeout=0.1) as quick, view.options(errors="wrap"):
        with pytest.raises(OperationTimedOut):
            view.execute("import time; time.sleep(60)")
        with pytest.raises(RemoteError):
            view.execute("1/0")
        with pytest.raises(ZeroDivisionError):
            quick.execute("1/0")
    with pytest.raises(ZeroDivisionError):
        view.execute("1/0; time.sleep(0.2)")
    view.execute("time.sleep(0.2)")
    with view.options(block=False):
        operation: Any = view.execute("1")
    assert operation.result(10).value == 1
    assert client[:].options(block=False).keys().result(10)[0] == ["id", "mpi", "time"]  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="no options"), view:
        pass
    with pytest.raises(ValueError, match="errors is"):
        view.options(errors="hide")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        view.options(timeout=-1)


async def test_options_are_those_of_one_coroutine(client: enginery.Client) -> None:
    """Others that use the same view meanwhile do not see them, nor do threads; views of its engines do."""
    view = client[:]
    seen: list[bool] = []

    async def other() -> None:
        seen.append(view._in_force() is view)

    task = asyncio.create_task(other())
    with view.options(timeout=5) as quick:
        await task
        thread = threading.Thread(target=lambda: seen.append(view._in_force() is view))
        thread.start()
        thread.join()
        assert view._in_force() is quick
        assert next(iter(view))._options.timeout == 5
    assert seen == [True, True]
    assert view._in_force() is view
