"""Defaults of views and what they do with many engines, on real engines."""

from __future__ import annotations

import array
import ast
import asyncio
import collections
import functools
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import enginery
from enginery import _codec, _parts, _sources, get_engine
from enginery.errors import CompositeError, InvalidEngineID, OperationTimedOut, QueueCleared, RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
    everything: tuple[Any, ...] = (view, single, client)
    for calls in everything:
        with pytest.raises(TypeError, match="block is True or False"):
            calls.block = "no"
        with pytest.raises(ValueError, match="errors is"):
            calls.errors = "hide"
    for call in (view.apply, single.apply):
        with pytest.raises(TypeError, match="block is True or False"):
            call(abs, -1, block="no")  # type: ignore[call-overload]  # it would count as yes
    with pytest.raises(TypeError, match="block is True or False"):
        view.gather("a", block=0)  # type: ignore[call-overload]


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
    view.execute("import time")
    with view.options(timeout=0.1) as quick, view.options(errors="wrap"):
        with pytest.raises(OperationTimedOut):
            view.execute("time.sleep(60)")
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


# ---- many engines


@pytest.mark.parametrize("dist", ["block", "cyclic"])
@pytest.mark.parametrize(
    "items",
    [
        [1, "two", 3.0, None],
        (1, 2),
        range(10),
        "a text",
        b"bytes",
        bytearray(b"bytes"),
        array.array("d", [1, 2, 3, 4]),
        [],
        [[1], [2]],
    ],
    ids=lambda items: f"{type(items).__name__}-{len(items)}",
)
def test_scatter_and_gather(client: enginery.Client, items: Any, dist: Any) -> None:
    """Any sequence comes back equal; its parts are of its type, and equal but for one item."""
    view = client[:]
    view.scatter("part", items, dist)
    parts = view["part"]
    assert {type(part) for part in parts} == {type(items)}
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    back = view.gather("part", dist)
    assert back == (items if isinstance(items, str | bytes | bytearray | array.array) else list(items))


