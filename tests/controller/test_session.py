"""Session: many calls of one client on one stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from enginery import _ids, _status
from enginery.v1 import cluster_pb2, frame_pb2
from tests.controller.fakes import FakeCluster, echo, running, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_calls_pass_unread_and_in_order(cluster: FakeCluster) -> None:
    """Bytes arrive as they were sent, in order, under new call ids; replies come under the client's own."""
    host = cluster.host()
    await host.hello()
    session = await cluster.session()
    calls = [session.call(0, b"\xff\x00not a message %d" % n) for n in range(300)]
    await session.send(calls=calls)
    for call in calls:
        reply = await session.reply(call)
        assert (reply.response, reply.outcome) == (call.request, frame_pb2.OUTCOME_OK)
    assert [call.request for call in host.calls] == [call.request for call in calls]
    assert len({call.call_id for call in host.calls}) == len(calls)


async def test_operation_ids_and_session_id_are_filled_in(cluster: FakeCluster) -> None:
    """An empty operation id is session and call id; a given one stays; the session is the stream's."""
    host = cluster.host()
    await host.hello()
    session = await cluster.session()
    named = _ids.operation_id(b"otherone", 77)
    first, second = session.call(0), session.call(0, operation_id=named, session_id=b"forged!!")
    await session.ask(first)
    await session.ask(second)
    assert [call.operation_id for call in host.calls] == [_ids.operation_id(b"sessionA", 1), named]
    assert [call.session_id for call in host.calls] == [b"sessionA"] * 2


async def test_options_travel(cluster: FakeCluster) -> None:
    """Options of a call reach the host as they are."""
    host = cluster.host()
    await host.hello()
    session = await cluster.session()
    options = frame_pb2.CallOptions(keep_queue=True, inline_limit=9)
    await session.ask(session.call(0, options=options))
    assert host.calls[0].options == options


async def test_one_bad_call_leaves_the_session_open(cluster: FakeCluster) -> None:
    """Unknown engine, bad operation id, too large a request: a reply with the reason; the stream goes on."""
    session = await cluster.session()
    error = _status.from_bytes((await session.ask(session.call(0))).error)
    assert error.reason == "NO_ENGINES_REGISTERED"
    await cluster.host().hello()
    error = _status.from_bytes((await session.ask(session.call(7))).error)
    assert (error.reason, error.metadata) == ("INVALID_ENGINE_ID", {"engine_id": "7", "engine_ids": "0"})
    error = _status.from_bytes((await session.ask(session.call(0, operation_id=b"short"))).error)
    assert error.reason == "BAD_REQUEST"
    huge = b"x" * ((8 << 20) - 8_000)
    error = _status.from_bytes((await session.ask(session.call(0, huge))).error)
    assert error.reason == "VALUE_TOO_LARGE"
    assert (await session.ask(session.call(0))).outcome == frame_pb2.OUTCOME_OK


async def test_unknown_method_is_the_hosts_to_refuse(cluster: FakeCluster) -> None:
    """A method that the controller does not know is passed on: a newer host may know it."""
    host = cluster.host()
    await host.hello()
    session = await cluster.session()
    call = session.call(0)
    call.method = 999  # type: ignore[assignment]
    assert (await session.ask(call)).outcome == frame_pb2.OUTCOME_OK
    assert host.calls[0].method == 999


