"""The client for asyncio: every call is awaited, and none blocks the loop."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

import enginery
from enginery.async_operation import AsyncGroup, AsyncOperation
from enginery.async_tasks import AsyncTaskView
from enginery.async_views import AsyncEnginesView, AsyncEngineView
from enginery.errors import CompositeError, ControllerNotRunning, OperationCancelled, QueueFull
from enginery.group import Group
from enginery.operation import Operation
from enginery.tasks import TaskView
from enginery.view import EngineView
from enginery.views import EnginesView
from tests.futures.conftest import SPEED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest_asyncio.fixture
async def client(cluster: enginery.Cluster) -> AsyncIterator[enginery.AsyncClient]:
    async with enginery.aconnect(cluster.state_dir) as client:
        yield client
    assert client.closed


async def _until_idle(client: enginery.AsyncClient) -> None:
    for _ in range(1000):
        if not any(status.pending or status.queue for status in await client[:].queue_status()):
            return
        await asyncio.sleep(0.01)
    pytest.fail("engines are still at it")


_PLAIN = "is had of `operation` or `group`, without waiting"
_WAITS = "waits: `await` it, or take `operation` or `group`, whose methods block"
_SETTING = "calls are awaited, never waited for; errors are as `aconnect(errors=)` says"
_DECORATES = "makes a function of which nobody sees that it must be awaited: `view.apply`, `view.map`"
_INNER = "is not for users"
WITHOUT_TWIN = {
    **dict.fromkeys(("block", "errors", "client"), _SETTING),
    **dict.fromkeys(("remote", "parallel"), _DECORATES),
    "sync_imports": "ends with a block of `with`, which awaits nothing: `view.execute('import ...')`",
    "activate": "is for IPython, whose magics wait by themselves",
    "as_completed": "is `async for`",
    **dict.fromkeys(("result", "exception", "get", "get_dict", "wait", "wait_interactive"), _WAITS),
    **dict.fromkeys(("progress", "partial", "elapsed", "duration"), _PLAIN),
    **dict.fromkeys(("wall_time", "serial_time", "speedup"), _PLAIN),
    **dict.fromkeys(("cancelled", "running", "add_done_callback"), _PLAIN),
    **dict.fromkeys(("ran", "has_failed", "is_cancelled", "is_large", "arrival", "fail", "succeed"), _INNER),
    **dict.fromkeys(("set_result", "set_exception", "set_running_or_notify_cancel"), _INNER),
}
"""What blocking clients, views and operations have and those for asyncio do not, and why."""


def _names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def _parameters(function: Any) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in ("self", "block", "errors")}


@pytest.mark.parametrize(
    ("blocking", "awaitable"),
    [
        (enginery.Client, enginery.AsyncClient),
        (EngineView, AsyncEngineView),
        (EnginesView, AsyncEnginesView),
        (TaskView, AsyncTaskView),
        (Operation, AsyncOperation),
        (Group, AsyncGroup),
    ],
)
def test_everything_has_its_twin(blocking: type, awaitable: type) -> None:
    """Whatever can be called can be awaited, with the same parameters, or the table says why not."""
    assert _names(blocking) - _names(awaitable) <= set(WITHOUT_TWIN)
    for name in _names(blocking) & _names(awaitable):
        one, other = getattr(blocking, name), getattr(awaitable, name)
        if callable(one) and callable(other):
            theirs = _parameters(other)
            missing = _parameters(one).items() - theirs.items()
            assert not missing or theirs.keys() & {"kwargs", "options"}, (
                name,
                missing,
            )  # passed on as they are


def add(x: int, y: int = 1) -> int:
    return x + y


def _engine_id() -> int:
    return enginery.get_engine().id


async def test_calls_of_one_engine(client: enginery.AsyncClient) -> None:
    """Each method of a view returns an awaitable of what the method of that name returns elsewhere."""
    view = client[client.ids[0]]
    await view.reset()
    await view.push({"a": 20, "f": add})
    assert await view["a"] == 20
    assert await view.pull(["a"]) == [20]
    assert (await view.execute("print('hello'); a + 22")).value == 42
    assert (await view.get_result()).stdout == "hello\n"
    assert await view.apply(add, 1, y=2) == 3
    assert await view.apply("f", 1) == 2
    await view.push_function({"g": add})
    assert (await view.pull_function("g"))(1) == 2
    await view.push_serialized({"b": 1})
    assert (await view.pull_serialized("b")).load() == 1
    assert {"a", "b", "f", "g"} <= set(await view.keys())
    await view.set_properties({"p": 1})
    assert (await view.get_properties(), await view.has_properties(["p", "q"])) == ({"p": 1}, [True, False])
    await view.del_properties("p")
    await view.clear_properties()
    assert (await view.queue_status()).pending is None
    assert (await view.clear_queue(), await view.interrupt()) == (0, None)
    assert (view.targets, repr(view).startswith("<AsyncEngineView 0 of")) == ([view.id], True)


async def test_calls_of_several_engines(client: enginery.AsyncClient, tmp_path: Path) -> None:
    """They return awaitables of lists, in target order; what failed on any is one CompositeError."""
    view = client[:]
    assert await view.apply(add, 1) == [2] * len(client)
    assert [answer.value for answer in await view.execute("id")] == view.targets == client.ids
    await view.scatter("part", range(7))
    assert await view.gather("part") == list(range(7))
    assert await view.map(add, range(5), [1] * 5) == [1, 2, 3, 4, 5]
    assert await view.zip_pull(["id", "part"]) == [(0, 1), (range(4), range(4, 7))]
    (tmp_path / "script.py").write_text("c = id")
    await view.run(tmp_path / "script.py")
    assert await client["all"]["c"] == client.ids
    with pytest.raises(CompositeError, match="2 of 2") as failure:
        await view.apply(divmod, 1, 0)
    assert {type(error) for error in failure.value.exceptions} == {ZeroDivisionError}
    with client[client.ids[1:]].executor() as executor:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, _engine_id) == client.ids[1]
    ended = [await operation async for operation in view.apply(add, 2)]
    assert ended == [3] * len(client)
    assert [operation.engine_id for operation in view.apply(add, 2)] == client.ids


async def test_many_calls_at_once(client: enginery.AsyncClient) -> None:
    """`gather` takes operations as they are, and nothing is lost on the way."""
    view = client[client.ids[0]]
    assert await asyncio.gather(*(view.apply(add, n) for n in range(500))) == list(range(1, 501))
    await client.drain()


async def test_who_stops_waiting_stops_the_call(client: enginery.AsyncClient) -> None:
    """A coroutine that is cancelled, here by its timeout, interrupts what it awaits and keeps the namespace."""
    view = client[client.ids[0]]
    await view.push({"kept": 1})
    operation = view.apply(time.sleep, 60 * SPEED)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await operation
    assert await view["kept"] == 1  # it is not cleared with what was queued behind
    with pytest.raises(OperationCancelled):
        await operation
    both = client[:].apply(time.sleep, 60 * SPEED)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(both, 0.2)
    await _until_idle(client)


async def test_a_shielded_call_goes_on(client: enginery.AsyncClient) -> None:
    """As everything in asyncio that is shielded."""
    operation = client[client.ids[0]].apply(time.sleep, 0.5 * SPEED)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(operation), 0.05)
    await operation
    assert operation.done()


async def test_an_operation_is_followed_and_stopped(client: enginery.AsyncClient) -> None:
    """Its events come while it runs; its output, state and end are awaited."""
    view = client[client.ids[0]]
    code = f"print('begun', flush=True); import time; time.sleep({60 * SPEED})"
    operation = view.execute(code)
    async for event in operation.events():
        if "\n" in event.text:
            break
    assert await operation.status() == "running"
    assert (await operation.info()).operation_id == operation.id
    same = await client.operation(operation.id)
    assert await same.stdout() == "begun\n"
    assert operation.id in {info.operation_id for info in await client.operations(state="running")}
    assert await operation.cancel()
    with pytest.raises(OperationCancelled):
        await same
    assert await same.status() == "cancelled"


async def test_what_is_large_is_there_when_it_was_awaited(client: enginery.AsyncClient) -> None:
    """Nobody fetches or decodes megabytes on the loop behind a property."""
    view = client[client.ids[0]]
    operation = view.execute("print('x' * 3_000_000); b'y' * 3_000_000")
    result = await operation
    assert not result.is_partial
    assert (len(result.stdout), len(result.value)) == (3_000_001, 3_000_000)
    assert len(await view.apply(bytes, 3_000_000)) == 3_000_000
    assert [len(value) for value in await client[:].apply(bytes, 2_000_000)] == [2_000_000] * len(client)


async def test_tasks(client: enginery.AsyncClient) -> None:
    """`submit` and `map` run on any engine, and their answers are awaited."""
    first = client.submit(add, 1)
    second = client.submit(add, 2, after=first, label="second")
    assert (await first, await second) == (2, 3)
    assert await client.submit("math.sqrt", 4, after=[first, second]) == 2
    assert [value async for value in client.map(add, range(20))] == list(range(1, 21))
    view = client.tasks(retries=1, after=[first]).options(priority=3)
    assert (await view.submit(add, 4), (await view.execute("1 + 1")).value) == (5, 2)


async def test_an_endless_map_reads_no_further_than_it_must(client: enginery.AsyncClient) -> None:
    """Backpressure holds for `async for` too, and leaving the loop ends what was submitted."""
    read = 0

    def numbers() -> Any:
        nonlocal read
        while True:
            read += 1
            yield read

    with client.map(add, numbers(), max_outstanding=10) as values:
        async for value in values:
            if value == 50:
                break
    assert read <= 60
    await _until_idle(client)


async def test_the_loop_goes_on_while_calls_wait(client: enginery.AsyncClient) -> None:
    """Nothing of a call takes the loop for long, not even waiting for engines that do not come."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    calls = [view.apply(time.sleep, 0.3 * SPEED) for view in client]
    with pytest.raises(TimeoutError, match="of 99 engines"):
        await client.wait_for_engines(99, timeout=0.3)
    await asyncio.gather(*calls)
    ticking.cancel()
    assert ticks > 5
    assert await client.wait_for_engines(len(client)) == client.ids