def test_scatter_of_what_is_read_once_and_of_what_has_no_order(client: enginery.Client) -> None:
    """An iterator is read; sets, dictionaries and numbers are refused, and so is an unknown distribution."""
    view = client[:]
    view.scatter("a", (n * n for n in range(5)))
    assert view["a"] == [[0, 1], [4, 9], [16]]
    view.scatter("a", collections.deque("ab"))
    assert view["a"] == [["a"], ["b"], []]
    view.scatter("a", Indexed())  # type: ignore[call-overload]  # iterable all the same
    assert view.gather("a") == [0, 1, 4]
    for wrong in ({1, 2}, {"a": 1}, 5, np.array(5)):
        with pytest.raises(TypeError, match="cannot be split"):
            view.scatter("a", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dist"):
        view.scatter("a", [1], dist="random")  # type: ignore[call-overload]
    with pytest.raises(CompositeError):
        view.gather("nothing")
    view.scatter("a", [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="cyclic"):
        client[[2, 0, 1]].gather("a", "cyclic")


def test_flatten_scatters_single_items_as_themselves(client: enginery.Client) -> None:
    """A part of one item is that item, and gathering gives a list of them."""
    view = client[:]
    view.scatter("rank", range(3), flatten=True)
    assert view["rank"] == [0, 1, 2]
    assert view.gather("rank") == [0, 1, 2]
    waiting = view.scatter("rank", "abcd", flatten=True, block=False)
    assert waiting.result(10) == [None, None, None]
    assert view["rank"] == ["ab", "c", "d"]


@pytest.mark.parametrize("dist", ["block", "cyclic"])
def test_arrays_are_split_along_their_first_axis(client: enginery.Client, dist: Any) -> None:
    """Without a copy for blocks and with one for cyclic parts; gathered they are one array again."""
    array = np.arange(40_000.0).reshape(400, 100)
    for part in _parts.split(array, 3, dist):
        assert np.shares_memory(part, array) is (dist == "block")
        assert len(_codec.encode({"a": part}).parts) == 2  # out of band: pickling copies nothing
    view = client[:]
    view.scatter("a", array, dist)
    assert view.execute("a.shape")[0].value == (134, 100)
    assert np.array_equal(view.gather("a", dist), array)
    assert np.array_equal(view.gather("a", dist, block=False).result(10), array)


@pytest.mark.parametrize("dist", ["block", "cyclic"])
def test_arrays_stay_of_their_kind(client: enginery.Client, dist: Any) -> None:
    """Masks and records too, and empty ones keep shape and dtype; so do tables."""
    view = client[:]
    masked = np.ma.masked_array(np.arange(5), [False, True, False, False, True])
    view.scatter("a", masked, dist)
    back = view.gather("a", dist)
    assert (back.filled(-1).tolist(), type(back)) == ([0, -1, 2, 3, -1], np.ma.MaskedArray)
    records = np.rec.array([(1, 2.0), (3, 4.0), (5, 6.0), (7, 8.0)], names="n,x")  # type: ignore[call-overload]
    view.scatter("a", records, dist)
    assert {type(part) for part in view["a"]} == {np.recarray}
    assert np.array_equal(view.gather("a", dist), records)
    view.scatter("a", np.zeros((0, 4), np.int8), dist)
    assert (view.gather("a", dist).shape, view.gather("a", dist).dtype) == ((0, 4), np.int8)
    table = pd.DataFrame({"a": range(5)})
    view.scatter("a", table, dist)
    assert view.gather("a", dist).equals(table)


def test_zip_pull(client: enginery.Client) -> None:
    """A tuple for each name, of its values in target order; of one name a list."""
    view = client[:]
    view.execute("a, b = id + 1, -id", block=True)
    first, second = view.zip_pull(["a", "b"])
    assert (first, second) == ((1, 2, 3), (0, -1, -2))
    assert view.zip_pull("a") == [1, 2, 3]


class Indexed:
    """A sequence of the old kind, which has no __iter__."""

    def __getitem__(self, index: int) -> int:
        if index > 2:
            raise IndexError(index)
        return index * index


# ---- map


def test_map_gives_each_engine_a_part(client: enginery.Client) -> None:
    """Results in order; several sequences; fewer items than engines; coroutine functions; by name."""
    view = client[:]
    view.push_function({"double": lambda x: 2 * x})
    assert view.map(lambda x: (x, get_engine().id), range(5)) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]
    assert view.map(pow, [1, 2, 3], (n for n in (2, 2, 2))) == [1, 4, 9]
    assert view.map("double", [1, 2]) == [2, 4]
    assert view.map("math.sqrt", [4]) == [2]
    assert view.map(enginery.reference("double"), "ab") == ["aa", "bb"]
    assert view.map(abs, []) == []

    async def later(x: int) -> int:
        return x + 1

    assert view.map(later, np.arange(4)) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="not of one length, but of 2, 3 items"):
        view.map(pow, [1, 2], [1, 2, 3])
    with pytest.raises(TypeError, match="at least one sequence"):
        view.map(abs)
    with pytest.raises(TypeError, match="calls a function"):
        view.map(5, [1])  # type: ignore[call-overload]


def test_map_says_for_which_item_it_failed(client: enginery.Client) -> None:
    """In a note of the error; parts of other engines are done."""
    with pytest.raises(CompositeError) as caught:
        client[:].map(lambda x: 1 / (x - 3), range(6))
    (error,) = caught.value.exceptions
    assert isinstance(error, ZeroDivisionError)
    assert error.__notes__ == ["It was raised for item 3 of the sequence."]
    with pytest.raises(CompositeError) as caught:
        client[:].map("nothing", range(6))
    assert {type(error) for error in caught.value.exceptions} == {NameError}
    with pytest.raises(CompositeError) as caught:
        client[:].map(time.sleep, [0, 0, 60], timeout=0.1)
    assert isinstance(caught.value.exceptions[0], OperationTimedOut)