@pytest.mark.parametrize("story", ["no hello", "hello twice", "bad session id", "garbage"])
async def test_broken_contract_ends_the_session(cluster: FakeCluster, story: str) -> None:
    """The first message must hold hello and only the first; then the stream ends with INVALID_ARGUMENT."""
    if story == "garbage":
        call = cluster.raw_stream("/enginery.v1.ClusterService/Session")(metadata=cluster.metadata)
        await call.write(b"\xff\xff\xff")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        return
    session = cluster.raw_session()
    if story == "no hello":
        await session.send(calls=[session.call(0)])
    elif story == "bad session id":
        await session.send(hello=cluster_pb2.SessionHello(session_id=b"short"))
    else:
        await session.open()
        await session.send(hello=cluster_pb2.SessionHello(session_id=b"sessionA"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await session.end()
    assert _status.from_rpc(error.value).reason == "PROTOCOL_ERROR"


async def test_half_close_gets_its_replies(cluster: FakeCluster) -> None:
    """A client that only sends no more still gets the replies to its calls, and then the end."""
    host = cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    session = await cluster.session()
    call = session.call(0, b"slow")
    await session.send(calls=[call])
    await session.stream.done_writing()
    await until(lambda: host.calls)
    host.reply(host.calls[0])
    await session.end()
    assert session.replies[call.call_id].response == b"slow"


async def test_client_that_hangs_up_harms_nobody(cluster: FakeCluster) -> None:
    """Its calls go on, their replies are dropped, and the next client is served."""
    host = cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    gone = await cluster.session()
    await gone.send(calls=[gone.call(0, b"orphan")])
    await until(lambda: host.calls)
    await gone.close()
    reference = cluster.controller._switchboard.engine(0)  # type: ignore[union-attr]
    assert reference.statistics().waiting_calls == 1
    host.reply(host.calls[0])
    await until(lambda: reference.statistics().waiting_calls == 0)
    assert reference.statistics().waiting_bytes == 0
    session = await cluster.session()
    call = session.call(0)
    await session.send(calls=[call])
    await until(lambda: len(host.calls) == 2)
    host.reply(host.calls[1])
    assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_OK


async def test_slow_reader_is_cut_off(cluster: FakeCluster) -> None:
    """A client that does not read its replies loses its stream with SLOW_READER; the others go on."""
    host = cluster.host()
    await host.hello()
    host.answer = lambda call: frame_pb2.Reply(
        call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=bytes(2 << 20)
    )
    stream = cluster.cluster.Session(metadata=cluster.metadata)
    await stream.write(cluster_pb2.SessionRequest(hello=cluster_pb2.SessionHello(session_id=b"12345678")))
    calls = [frame_pb2.Call(call_id=n, engine_id=0, method=frame_pb2.METHOD_KEYS) for n in range(60)]
    await stream.write(cluster_pb2.SessionRequest(calls=calls))
    reference = cluster.controller._switchboard.engine(0)  # type: ignore[union-attr]
    await until(lambda: len(host.calls) == 60 and reference.statistics().waiting_calls == 0)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in stream:
            pass
    assert _status.from_rpc(error.value).reason == "SLOW_READER"
    host.answer = echo
    session = await cluster.session()
    assert (await session.ask(session.call(0, b"small"))).response == b"small"


async def test_waiting_calls_are_bounded(tmp_path: Path) -> None:
    """More bytes than --waiting-limit: QUEUE_FULL while connected, ENGINE_AWAY while not; the rest is kept."""
    async with running(tmp_path / "state", waiting_limit=100_000, lease=30.0) as cluster:
        host = cluster.host()
        host.answer = lambda _call: None
        await host.hello()
        session = await cluster.session()
        kept, refused = session.call(0, bytes(60_000)), session.call(0, bytes(60_000))
        await session.send(calls=[kept])
        error = _status.from_bytes((await session.ask(refused)).error)
        assert error.reason == "QUEUE_FULL"
        assert "--waiting-limit" in error.text
        await host.close()
        await until(lambda: cluster.controller.registry.statistics().away == 1)
        again = session.call(0, bytes(60_000))
        assert _status.from_bytes((await session.ask(again)).error).reason == "ENGINE_AWAY"
        assert kept.call_id not in session.replies


async def test_shutdown_ends_sessions_with_a_reason(tmp_path: Path) -> None:
    """A controller that stops fails what waits with SHUTTING_DOWN and says so on the streams."""
    async with running(tmp_path / "state") as cluster:
        host = cluster.host()
        host.answer = lambda _call: None
        await host.hello()
        session = await cluster.session()
        await session.send(calls=[session.call(0)])
        await until(lambda: host.calls)
        await cluster.controller.stop()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await session.end()
        assert _status.from_rpc(error.value).reason == "SHUTTING_DOWN"
        assert (await host.status())[0] is grpc.StatusCode.UNAVAILABLE
