"""ClusterService: listing, watching, facts, and the end."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from enginery import _status
from enginery.v1 import cluster_pb2, engine_pb2, value_pb2
from tests.controller.fakes import FakeCluster, running, until

if TYPE_CHECKING:
    from pathlib import Path


async def listed(cluster: FakeCluster, **fields: Any) -> cluster_pb2.ListEnginesResponse:
    request = cluster_pb2.ListEnginesRequest(**fields)
    response: cluster_pb2.ListEnginesResponse = await cluster.cluster.ListEngines(
        request, metadata=cluster.metadata
    )
    return response


async def test_pages(cluster: FakeCluster) -> None:
    """Pages follow each other by rising id, and what registers between them is not lost."""
    host = cluster.host()
    for slot in range(5):
        await host.hello(slot)
    first = await listed(cluster, page_size=2)
    cluster.controller.registry.unregister(1)
    second = await listed(cluster, page_size=2, page_token=first.next_page_token)
    third = await listed(cluster, page_size=2, page_token=second.next_page_token)
    pages = [[engine.engine_id for engine in page.engines] for page in (first, second, third)]
    assert pages == [[0, 1], [2, 3], [4]]
    assert not third.next_page_token


@pytest.mark.parametrize("token", ["x", "YWZ0ZXI6eA==", "b3BzOjE=", "\u00e4"])
async def test_bad_page_token(cluster: FakeCluster, token: str) -> None:
    """A token that is not ours is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await listed(cluster, page_token=token)
    assert _status.from_rpc(error.value).reason == "BAD_PAGE_TOKEN"


async def test_pages_stay_small(cluster: FakeCluster) -> None:
    """Large properties make short pages, so that a message stays below every client's limit."""
    value = value_pb2.Value(text="x" * 700_000)
    host = cluster.host()
    for slot in range(4):
        await host.hello(slot, properties={"big": value})
    assert [engine.engine_id for engine in (await listed(cluster)).engines] == [0, 1]


async def test_lost_engines_are_listed_on_request(cluster: FakeCluster) -> None:
    """After those that are registered, the newest loss first, with the reason and when; in pages as well."""
    host = cluster.host()
    for slot in range(4):
        await host.hello(slot, properties={"x": value_pb2.Value(text="y")}, memory_limit=5)
    goodbyes = [engine_pb2.Goodbye(engine_id=engine_id, reason=f"bye {engine_id}") for engine_id in (0, 2, 1)]
    host.send(goodbyes=goodbyes)
    await until(lambda: cluster.controller.registry.ids() == [3])
    assert [engine.engine_id for engine in (await listed(cluster)).engines] == [3]
    found: list[cluster_pb2.Engine] = []
    token = ""
    while token or not found:
        page = await listed(cluster, page_size=1, page_token=token, include_lost=True)
        found.extend(page.engines)
        token = page.next_page_token
    assert [engine.engine_id for engine in found] == [3, 1, 2, 0]
    lost = found[1]
    assert (lost.state, lost.reason, lost.memory_limit) == (cluster_pb2.ENGINE_STATE_LOST, "bye 1", 5)
    assert not lost.properties
    assert abs(lost.state_time.ToSeconds() - time.time()) < 10


