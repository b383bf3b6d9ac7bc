"""The registration stream: hello, welcome, refusal, away and back."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from cryptography import x509

from enginery import _status
from enginery._certificates import make_request
from enginery._direct_token import direct_token
from enginery.v1 import cluster_pb2, engine_pb2, value_pb2
from tests.controller.fakes import PATIENCE, FakeCluster, running, until

if TYPE_CHECKING:
    from pathlib import Path


async def listed(cluster: FakeCluster) -> list[cluster_pb2.Engine]:
    response = await cluster.cluster.ListEngines(cluster_pb2.ListEnginesRequest(), metadata=cluster.metadata)
    return list(response.engines)


async def test_welcome_tells_what_a_host_needs(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Id, epoch, cluster, lease and the digest of the client token; logged with id, ip, port and pid."""
    caplog.set_level(logging.INFO)
    welcome = await cluster.host().hello(direct_addresses=["engines.test:7001"])
    assert (welcome.engine_id, welcome.cluster_id) == (0, cluster.client_info.cluster_id)
    assert (welcome.lease.seconds, welcome.lease.nanos) == (2, 0)
    assert welcome.client_token_digest == hashlib.sha256(cluster.client_info.token.encode()).digest()
    assert 0 < welcome.controller_epoch <= welcome.epoch
    token = direct_token(cluster.client_info.token, "engines.test:7001")
    assert list(welcome.direct_token_digests) == [hashlib.sha256(token.encode()).digest()]
    (engine,) = await listed(cluster)
    (record,) = [record for record in caplog.records if "registered" in record.getMessage()]
    assert record.getMessage() == f"registered (ip 127.0.0.1, port {engine.port}, pid 4321)"
    assert record.__dict__["engine"] == 0


async def test_engines_of_one_host_share_a_stream(cluster: FakeCluster) -> None:
    """Further engines say their hellos on the same stream; calls find their way by engine id."""
    host = cluster.host()
    await host.hello(0)
    await host.hello(1)
    session = await cluster.session()
    for engine_id in (0, 1):
        call = session.call(engine_id, b"for %d" % engine_id)
        assert (await session.ask(call)).response == b"for %d" % engine_id
    assert [call.engine_id for call in host.calls] == [0, 1]


@pytest.mark.parametrize("fields", [{}, {"heartbeat": engine_pb2.Heartbeat(sequence=1)}])
async def test_first_message_without_hello(cluster: FakeCluster, fields: dict[str, object]) -> None:
    """The first message must hold a hello, else PROTOCOL_ERROR."""
    host = cluster.host()
    host.send(**fields)
    code, details = await host.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "first message must hold a hello" in details


async def test_hello_twice(cluster: FakeCluster) -> None:
    """A second hello for a welcome slot ends the stream; the engine is away."""
    host = cluster.host()
    await host.hello(0)
    host.send(hellos=[engine_pb2.Hello(slot=0, host_id=host.host_id, incarnation="other")])
    code, details = await host.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "second hello for slot 0" in details
    await until(lambda: cluster.controller.registry.statistics().away == 1)


async def test_garbage_ends_the_stream_of_its_sender_only(cluster: FakeCluster) -> None:
    """Bytes that are no message are INVALID_ARGUMENT; the other host does not notice."""
    host = cluster.host()
    await host.hello()
    call = cluster.raw_stream("/enginery.v1.ControllerService/RegisterEngine")(
        metadata=cluster.engine_info.metadata
    )
    await call.write(b"\xff\xff\xff")
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not host.over.is_set()


async def test_refusals_leave_the_stream_open(cluster: FakeCluster) -> None:
    """A hello without incarnation, and one that claims a live id, are refused; the next engine is welcome."""
    first = cluster.host()
    welcome = await first.hello()
    host = cluster.host()
    host.send(hellos=[engine_pb2.Hello(slot=5, host_id=host.host_id)])
    claim = engine_pb2.Hello(slot=6, host_id=host.host_id, incarnation="i", engine_id=0, epoch=welcome.epoch)
    host.send(hellos=[claim])
    await until(lambda: len(host.refusals) == 2)
    reasons = {slot: _status.from_bytes(refusal.error).reason for slot, refusal in host.refusals.items()}
    assert reasons == {5: "BAD_REQUEST", 6: "FENCED"}
    assert (await host.hello(7)).engine_id == 1


