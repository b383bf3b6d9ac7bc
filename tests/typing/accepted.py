"""Uses of the client that must type-check, with the types that they must have. Never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

import enginery
from enginery import (
    Display,
    EnginesView,
    EngineView,
    Event,
    ExecuteResult,
    Group,
    Joined,
    MapResult,
    Operation,
    OperationInfo,
    QueueStatus,
    Serialized,
    reference,
)
from enginery.operations import OperationStatus


def double(x: int) -> int:
    return 2 * x


async def later(x: int) -> int:
    return 2 * x


def views(client: enginery.Client) -> None:
    assert_type(client[0], EngineView)
    assert_type(client[:], EnginesView)
    assert_type(client[1:], EnginesView)
    assert_type(client[[0, 2]], EnginesView)
    assert_type(client["all"], EnginesView)
    assert_type(client.ids, list[int])
    assert_type(client.wait_for_engines(2, timeout=1.5), list[int])
    with enginery.connect(timeout=1, reconnect_timeout=2.5, errors="wrap") as other:
        assert_type(other, enginery.Client)


def one(view: EngineView) -> None:
    assert_type(view.execute("1"), ExecuteResult)
    assert_type(view.execute("1", block=True), ExecuteResult)
    assert_type(view.execute("1", block=False), Operation[ExecuteResult])
    assert_type(view.execute("1", timeout=1, grace=0.5, interrupt_only=True), ExecuteResult)
    assert_type(view.execute("1", block=False, timeout=1.5), Operation[ExecuteResult])
    assert_type(view.options(timeout=1, grace=2, interrupt_only=True, keep_queue=True), EngineView)
    assert_type(view.options(any_incarnation=True).apply(double, 1), int)
    assert_type(view.apply(double, 1), int)
    assert_type(view.apply(double, 1, timeout=2), int)
    assert_type(view.apply(double, 1, block=False), Operation[int])
    assert_type(view.apply(double, 1, block=False).result(timeout=1.0), int)
    assert_type(view.apply(later, 1), int)
    assert_type(view.apply(later, 1, block=False), Operation[int])
    assert_type(view.apply("math.sqrt", 4), Any)
    assert_type(view.apply("math.sqrt", 4, block=False), Operation[Any])
    assert_type(view.push({"a": 1}, block=False), Operation[None])
    assert_type(view.pull("a"), Any)
    assert_type(view.pull(["a", "b"]), list[Any])
    assert_type(view.pull(("a",), block=False), Operation[list[Any]])
    assert_type(view.pull_function("f"), Callable[..., Any])
    assert_type(view.pull_serialized("a"), Serialized)
    assert_type(view.pull_serialized(["a"]), list[Serialized])
    assert_type(view.get_result(), ExecuteResult)
    assert_type(view.get_result(3, block=False), Operation[ExecuteResult])
    assert_type(view.keys(), list[str])
    assert_type(view.get_properties(), dict[str, Any])
    assert_type(view.has_properties(["a"]), list[bool])
    assert_type(view.interrupt(), str | None)
    assert_type(view.queue_status(), QueueStatus)
    assert_type(view.clear_queue(), int)
    assert_type(view.kill(block=False), Operation[None])
    assert_type(view.reset(block=False), Operation[None])
    view["a"] = 1
    assert_type(view["a"], Any)


def several(view: EnginesView) -> None:
    assert_type(view.execute("1"), list[ExecuteResult])
    assert_type(view.execute("1", block=False), Group[ExecuteResult])
    assert_type(view.execute("1", block=False).result(), list[ExecuteResult])
    assert_type(view.execute("1", block=False)[0], Operation[ExecuteResult])
    assert_type(view.apply(double, 1), list[int])
    assert_type(view.apply(later, 1), list[int])
    assert_type(view.apply(double, 1, block=False), Group[int])
    assert_type(view.pull("a"), list[Any])
    assert_type(view.pull(["a"]), list[list[Any]])
    assert_type(view.push({"a": 1}), list[None])
    assert_type(view.clear_queue(block=False), Group[int])
    assert_type(view.queue_status(), list[QueueStatus])
    assert_type(view["a"], list[Any])
    assert_type(view.options(timeout=1), EnginesView)
    assert_type(view.apply(double, 1, block=False, timeout=2), Group[int])
    assert_type(view.apply(double, 1, block=False).cancel(), bool)


def spread(view: EnginesView, items: list[int]) -> None:
    assert_type(view.scatter("a", items), list[None])
    assert_type(view.scatter("a", items, dist="cyclic", flatten=True, block=False), Group[None])
    assert_type(view.gather("a"), Any)
    assert_type(view.gather("a", block=False), Joined[Any])
    assert_type(view.zip_pull(["a", "b"]), list[tuple[Any, ...]])
    assert_type(view.map(double, items), list[int])
    assert_type(view.map(double, items, block=False, timeout=1.5), MapResult[int])
    assert_type(view.map(later, items), list[int])
    assert_type(view.map("double", items), list[Any])
    assert_type(view.remote(double)(1), list[int])
    assert_type(view.remote(later)(1), list[int])
    assert_type(view.remote(timeout=5)(double)(1), list[int])
    assert_type(view.parallel(double).map(items), list[int])
    assert_type(view.run("script.py"), list[ExecuteResult])
    assert_type(view.apply(print, reference("a")), list[None])
    with view.options(timeout=5, block=False, errors="wrap") as other, view.sync_imports():
        assert_type(other, EnginesView)
    view.targets = "all"
    view.targets = [0]
    assert_type(view.targets, list[int])
    view.block = False


def functions(view: EngineView) -> None:
    assert_type(view.remote(double)(1), int)
    assert_type(view.remote(block=True)(double)(x=1), int)
    assert_type(view.run("script.py", block=False), Operation[ExecuteResult])


def operations(client: enginery.Client, operation: Operation[int]) -> None:
    assert_type(operation.status, OperationStatus)
    assert_type(operation.cancel(grace=1.5, interrupt_only=True), bool)
    assert_type(operation.interrupt(), bool)
    assert_type(operation.info(), OperationInfo)
    assert_type(operation.stdout, str)
    for event in operation.events(after=3):
        assert_type(event, Event)
    assert_type(client.operation("id"), Operation[Any])
    assert_type(client.operations(state=["running", "queued"], engine_id=0, limit=3), list[OperationInfo])


async def events(operation: Operation[int]) -> None:
    async for event in operation.events():
        assert_type(event.display, Display | None)


async def awaited(client: enginery.Client) -> None:
    assert_type(await client[0].apply(double, 1, block=False), int)
    assert_type(await client[:].apply(double, 1, block=False), list[int])


async def aio() -> None:
    async with enginery.aconnect(timeout=1) as entered:
        assert_type(entered, enginery.AsyncClient)
    client = await enginery.aconnect()
    assert_type(client, enginery.AsyncClient)
    assert_type(client[0], enginery.AsyncEngineView)
    assert_type(client[:], enginery.AsyncEnginesView)
    assert_type(client[0].apply(double, 1), enginery.AsyncOperation[int])
    assert_type(await client[0].apply(later, 1), int)
    assert_type(await client[0].execute("1", timeout=2), ExecuteResult)
    assert_type(await client[0].pull(["a"]), list[Any])
    assert_type(await client[:].apply(double, 1), list[int])
    assert_type(await client[:].execute("1"), list[ExecuteResult])
    assert_type(client[:].keys(), enginery.AsyncGroup[list[str]])
    assert_type(await client.submit(double, 1, retries=2), int)
    assert_type(await client.tasks(retries=2).submit(later, 1), int)
    async for value in client.map(double, range(3)):
        assert_type(value, int)
    async for operation in client[:].apply(double, 1):
        assert_type(operation, enginery.AsyncOperation[int])
        assert_type(await operation.cancel(grace=1), bool)
    assert_type(await client.wait_for_engines(2), list[int])


def executor(client: enginery.Client) -> None:
    with client.executor(4, initializer=print, initargs=(1,)) as pool:
        assert_type(pool, enginery.ClusterExecutor)
        assert_type(pool.submit(double, 1).result(), int)
        assert_type(list(pool.map(double, range(3), chunksize=2, timeout=1)), list[int])
    assert_type(client.tasks(retries=2).executor(), enginery.ClusterExecutor)