async def test_map_does_not_have_to_wait(client: enginery.Client) -> None:
    """It is a group then: results in order as they come, all of them at the end, and it can be stopped."""
    mapped = client[:].map(lambda x: x * x, range(7), block=False)
    assert await mapped == [x * x for x in range(7)]
    assert list(mapped.values()) == mapped.result()
    assert mapped.engine_ids == [0, 1, 2]
    assert client[:].map(abs, [], block=False).result() == []
    stuck = client[:].map(time.sleep, [0, 60, 60], block=False)
    assert next(stuck.values()) is None
    stuck.cancel()
    with pytest.raises(CompositeError):
        stuck.result(10)


def test_a_function_is_pickled_once_for_all_engines(client: enginery.Client) -> None:
    """However many parts there are."""
    function = Counted()
    assert client[:].map(function, range(6)) == list(range(6))
    assert Counted.pickled == 1


class Counted:
    """Counts how often it is pickled."""

    pickled = 0

    def __call__(self, x: int) -> int:
        return x

    def __reduce__(self) -> tuple[Any, ...]:
        type(self).pickled += 1
        return functools.partial, (int,)


# ---- functions


def test_remote_functions(client: enginery.Client) -> None:
    """They run on their view's engines, keep name and doc, pass on every argument, and may call themselves."""

    @client[1].remote
    def where(block: int, *, timeout: int = 0) -> tuple[int, int, int]:
        """Say where."""
        return get_engine().id, block, timeout

    assert where(4, timeout=5) == (1, 4, 5)
    assert (where.__wrapped__.__name__, where.__doc__) == ("where", "Say where.")
    assert repr(where) == "<RemoteFunction where on engines [1]>"

    @client[:].remote
    def factorial(n: int) -> int:
        below: Any = factorial(n - 1) if n else 1  # on an engine it is the function itself
        return n * below if n else 1

    assert factorial(5) == [120, 120, 120]

    @client[:].remote(block=False, timeout=0.1)
    def stuck() -> None:
        time.sleep(60)

    group: Any = stuck()
    assert all(isinstance(one.exception(10), OperationTimedOut) for one in group)


def test_parallel_functions(client: enginery.Client) -> None:
    """They get a part of each sequence on each engine, and what they return is put together; map is by item."""
    view = client[:]

    @view.parallel
    def product(a: Any, b: Any) -> Any:
        return a * b

    array = np.arange(10)
    assert np.array_equal(product(array, array), array * array)
    assert product.map(range(4), range(4)) == [0, 1, 4, 9]

    @view.parallel(dist="cyclic", block=False)
    def part(items: list[int]) -> list[int]:
        return items

    group: Any = part(range(7))
    assert group.result(10) == list(range(7))
    assert [operation.result() for operation in group] == [range(0, 7, 3), range(1, 7, 3), range(2, 7, 3)]
    assert view.parallel(sum)(range(6)) == [1, 5, 9]
    assert view.parallel(sum)([]) == []  # no engine is called
    assert repr(view.parallel(sum)) == "<ParallelFunction sum on engines [0, 1, 2]>"
    with pytest.raises(ValueError, match="not of one length"):
        product([1], [])
    with pytest.raises(TypeError, match="got none"):
        product()


# ---- names and source


