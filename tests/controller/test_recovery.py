"""Nothing is lost when a stream breaks: calls go on, answers are found again, hosts learn what is safe."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING
from unittest.mock import ANY

import grpc
import grpc.aio
import pytest

from controller_service.journal import Journal
from controller_service.link import Link
from enginery import _ids, _status
from enginery._alive import HostLock
from enginery._reasons import DeliveryError
from enginery.v1 import cluster_pb2, engine_pb2, frame_pb2, operation_pb2
from tests.controller.fakes import PATIENCE, FakeCluster, FakeHost, running, until
from tests.unit.test_router import FakeReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_new_ids = _ids.OperationIds(b"sessionA")
RELEASED = frame_pb2.Reply(
    outcome=frame_pb2.OUTCOME_RELEASED, error=_status.to_bytes(DeliveryError("OPERATION_RELEASED"))
)


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[FakeCluster]:
    """A cluster with a long lease."""
    async with running(tmp_path / "state", lease=60.0) as made:
        yield made


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[FakeCluster]:
    """A cluster whose clock ticks ten times a second."""
    async with running(tmp_path / "state", lease=0.4) as made:
        yield made


def waiting_bytes(cluster: FakeCluster, engine_id: int = 0) -> int:
    return cluster.controller._switchboard.engine(engine_id).statistics().waiting_bytes  # type: ignore[union-attr]


def silent(_call: frame_pb2.Call) -> None:
    """Answer nothing."""


async def away(cluster: FakeCluster, host: FakeHost) -> None:
    """Cut the connection of a host."""
    await host.close()
    await until(lambda: cluster.controller.registry.statistics().away == 1)


async def gone(cluster: FakeCluster, host: FakeHost) -> None:
    """Have engine 0 say goodbye."""
    host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="enough")])
    await until(lambda: not cluster.controller.registry.ids())


def ended(
    operation_id: bytes, response: bytes = b"it", outcome: frame_pb2.Outcome.ValueType = frame_pb2.OUTCOME_OK
) -> engine_pb2.OperationEnded:
    return engine_pb2.OperationEnded(
        engine_id=0,
        operation_id=operation_id,
        method=frame_pb2.METHOD_EXECUTE,
        outcome=outcome,
        response=response,
    )


# ---- the host's stream


async def test_accepted_operations_are_told_by_name_only(patient: FakeCluster) -> None:
    """What the host has accepted costs nothing but its overhead, and comes again as known, without request."""
    host = patient.host()
    host.answer = silent
    await host.hello(incarnation="kernel")
    session = await patient.session()
    calls = [session.call(0, bytes(50_000)) for _ in range(3)]
    await session.send(calls=calls)
    await until(lambda: len(host.calls) == 3)
    before = waiting_bytes(patient)
    host.send(accepted_count=2)
    await until(lambda: waiting_bytes(patient) < before - 90_000)
    await away(patient, host)
    back = patient.host(host_id=host.host_id)
    back.answer = silent
    await back.hello(incarnation="kernel")
    await until(lambda: len(back.calls) == 3)
    assert [call.known for call in back.calls] == [True, True, False]
    assert [len(call.request) for call in back.calls] == [0, 0, 50_000]
    assert [call.operation_id for call in back.calls] == [call.operation_id for call in host.calls]
    for call in back.calls:
        back.reply(call)
    for sent in calls:
        assert (await session.reply(sent)).outcome == frame_pb2.OUTCOME_OK
    assert waiting_bytes(patient) == 0


async def test_an_inventory_counts_as_accepted(patient: FakeCluster) -> None:
    """What a hello names is told as known, though its acceptance was never heard of."""
    host = patient.host()
    host.answer = silent
    await host.hello(incarnation="kernel")
    session = await patient.session()
    await session.send(calls=[session.call(0, b"one"), session.call(0, b"two")])
    await until(lambda: len(host.calls) == 2)
    await away(patient, host)
    back = patient.host(host_id=host.host_id)
    await back.hello(incarnation="kernel", operation_ids=[host.calls[0].operation_id])
    await until(lambda: len(back.calls) == 2)
    assert [(call.known, call.request) for call in back.calls] == [(True, b""), (False, b"two")]


async def test_thousands_of_calls_go_on_without_holding_up_others(patient: FakeCluster) -> None:
    """They are told again, and later lost, a few at a time; what comes meanwhile stays behind them."""
    host = patient.host()
    host.answer = silent
    await host.hello(incarnation="kernel")
    session = await patient.session()
    calls = [session.call(0, b"one of many") for _ in range(3_000)]
    for first in range(0, len(calls), 500):
        await session.send(calls=calls[first : first + 500])
    await until(lambda: len(host.calls) == len(calls))
    await away(patient, host)
    engine = patient.controller._switchboard.engine(0)  # type: ignore[union-attr]
    later = session.call(0, b"later", operation_id=_ids.OperationIds().mint())
    sent: list[frame_pb2.Call] = []
    link = Link(99, lambda data: sent.extend(engine_pb2.ControllerMessage.FromString(data).calls), print)
    engine.attach(link)
    assert 0 < len(sent) < 1_000
    engine.submit(later, receiver := FakeReceiver())
    await until(lambda: len(sent) == len(calls) + 1)
    assert [call.request for call in sent[-2:]] == [b"one of many", b"later"]
    assert [call.operation_id for call in sent[:-1]] == [call.operation_id for call in host.calls]
    patient.controller.registry.unregister(0)
    assert not receiver.replies, "it is behind thousands"
    await until(lambda: receiver.replies and len(session.replies) == len(calls))


async def test_a_host_that_accepts_too_much_is_cut_off(patient: FakeCluster) -> None:
    """A count beyond the calls of the stream breaks the contract."""
    host = patient.host()
    await host.hello()
    host.send(accepted_count=1)
    assert (await host.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_hosts_learn_what_the_journal_has(quick: FakeCluster) -> None:
    """Replies and `ended` are counted together, and acknowledged once they are committed."""
    host = quick.host()
    await host.hello()
    session = await quick.session()
    call = session.call(0, b"result", "Execute")
    await session.ask(call)
    await session.ask(session.call(0, method="QueueStatus"))
    submitted = _new_ids.mint()
    host.send(ended=[ended(submitted)])
    await until(lambda: host.journaled and host.journaled[-1] == 3)
    journal = quick.controller.journal
    kept = await journal.find(host.calls[0].operation_id)
    assert kept is not None
    assert (kept.engine_id, kept.response, kept.session_id) == (0, b"result", b"sessionA")
    assert (kept.method, kept.outcome) == (frame_pb2.METHOD_EXECUTE, frame_pb2.OUTCOME_OK)
    assert await journal.find(host.calls[1].operation_id) is None, "a control call is no operation"
    assert await journal.find(submitted) is not None


async def test_what_the_journal_had_no_room_for_comes_again(quick: FakeCluster) -> None:
    """It is not told to be safe; once the disk takes records again its host is asked by a new stream."""
    journal = quick.controller.journal
    assert isinstance(journal, Journal)
    host = quick.host()
    await host.hello()
    host.send(ended=[ended(_new_ids.mint())])
    await until(lambda: host.journaled == [1])
    journal._max_pending = 0
    missed = _new_ids.mint()
    host.send(ended=[ended(missed)])
    await until(lambda: journal.dropped == 1)
    host.send(ended=[ended(_new_ids.mint())])
    assert await host.status() == (grpc.StatusCode.UNAVAILABLE, ANY)
    assert host.journaled == [1]
    assert await journal.find(missed) is None


async def test_only_the_engines_own_host_tells_of_ended_operations(quick: FakeCluster) -> None:
    """What a stream says of an engine that it does not connect is ignored."""
    await quick.host().hello()
    other = quick.host()
    await other.hello()
    forged = _new_ids.mint()
    other.send(ended=[ended(forged)])
    await until(lambda: other.journaled == [1])
    assert await quick.controller.journal.find(forged) is None


@pytest.mark.parametrize("outcome", [frame_pb2.OUTCOME_NOT_DELIVERED, frame_pb2.OUTCOME_RELEASED, 99])
async def test_what_has_not_ended_is_not_kept(quick: FakeCluster, outcome: int) -> None:
    """A refusal is no result: the same call may come again."""
    host = quick.host()
    host.answer = lambda call: frame_pb2.Reply(call_id=call.call_id, outcome=outcome)  # type: ignore[arg-type]
    await host.hello()
    session = await quick.session()
    await session.ask(session.call(0))
    await until(lambda: host.journaled == [1])
    assert await quick.controller.journal.find(host.calls[0].operation_id) is None


# ---- the client's stream


async def test_a_client_gets_on_another_stream_what_it_missed(patient: FakeCluster) -> None:
    """A session that breaks and comes again is answered; what was sent before is not sent to the host twice."""
    host = patient.host()
    host.answer = silent
    epoch = (await host.hello()).epoch
    first = await patient.session()
    calls = [first.call(0, b"%d" % number) for number in range(3)]
    await first.send(calls=calls[:2])
    await until(lambda: len(host.calls) == 2)
    await first.close()
    again = await patient.session()
    for call in calls:
        call.sent_epoch = epoch
    await again.send(calls=calls)
    await until(lambda: len(host.calls) == 3)
    assert [call.request for call in host.calls] == [b"0", b"1", b"2"]
    assert not any(call.sent_epoch for call in host.calls)
    for call in host.calls:
        host.reply(call)
    for call in calls:
        assert (await again.reply(call)).response == call.request


async def test_a_newer_stream_of_a_session_supersedes(patient: FakeCluster) -> None:
    """A half-open stream holds nothing: the older ends with SUPERSEDED; its calls are answered on the newer."""
    host = patient.host()
    host.answer = silent
    epoch = (await host.hello()).epoch
    older = await patient.session()
    call = older.call(0, b"mine")
    await older.send(calls=[call])
    await until(lambda: host.calls)
    newer = await patient.session()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await older.end()
    assert _status.from_rpc(error.value).reason == "SUPERSEDED"
    call.sent_epoch = epoch
    await newer.send(calls=[call])
    await newer.send(calls=[newer.call(0, method="QueueStatus", operation_id=_new_ids.mint())])
    await until(lambda: len(host.calls) == 2)
    host.reply(host.calls[0])
    assert (await newer.reply(call)).response == b"mine"


async def test_a_call_of_an_earlier_epoch_is_not_sent(patient: FakeCluster) -> None:
    """Another engine has the id now: what was lost with the old one stays lost, what was done stays done."""
    host = patient.host()
    epoch = (await host.hello()).epoch
    session = await patient.session()
    done, unknown, lost = (session.call(0, b"%d" % number) for number in range(3))
    await session.ask(done)
    host.answer = silent
    await session.send(calls=[lost])
    await until(lambda: len(host.calls) == 2)
    await gone(patient, host)
    assert (await session.reply(lost)).outcome == frame_pb2.OUTCOME_LOST
    new = patient.host()
    assert (await new.hello()).epoch != epoch
    again = await patient.session()
    for call in (done, unknown, lost):
        call.sent_epoch = epoch
    assert (await again.ask(done)).response == b"0"
    errors = [_status.from_bytes((await again.ask(call)).error).reason for call in (unknown, lost)]
    assert errors == ["ENGINE_LOST", "ENGINE_STOPPED"]
    assert not new.calls


async def test_an_engine_of_an_earlier_controller_is_waited_for(tmp_path: Path) -> None:
    """Without a journal a restarted controller does not know it yet; for a while its calls are put off."""
    async with running(tmp_path / "state", journal=False, lease=0.3) as cluster:
        session = await cluster.session()
        call = session.call(0, sent_epoch=1)
        assert _status.from_bytes((await session.ask(call)).error).reason == "ENGINE_AWAY"
        async with asyncio.timeout(PATIENCE):
            while True:
                call = session.call(0, sent_epoch=1)
                if _status.from_bytes((await session.ask(call)).error).reason == "ENGINE_LOST":
                    break


# ---- answers that are kept


async def test_engines_whose_host_process_has_ended_are_not_waited_for(tmp_path: Path) -> None:
    """After the death of controller and host: their ids are free, and calls of that time are lost at once."""
    state = tmp_path / "state"
    async with running(state) as cluster:
        host, other = cluster.host(), cluster.host()
        epoch = (await host.hello()).epoch
        await other.hello()
        directory = cluster.controller.state.processes_directory
        dead, living = HostLock(directory, host.host_id), HostLock(directory, other.host_id)
        os.close(dead._fd)  # as the system does when a process is killed
    async with running(state) as cluster:
        assert cluster.controller.registry.ids() == [1]
        session = await cluster.session()
        reply = await session.ask(session.call(0, sent_epoch=epoch))
        assert _status.from_bytes(reply.error).reason == "ENGINE_LOST"
        lost = await cluster.cluster.ListEngines(
            cluster_pb2.ListEnginesRequest(include_lost=True), metadata=cluster.metadata
        )
        assert [engine.reason for engine in lost.engines if engine.state == cluster_pb2.ENGINE_STATE_LOST]
        assert (await cluster.host().hello()).engine_id == 0
    living.release()


async def test_a_named_call_means_its_engine_after_the_death_of_controller_and_host(tmp_path: Path) -> None:
    """Nobody knows any more whether it has run; so, made again, it is lost, and runs on nobody else."""
    state, name = tmp_path / "state", _ids.show(_new_ids.mint())
    async with running(state) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello()
        waiting = cluster.engines.Keys(
            engine_pb2.KeysRequest(), metadata=cluster.to(0, enginery_operation_id=name)
        )
        await until(lambda: host.calls)
        lock = HostLock(cluster.controller.state.processes_directory, host.host_id)
        os.close(lock._fd)  # as the system does when a process is killed
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):  # its channel was closed
        await waiting
    async with running(state) as cluster:
        another = cluster.host()
        await another.hello()
        again = cluster.to(0, enginery_operation_id=name)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=again)
        assert _status.from_rpc(error.value).reason == "ENGINE_LOST"
        assert not another.calls
        await cluster.host().hello()  # the same id on another engine is another call
        again = cluster.to(1, enginery_operation_id=name)
        await cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=again)


async def test_an_answer_that_its_host_released_comes_from_the_journal(patient: FakeCluster) -> None:
    """The same call again gets its answer, and a Submit of it how it stands; another method is another call."""
    host = patient.host()
    await host.hello()
    operation = _new_ids.mint()
    metadata = patient.to(0, enginery_operation_id=_ids.show(operation))
    first = await patient.engines.Push(engine_pb2.PushRequest(), metadata=metadata)
    host.answer = lambda call: frame_pb2.Reply(
        call_id=call.call_id, outcome=RELEASED.outcome, error=RELEASED.error
    )
    assert await patient.engines.Push(engine_pb2.PushRequest(), metadata=metadata) == first
    submitted = await patient.engines.Submit(engine_pb2.SubmitRequest(), metadata=metadata)
    assert submitted.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    assert (submitted.operation.method, submitted.operation.engine_id) == ("push", 0)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await patient.engines.Keys(engine_pb2.KeysRequest(), metadata=metadata)
    assert _status.from_rpc(error.value).reason == "OPERATION_EXISTS"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await patient.engines.Keys(engine_pb2.KeysRequest(), metadata=patient.to(0))
    assert _status.from_rpc(error.value).reason == "OPERATION_RELEASED"


async def test_a_result_outlives_its_engine(patient: FakeCluster) -> None:
    """Once the engine is gone, the same call is answered from the journal; a new one says that it is gone."""
    host = patient.host()
    await host.hello()
    metadata = patient.to(0, enginery_operation_id=_ids.show(_new_ids.mint()))
    first = await patient.engines.Push(engine_pb2.PushRequest(), metadata=metadata)
    await gone(patient, host)
    assert await patient.engines.Push(engine_pb2.PushRequest(), metadata=metadata) == first
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await patient.engines.Push(engine_pb2.PushRequest(), metadata=patient.to(0))
    assert _status.from_rpc(error.value).reason == "NO_ENGINES_REGISTERED"


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_ran_on_an_engine_does_not_run_on_the_next_of_its_id(
    tmp_path: Path, restarted: bool
) -> None:
    """A call by name whose engine's id another has by now: the journal answers, and it does not run again."""
    name, answer = _new_ids.mint(), engine_pb2.PushResponse(operation_id="ran")
    state = tmp_path / "state"
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(running(state))
        host = cluster.host()
        host.answer = lambda call: frame_pb2.Reply(
            call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=answer.SerializeToString()
        )
        await host.hello()
        metadata = cluster.to(0, enginery_operation_id=_ids.show(name))
        assert await cluster.engines.Push(engine_pb2.PushRequest(), metadata=metadata) == answer
        await gone(cluster, host)
        next_host = cluster.host()
        await next_host.hello(incarnation="next")
        if restarted:
            await stack.aclose()
            cluster = await stack.enter_async_context(running(state))
            next_host = cluster.host()
            await next_host.hello(incarnation="next")
        registered = cluster.controller.registry.find(0)
        assert registered is not None
        assert not registered.is_first
        metadata = cluster.to(0, enginery_operation_id=_ids.show(name))
        assert await cluster.engines.Push(engine_pb2.PushRequest(), metadata=metadata) == answer
        operation = engine_pb2.SubmitRequest(push=engine_pb2.PushRequest())
        submitted = await cluster.engines.Submit(operation, metadata=metadata)
        assert submitted.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED
        assert not next_host.calls
        await cluster.engines.Push(engine_pb2.PushRequest(), metadata=cluster.to(0))
        assert len(next_host.calls) == 1


