"""What a controller knows again after it was killed, and what it says of engines meanwhile."""

from __future__ import annotations

import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from enginery import _status
from enginery.v1 import cluster_pb2, engine_pb2
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


async def test_killed_controller_knows_its_engines_and_results_again(tmp_path: Path) -> None:
    """kill -9, and another on the same directory: the engine is away, comes back, and results are found."""
    state = tmp_path / "state"
    async with controller_process(state) as cluster:
        host = cluster.host()
        welcome = await host.hello(0, incarnation="kernel", memory_limit=1 << 30)
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