def test_references_are_the_engines_own(client: enginery.Client) -> None:
    """Anywhere in an argument or a pushed value, as any expression; what is not there is NameError."""
    view = client[:]
    view.execute("rows = [id, id + 1]; table = {'a': [5, 6]}", block=True)
    reference = enginery.reference
    assert view.apply(sum, reference("rows")) == [1, 3, 5]
    assert client[1].apply(lambda *, pair: pair["in"][0], pair={"in": (reference("table['a'][1]"),)}) == 6
    client[0].push({"same": reference("rows")})
    assert client[0].execute("same is rows").value is True
    assert client[0].apply(round, reference("math.pi"), 2) == 3.14
    length: Any = functools.partial(len, reference("rows"))  # type: ignore[arg-type]
    assert client[0].apply(length) == 2
    client[0].execute("rows = [1, 2, 3]")
    assert client[0].apply(length) == 3
    with pytest.raises(NameError, match="nothing"):
        client[0].apply(print, reference("nothing"))
    with pytest.raises(KeyError):
        client[0].apply(print, reference("table['b']"))
    with pytest.raises(SyntaxError):
        reference("a = 1")
    with pytest.raises(TypeError, match="only on an engine"):
        reference("rows")()
    assert repr(reference(" rows ")) == "reference('rows')"


def test_run_compiles_here_first(client: enginery.Client, tmp_path: Path) -> None:
    """A file runs in the namespace; one that is no Python is refused before anything is sent."""
    script = tmp_path / "script.py"
    script.write_bytes("# coding: latin-1\nname = 'é'\nprint(name)\n__name__".encode("latin-1"))
    result = client[0].run(script)
    assert (result.stdout, result.value, client[0]["name"]) == ("é\n", "__main__", "é")
    assert [result.stdout for result in client[:].run(script, block=False).result(10)] == ["é\n"] * 3
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(OperationTimedOut):
        client[0].run(script, timeout=0.05)
    script.write_text("def f(:\n")
    calls = client.statistics()["calls"]
    with pytest.raises(SyntaxError):
        client[:].run(script)
    with pytest.raises(FileNotFoundError):
        client[:].run(tmp_path / "none.py")
    assert client.statistics()["calls"] == calls


def test_imports_are_carried_out_on_engines_too(client: enginery.Client) -> None:
    """Under the names that they have here; not if they failed here; what has no source says so."""
    view = client[:]
    with view.sync_imports():
        import os.path as paths
        import string as text
        from math import sqrt as root

    assert view.execute("paths.sep, text.digits[0], root(9)")[2].value == (paths.sep, text.digits[0], 3)
    assert root(4) == 2
    with pytest.raises(ImportError), client[0].sync_imports():  # noqa: PT012 - the block is what is tested
        import json  # noqa: F401

        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert "json" not in client[0].keys()  # noqa: SIM118 - no dictionary
    with pytest.raises(OSError, match="source"):
        exec("with view.sync_imports():\n    import csv", {"view": view})
    (relative,) = ast.parse("from ..near import a as b").body
    assert isinstance(relative, ast.ImportFrom)
    assert _sources._absolute(relative, "package.inner") == "from package.near import a as b"


def test_lists_of_results_are_shown_engine_by_engine(
    client: enginery.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what their queues hold; in colours at a prompt on a terminal, unless NO_COLOR is set."""
    results = client[:2].execute("print('hi')\nid + 1")
    assert (
        repr(results)
        == "[0] In [1]: print('hi')...\nhi\n[0] Out[1]: 1\n[1] In [1]: print('hi')...\nhi\n[1] Out[1]: 2"
    )
    assert results == list(results)
    assert repr(client[:2].queue_status()) == "[0] idle\n[1] idle"
    running = client[0].execute("import time; time.sleep(60)", block=False)
    waiting = client[0].execute("later", block=False)
    deadline = time.monotonic() + 10
    while (shown := repr(client[:1].queue_status())).count("\n") < 1 or "runs" not in shown:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert shown == "[0] runs execute 'import time; time.sleep(60)'\n[0] waits execute 'later'"
    running.cancel()
    assert isinstance(waiting.exception(10), QueueCleared)
    with pytest.raises(CompositeError):
        client[:1].execute("1/0")
    assert repr(client[:1].get_result()) == "[0] In [3]: 1/0\n[0] raised ZeroDivisionError: division by zero"
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert repr(results).startswith("\033[34m[0]\033[0m \033[32mIn [1]:\033[0m print")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in repr(results)
