"""What a controller knows again after it was killed, and what it says of engines meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from enginery import _ids, _status
from enginery.v1 import cluster_pb2, engine_pb2, operation_pb2
from tests.controller.fakes import FakeCluster, running, until
from tests.controller.processes import controller_process, finish

if TYPE_CHECKING:
    from pathlib import Path


async def listed(cluster: FakeCluster, **fields: Any) -> list[cluster_pb2.Engine]:
    response = await cluster.cluster.ListEngines(
        cluster_pb2.ListEnginesRequest(**fields), metadata=cluster.metadata
    )
    return list(response.engines)


async def safe(cluster: FakeCluster) -> None:
    """Wait until the journal has everything."""
    journal = cluster.controller.journal
    await until(lambda: journal.committed == journal.appended)


def lease_used(state: Path) -> float:
    """Return what the journal says to have passed of the lease of engine 0."""
    database = sqlite3.connect(state / "journal" / "journal.db")
    try:
        return max((used for (used,) in database.execute("SELECT lease_used FROM engines")), default=0.0)
    finally:
        database.close()


async def test_killed_controller_knows_its_engines_and_results_again(tmp_path: Path) -> None:
    """kill -9, and another on the same directory: the engine is away, comes back, and results are found."""
    state = tmp_path / "state"
    async with controller_process(state) as cluster:
        host = cluster.host()
        welcome = await host.hello(0, incarnation="kernel", memory_limit=1 << 30, enginery_version="1")
        session = await cluster.session()
        done = session.call(0, b"result")
        assert (await session.ask(done)).response == b"result"
        database = sqlite3.connect(state / "journal" / "journal.db")
        try:
            await until(lambda: database.execute("SELECT count(*) FROM results").fetchone()[0])
        finally:
            database.close()
        cluster.process.send_signal(signal.SIGKILL)
        await finish(cluster.process)
    (state / "client.json").unlink()
    async with controller_process(state) as cluster:
        (away,) = await listed(cluster)
        assert (away.state, away.incarnation) == (cluster_pb2.ENGINE_STATE_AWAY, "kernel")
        assert away.enginery_version == "1"
        assert (away.engine_id, away.epoch, away.memory_limit) == (0, welcome.epoch, 1 << 30)
        assert "started again" in away.reason
        session = await cluster.session()
        waiting = session.call(0, b"waits")
        waiting.call_id = 77
        await session.send(calls=[waiting])
        host = cluster.host(host_id=host.host_id)
        again = await host.hello(0, incarnation="kernel", engine_id=0, epoch=welcome.epoch)
        assert (again.engine_id, again.epoch) == (0, welcome.epoch)
        assert again.controller_epoch > welcome.controller_epoch
        assert (await session.reply(waiting)).response == b"waits"
        watch = cluster.cluster.WatchEngines(cluster_pb2.WatchEnginesRequest(), metadata=cluster.metadata)
        await watch.read()
        host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="done")])
        gone = await watch.read()
        assert isinstance(gone, cluster_pb2.WatchEnginesResponse)
        assert gone.events[0].kind == cluster_pb2.ENGINE_EVENT_KIND_GONE
        watch.cancel()
        resent = session.call(0, sent_epoch=welcome.epoch)
        resent.call_id = done.call_id
        assert (await session.ask(resent)).response == b"result"


async def test_restarts_do_not_renew_a_lease(tmp_path: Path) -> None:
    """A dead engine is waited for over restarts, as long as once; then what it was called for is lost.

    That is told by the operation's id alone, though another engine is away and cannot be asked.
    """
    state, name, lease = tmp_path / "state", _ids.OperationIds().mint(), 4.0
    async with running(state, lease=lease) as cluster:
        host = cluster.host()
        host.answer = lambda _call: None
        await host.hello()
        metadata = cluster.to(0, enginery_operation_id=_ids.show(name))
        waiting = asyncio.ensure_future(cluster.engines.Push(engine_pb2.PushRequest(), metadata=metadata))
        await until(lambda: host.calls)
        await host.close()
        await until(lambda: cluster.controller.registry.statistics().away == 1)
        engine = cluster.controller.registry.find(0)
        assert engine is not None
        engine.lease.excuse(-3.0)  # as if so long had passed
        await until(lambda: lease_used(state) > 3.0)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):  # its channel was closed
        await waiting
    lease = 20.0
    async with running(state, lease=lease) as cluster:
        engine = cluster.controller.registry.find(0)
        assert engine is not None
        assert lease - 4.0 < engine.lease.ends - engine.lease.since < lease - 3.0
        other = cluster.host()
        await other.hello()
        await other.close()
        await until(lambda: cluster.controller.registry.statistics().away == 2)
        engine.lease.excuse(-lease)
        await until(lambda: cluster.controller.registry.ids() == [1])
        found = await cluster.engines.GetOperation(
            operation_pb2.GetOperationRequest(operation_id=_ids.show(name)), metadata=cluster.metadata
        )
        assert found.operation.state == operation_pb2.OPERATION_STATE_LOST
        assert found.outcome.error.reason == "ENGINE_LOST"


async def test_who_said_goodbye_is_not_waited_for(tmp_path: Path) -> None:
    """A restarted controller has none of the engines that left, nor their retired ids to give."""
    async with running(tmp_path / "state", save_ids=True) as cluster:
        host = cluster.host()
        await host.hello(0)
        await host.hello(1)
        host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="done")])
        await until(lambda: cluster.controller.registry.ids() == [1])
    async with running(tmp_path / "state", save_ids=True) as cluster:
        assert cluster.controller.registry.ids() == [1]
        assert (await cluster.host().hello(0)).engine_id == 2


async def test_no_journal(tmp_path: Path) -> None:
    """--no-journal: nothing is on disk, and engines are known again by their hellos alone."""
    async with running(tmp_path / "state", journal=False) as cluster:
        host = cluster.host()
        welcome = await host.hello(0, incarnation="kernel")
        session = await cluster.session()
        await session.ask(session.call(0))
        assert not cluster.controller.state.journal.exists()
    async with running(tmp_path / "state", journal=False) as cluster:
        assert await listed(cluster) == []
        host = cluster.host(host_id=host.host_id)
        again = await host.hello(0, incarnation="kernel", engine_id=0, epoch=welcome.epoch)
        assert (again.engine_id, again.epoch) == (0, welcome.epoch)


async def test_a_journal_that_cannot_be_opened_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An error line, and a controller that works."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "journal").write_text("in the place of the directory")
    async with running(tmp_path / "state") as cluster:
        await cluster.host().hello()
        session = await cluster.session()
        assert (await session.ask(session.call(0))).response == b"x"
    assert [record.levelname for record in caplog.records if "cannot be used" in record.getMessage()] == [
        "ERROR"
    ]


@pytest.mark.parametrize("keep", [True, False])
async def test_health_says_not_serving_before_the_end(tmp_path: Path, keep: bool) -> None:
    """Load balancers learn of the end while engines still finish what they run."""
    async with running(tmp_path / "state") as cluster:
        host = cluster.host()
        await host.hello()
        stub = health_pb2_grpc.HealthStub(cluster.client_channel)
        service = health_pb2.HealthCheckRequest(service="enginery.v1.EngineService")
        watch = stub.Watch(service, metadata=cluster.metadata)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        request = cluster_pb2.ShutdownRequest(keep_engines=keep)
        request.grace.FromSeconds(5)
        session = await cluster.session()
        await cluster.cluster.Shutdown(request, metadata=cluster.metadata)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        if not keep:
            await until(lambda: host.dismissals)
            assert host.dismissals[0].grace.seconds == 5
            assert not session.is_over
            host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="drained")])
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await session.end()
        assert _status.from_rpc(error.value).reason == "SHUTTING_DOWN"