async def test_away_and_back_keeps_id_and_calls(cluster: FakeCluster) -> None:
    """Calls that were sent on the broken stream, or made while away, get their replies after the return."""
    host = cluster.host()
    host.answer = lambda _call: None
    welcome = await host.hello(incarnation="kernel")
    session = await cluster.session()
    sent, late = session.call(0, b"sent"), session.call(0, b"late")
    await session.send(calls=[sent])
    await until(lambda: host.calls)
    await host.close()
    await until(lambda: cluster.controller.registry.statistics().away == 1)
    await session.send(calls=[late])
    again = cluster.host(host_id=host.host_id)
    back = await again.hello(incarnation="kernel", engine_id=0, epoch=welcome.epoch)
    assert (back.engine_id, back.epoch) == (0, welcome.epoch)
    assert [(await session.reply(call)).response for call in (sent, late)] == [b"sent", b"late"]
    assert [call.request for call in again.calls] == [b"sent", b"late"], "in the order in which they were made"
    assert again.calls[0].operation_id == host.calls[0].operation_id, "by which the host never runs it twice"


async def test_lost_lease_fails_what_waits(cluster: FakeCluster) -> None:
    """After the lease the engine is unregistered and its calls end with ENGINE_LOST."""
    host = cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    session = await cluster.session()
    call = session.call(0)
    await session.send(calls=[call])
    await until(lambda: host.calls)
    await host.close()
    reply = await session.reply(call)
    assert _status.from_bytes(reply.error).reason == "ENGINE_LOST"
    assert await listed(cluster) == []


async def test_newer_stream_of_a_host_supersedes(cluster: FakeCluster) -> None:
    """A half-open old stream does not lock its engine out: it ends, and calls take the new one."""
    old = cluster.host()
    await old.hello(incarnation="kernel")
    new = cluster.host(host_id=old.host_id)
    assert (await new.hello(incarnation="kernel")).engine_id == 0
    code, details = await old.status()
    assert code is grpc.StatusCode.ABORTED
    assert "newer stream of the same host" in details
    session = await cluster.session()
    assert (await session.ask(session.call(0))).response == b"x"
    assert (len(old.calls), len(new.calls)) == (0, 1)
    assert cluster.controller.registry.statistics().away == 0


async def test_goodbye_unregisters(cluster: FakeCluster) -> None:
    """An engine that says goodbye is gone at once; what waited for it ends with ENGINE_STOPPED."""
    host = cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    session = await cluster.session()
    call = session.call(0)
    await session.send(calls=[call])
    await until(lambda: host.calls)
    host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="killed")])
    error = _status.from_bytes((await session.reply(call)).error)
    assert (error.reason, error.metadata["cause"]) == ("ENGINE_STOPPED", "killed")


async def test_heartbeats_show_in_the_list(cluster: FakeCluster) -> None:
    """A heartbeat is acknowledged, and says whether an engine is busy."""
    host = cluster.host()
    await host.hello()
    assert (await listed(cluster))[0].state == cluster_pb2.ENGINE_STATE_READY
    status = engine_pb2.EngineStatus(engine_id=0, operation_id="op", method="apply", queued_count=3)
    host.send(heartbeat=engine_pb2.Heartbeat(sequence=9, engines=[status]))
    await until(lambda: host.acks == [9])
    (engine,) = await listed(cluster)
    assert (engine.state, engine.operation_id, engine.queued_count) == (
        cluster_pb2.ENGINE_STATE_BUSY,
        "op",
        3,
    )


@pytest.mark.parametrize("begun", [{"seconds": 1 << 60}, {"seconds": -1}, {"nanos": -5}])
async def test_times_that_nobody_can_show(cluster: FakeCluster, begun: dict[str, int]) -> None:
    """A host that tells such a time is refused: every client that lists the engines would fail."""
    host = cluster.host()
    await host.hello()
    status = engine_pb2.EngineStatus(engine_id=0)
    status.start_time.SetInParent()
    for name, value in begun.items():
        setattr(status.start_time, name, value)
    host.send(heartbeat=engine_pb2.Heartbeat(sequence=9, engines=[status]))
    code, details = await host.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no time that clients could show" in details