async def test_states_and_their_reasons(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy, draining, unresponsive and away: since when, and why."""
    host = cluster.host()
    await host.hello()

    async def state() -> tuple[int, str]:
        (engine,) = (await listed(cluster)).engines
        assert engine.HasField("state_time") is bool(engine.reason)
        if engine.reason:
            assert 0 <= time.time() - engine.state_time.ToMilliseconds() / 1e3 < 10
        return engine.state, engine.reason

    async def beat(**status: Any) -> None:
        sequence = len(host.acks)
        statuses = [engine_pb2.EngineStatus(engine_id=0, **status)]
        host.send(heartbeat=engine_pb2.Heartbeat(sequence=sequence, engines=statuses))
        await until(lambda: len(host.acks) > sequence)

    assert await state() == (cluster_pb2.ENGINE_STATE_READY, "")
    await beat(operation_id="x", method="execute")
    assert await state() == (cluster_pb2.ENGINE_STATE_BUSY, "")
    await beat(operation_id="x", method="execute", draining=True)
    assert (await state())[0] == cluster_pb2.ENGINE_STATE_DRAINING
    monkeypatch.setattr("controller_service.lease.SILENCE", 0.0)
    cluster.controller.registry.tick(time.monotonic())
    assert await state() == (cluster_pb2.ENGINE_STATE_UNRESPONSIVE, "no heartbeat for 0 s")
    await host.close()
    await until(lambda: cluster.controller.registry.statistics().away == 1)
    assert await state() == (cluster_pb2.ENGINE_STATE_AWAY, "its connection was lost")


async def test_impossible_grace(cluster: FakeCluster) -> None:
    """A shutdown with a grace below zero is refused, and nothing stops."""
    request = cluster_pb2.ShutdownRequest()
    request.grace.FromSeconds(-1)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.cluster.Shutdown(request, metadata=cluster.metadata)
    assert _status.from_rpc(error.value).reason == "BAD_REQUEST"
    assert cluster.controller.state.is_running()


async def test_watch(cluster: FakeCluster) -> None:
    """First the whole list, then every change, in order."""
    host = cluster.host()
    welcome = await host.hello(0, incarnation="k1")
    watch = cluster.cluster.WatchEngines(cluster_pb2.WatchEnginesRequest(), metadata=cluster.metadata)
    seen: list[cluster_pb2.EngineEvent] = []

    async def read() -> cluster_pb2.WatchEnginesResponse:
        message = await watch.read()
        assert isinstance(message, cluster_pb2.WatchEnginesResponse)
        return message

    snapshot = await read()
    assert (snapshot.snapshot, [event.engine.engine_id for event in snapshot.events]) == (True, [0])

    async def see(count: int) -> list[tuple[str, int]]:
        while len(seen) < count:
            message = await read()
            assert not message.snapshot
            seen.extend(message.events)
        name = cluster_pb2.EngineEventKind.Name
        return [(name(event.kind).removeprefix("ENGINE_EVENT_KIND_"), event.engine.engine_id) for event in seen]

    await host.hello(1)
    host.send(
        kernels_changed=[engine_pb2.KernelChanged(engine_id=0, incarnation="k2", pid=5, reason="SIGKILL")],
        properties_changed=[engine_pb2.PropertiesChanged(engine_id=0)],
        goodbyes=[engine_pb2.Goodbye(engine_id=1, reason="bye")],
    )
    told = [("REGISTERED", 1), ("KERNEL_CHANGED", 0), ("PROPERTIES_CHANGED", 0), ("GONE", 1)]
    assert await see(4) == told
    assert (seen[1].engine.incarnation, seen[1].engine.pid, seen[1].reason) == ("k2", 5, "SIGKILL")
    assert seen[3].reason == "bye"
    assert (seen[3].engine.state, seen[3].engine.reason) == (cluster_pb2.ENGINE_STATE_LOST, "bye")
    await host.close()
    again = cluster.host(host_id=host.host_id)
    assert await see(5) == [*told, ("AWAY", 0)]
    await again.hello(0, incarnation="k2", engine_id=0, epoch=welcome.epoch)
    assert await see(6) == [*told, ("AWAY", 0), ("BACK", 0)]
    observers = cluster.controller.registry.statistics().observers
    watch.cancel()
    await until(lambda: cluster.controller.registry.statistics().observers == observers - 1)


async def test_watch_of_engines_with_large_properties(cluster: FakeCluster) -> None:
    """The first message lists all engines whatever they hold; what has no room in it follows."""
    host = cluster.host()
    large = {"large": value_pb2.Value(text="x" * 900_000)}
    for slot in range(10):
        await host.hello(slot, properties=large)
    watch = cluster.cluster.WatchEngines(cluster_pb2.WatchEnginesRequest(), metadata=cluster.metadata)
    engines: dict[int, cluster_pb2.Engine] = {}
    first = True
    async with asyncio.timeout(10):
        while not engines or not all(engine.properties for engine in engines.values()):
            message = await watch.read()
            assert isinstance(message, cluster_pb2.WatchEnginesResponse)
            assert message.snapshot is first
            assert message.ByteSize() < 4 << 20
            engines.update({event.engine.engine_id: event.engine for event in message.events})
            assert len(engines) == 10
            first = False
    watch.cancel()


async def test_info(cluster: FakeCluster) -> None:
    """The facts of the cluster, and its clock; an engine's version is that of its host."""
    await cluster.host().hello(enginery_version="1.2")
    info = await cluster.cluster.GetClusterInfo(cluster_pb2.GetClusterInfoRequest(), metadata=cluster.metadata)
    assert (info.cluster_id, info.pid) == (cluster.client_info.cluster_id, os.getpid())
    assert (info.engine_count, info.lease.seconds, info.value_limit) == (1, 2, 4 << 30)
    assert info.controller_epoch > 0
    assert abs(info.current_time.ToNanoseconds() / 1e9 - time.time()) < 10
    assert [engine.enginery_version for engine in (await listed(cluster)).engines] == ["1.2"]


@pytest.mark.parametrize("keep", [False, True])
async def test_shutdown(tmp_path: Path, keep: bool) -> None:
    """Engines are told to stop, and waited for, unless they are to be kept; then the controller stops."""
    async with running(tmp_path / "state") as cluster:
        host = cluster.host()
        await host.hello()
        request = cluster_pb2.ShutdownRequest(keep_engines=keep)
        await cluster.cluster.Shutdown(request, metadata=cluster.metadata)
        if not keep:
            await until(lambda: host.dismissals)
            assert not cluster.controller._stopped.is_set()
            host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="dismissed")])
        await cluster.controller.wait_stopped()
        assert bool(host.dismissals) is not keep
        assert not cluster.controller.state.is_running()
        assert (await host.status())[0] is grpc.StatusCode.UNAVAILABLE