async def test_a_call_that_means_one_registration_reaches_no_other(patient: FakeCluster) -> None:
    """With `enginery-epoch` a call whose engine is gone is lost, though another has its id by now."""
    host = patient.host()
    epoch = (await host.hello()).epoch
    await patient.engines.Push(engine_pb2.PushRequest(), metadata=patient.to(0, enginery_epoch=str(epoch)))
    await gone(patient, host)
    another = patient.host()
    await another.hello()
    for named in ({}, {"enginery_operation_id": _ids.show(_ids.OperationIds().mint())}):
        metadata = patient.to(0, enginery_epoch=str(epoch), **named)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await patient.engines.Push(engine_pb2.PushRequest(), metadata=metadata)
        assert _status.from_rpc(error.value).reason == "ENGINE_LOST"
    assert not another.calls


async def test_who_lost_an_operation_is_told_again(tmp_path: Path) -> None:
    """Without a journal, too: the loss of an operation is remembered, and told to whoever calls by its id."""
    async with running(tmp_path / "state", journal=False) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello()
        metadata = cluster.to(0, enginery_operation_id=_ids.show(_new_ids.mint()))
        call = cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=metadata)
        await until(lambda: host.calls)
        await gone(cluster, host)
        for waiting in (call, cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=metadata)):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await waiting
            assert _status.from_rpc(error.value).reason == "ENGINE_STOPPED"