async def test_properties_are_there_before_the_reply(cluster: FakeCluster) -> None:
    """The mirror has the new properties when the caller sees the result of the call that changed them."""
    host = cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    session = await cluster.session()
    call = session.call(0)
    await session.send(calls=[call])
    await until(lambda: host.calls)
    value = value_pb2.Value(text="gpu")
    changed = engine_pb2.PropertiesChanged(engine_id=0, properties={"kind": value})
    reply = engine_pb2.EngineMessage(properties_changed=[changed])
    host.send(properties_changed=list(reply.properties_changed), replies=[])
    host.reply(host.calls[0])
    await session.reply(call)
    assert (await listed(cluster))[0].properties["kind"] == value


async def test_unknown_replies_are_ignored(cluster: FakeCluster) -> None:
    """A reply that nobody waits for, or that another host gives, changes nothing."""
    host, other = cluster.host(), cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    await other.hello()
    session = await cluster.session()
    call = session.call(0, b"mine")
    await session.send(calls=[call])
    await until(lambda: host.calls)
    forged = engine_pb2.EngineMessage().replies.add(
        call_id=host.calls[0].call_id, outcome=1, response=b"forged"
    )
    other.send(replies=[forged])
    other.send(heartbeat=engine_pb2.Heartbeat(sequence=1))
    await until(lambda: other.acks)
    host.reply(host.calls[0])
    assert (await session.reply(call)).response == b"mine"


async def test_client_token_registers_no_engine(cluster: FakeCluster) -> None:
    """client.json may only use, engine.json may only register."""
    stub = cluster.host().stub
    call = stub.RegisterEngine(metadata=cluster.metadata)
    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.cluster.ListEngines(
            cluster_pb2.ListEnginesRequest(), metadata=cluster.engine_info.metadata
        )
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_once_n_registered(cluster: FakeCluster) -> None:
    """Whoever waits for n engines is told when they are there."""
    there = asyncio.Event()
    cluster.controller.registry.once_n_registered(2, there.set)
    await cluster.host().hello()
    assert not there.is_set()
    await cluster.host().hello()
    await asyncio.wait_for(there.wait(), PATIENCE)


async def test_fenced_holder_is_told_to_stop(cluster: FakeCluster) -> None:
    """Of two that claim one id after a restart the later holder stays; the other is dismissed."""
    old, true = cluster.host(), cluster.host()
    old.answer = lambda _call: None
    await old.hello(engine_id=3, epoch=5_000)
    session = await cluster.session()
    call = session.call(3)
    await session.send(calls=[call])
    await until(lambda: old.calls)
    assert (await true.hello(engine_id=3, epoch=9_000)).epoch == 9_000
    await until(lambda: [dismissal.engine_id for dismissal in old.dismissals] == [3])
    assert _status.from_bytes((await session.reply(call)).error).reason == "ENGINE_LOST"
    assert (await session.ask(session.call(3))).response == b"x"


async def test_certificate_for_the_hosts_port(tmp_path: Path) -> None:
    """A request is answered with a certificate of the cluster; one that is none is refused as BAD_REQUEST."""
    async with running(tmp_path / "state", insecure=False) as cluster:
        host = cluster.host()
        _, request = make_request()
        welcome = await host.hello(0, certificate_request=request.decode())
        certificate = x509.load_pem_x509_certificate(welcome.certificate.encode())
        authority = x509.load_pem_x509_certificate(cluster.client_info.ca_pem.encode())
        certificate.verify_directly_issued_by(authority)
        bad = engine_pb2.Hello(slot=1, host_id=host.host_id, incarnation="i", certificate_request="none")
        host.send(hellos=[bad])
        await until(lambda: 1 in host.refusals)
        assert _status.from_bytes(host.refusals[1].error).reason == "BAD_REQUEST"