async def test_more_calls_than_can_be_kept_are_refused(
    client: enginery.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls do not wait by themselves: the error says what whoever makes so many is to await."""
    monkeypatch.setattr("enginery._room.PATIENT_CALLS", 50)
    monkeypatch.setattr("enginery._room.UNSENT_CALLS", 20)
    view = client[client.ids[0]]
    with pytest.raises(QueueFull, match=r"client\.drain"):
        await asyncio.gather(*(view.apply(add, n) for n in range(10_000)))
    await client.drain()
    assert await view.apply(add, 1) == 2


async def test_connecting(tmp_path: Path, cluster: enginery.Cluster) -> None:
    """`await` does as well as `async with`; errors are those of `connect`."""
    client = await enginery.aconnect(cluster.state_dir)
    assert len(client.engines) == len(client) == len(list(client))
    assert client.ids[0] in client
    assert client.cluster_id
    assert client.statistics()["connected"]
    assert repr(client).startswith("<AsyncClient 127.0.0.1")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client)
    await client.close()
    await client.close()
    (tmp_path / "client.json").write_text("{}")
    with pytest.raises(enginery.EngineryError):
        async with enginery.aconnect(tmp_path, timeout=0.2):
            pass


async def test_engines_are_stopped(tmp_path: Path) -> None:
    """`kill` returns when they are gone; with the controller it closes the client."""
    with enginery.Cluster(1, state_dir=tmp_path):
        async with enginery.aconnect(tmp_path) as client:
            await client[0].kill()
            assert client.ids == []
            await client.kill(controller=True)
            assert client.closed
    with pytest.raises(ControllerNotRunning):
        await enginery.aconnect(tmp_path, timeout=0.2)