async def test_an_answer_is_not_lost_with_the_engine_that_gave_it(patient: FakeCluster) -> None:
    """Who asks again while the engine is away is answered from the journal, at once or when it is lost."""
    host = patient.host()
    epoch = (await host.hello()).epoch
    session = await patient.session()
    answer = engine_pb2.PushResponse(operation_id="done")
    call = session.call(0, answer.SerializeToString(), "Push")
    await session.ask(call)
    metadata = patient.to(0, enginery_operation_id=_ids.show(host.calls[0].operation_id))
    await away(patient, host)
    assert await patient.engines.Push(engine_pb2.PushRequest(), metadata=metadata) == answer
    newer = await patient.session()
    call.sent_epoch = epoch
    fresh = newer.call(0, b"never ran", "Push", operation_id=_new_ids.mint())
    fresh.call_id = 99
    await newer.send(calls=[call, fresh])
    await until(lambda: waiting_bytes(patient) > 1_000)
    patient.controller.registry.unregister(0)
    assert (await newer.reply(call)).response == answer.SerializeToString()
    assert _status.from_bytes((await newer.reply(fresh)).error).reason == "ENGINE_LOST"


async def test_cancel_on_disconnect(patient: FakeCluster) -> None:
    """A caller who says so has its operation cancelled when it stops waiting; any other has not."""
    host = patient.host()
    host.answer = silent
    await host.hello()
    for asked in ("true", "false"):
        metadata = patient.to(0, enginery_cancel_on_disconnect=asked)
        with pytest.raises(grpc.aio.AioRpcError):
            await patient.engines.Keys(engine_pb2.KeysRequest(), metadata=metadata, timeout=0.1)
    await until(lambda: len(host.calls) == 3)
    methods = [call.method for call in host.calls]
    assert methods == [frame_pb2.METHOD_KEYS, frame_pb2.METHOD_CANCEL, frame_pb2.METHOD_KEYS]
    cancel = operation_pb2.CancelRequest.FromString(host.calls[1].request)
    assert cancel.operation_id == _ids.show(host.calls[0].operation_id)
