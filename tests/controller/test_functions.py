"""Functions that calls name by digest: they travel once to a host, whoever calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import grpc.aio
import pytest

from controller_service import router, task_rows
from enginery import _function_window, _ids
from enginery._function_window import Function, digest
from enginery._methods import ANY_ENGINE
from enginery._status import from_bytes
from enginery.v1 import engine_pb2, frame_pb2, value_pb2
from tests.controller.fakes import FakeCluster, FakeSession, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from controller_service.scheduler import Scheduler


def made(data: bytes = b"function") -> frame_pb2.Function:
    """Return a function as it travels."""
    pickle = value_pb2.Pickle(data=data).SerializeToString()
    return frame_pb2.Function(digest=digest(pickle), pickle=pickle)


def task(session: FakeSession, request: bytes, function: frame_pb2.Function, **fields: Any) -> frame_pb2.Call:
    """Return a task that names a function."""
    options = frame_pb2.TaskOptions(retries=1)
    return session.call(ANY_ENGINE, request, task=options, function_digest=function.digest, **fields)


def tasks_of(cluster: FakeCluster) -> Scheduler:
    """Return the controller's scheduler."""
    switchboard = cluster.controller._switchboard
    assert switchboard is not None
    return switchboard.tasks.scheduler


def silent(_call: frame_pb2.Call) -> None:
    """Answer nothing."""


async def test_a_function_travels_once(cluster: FakeCluster) -> None:
    """By any call of any session, to one engine, many or any; calls that need it come behind it, unchanged."""
    host = cluster.host()
    await host.hello(0)
    await host.hello(1)
    function = made()
    for session in (await cluster.session(), await cluster.session(b"sessionB")):
        many = session.call(0, b"many", function_digest=function.digest)
        many.targets.extend(frame_pb2.Target(engine_id=one) for one in (0, 1))
        next(session._numbers)  # the second target's
        calls = [session.call(1, b"one", function_digest=function.digest), task(session, b"any", function)]
        await session.send(functions=[function], calls=[many, calls[0]])
        await session.send(calls=[calls[1]])  # it is kept
        for call in (many, *calls):
            assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_OK
    assert list(host.functions) == [function]
    assert {call.function_digest for call in host.calls} == {function.digest}
    assert sorted(call.request for call in host.calls) == [b"any"] * 2 + [b"many"] * 4 + [b"one"] * 2


async def test_what_is_not_kept_is_an_error_of_its_call(cluster: FakeCluster) -> None:
    """A function that did not come, and one of a call that applies nothing; the stream goes on."""
    await cluster.host().hello()
    session = await cluster.session()
    function = made()
    for call in (session.call(0, function_digest=function.digest), task(session, b"x", function)):
        error = from_bytes((await session.ask(call)).error)
        assert (error.reason, error.metadata["field"]) == ("BAD_REQUEST", "function_digest")
    await session.send(functions=[function])
    refused = await session.ask(session.call(0, method="Execute", function_digest=function.digest))
    assert from_bytes(refused.error).reason == "BAD_REQUEST"
    reply = await session.ask(session.call(0, function_digest=function.digest))
    assert reply.outcome == frame_pb2.OUTCOME_OK


async def test_a_function_that_is_another_ends_the_stream(cluster: FakeCluster) -> None:
    """Its digest is proven before anybody uses it, since whoever names it has not seen it."""
    session = await cluster.session()
    await session.send(functions=[frame_pb2.Function(digest=digest(b"other"), pickle=b"pickle")])
    with pytest.raises(grpc.aio.AioRpcError, match="another digest"):
        await session.end()


async def test_functions_are_dropped_on_both_streams_alike(cluster: FakeCluster) -> None:
    """With more than are kept, each comes again when it is needed, and no call lacks its function."""
    host = cluster.host()
    await host.hello()

    def answer(call: frame_pb2.Call) -> frame_pb2.Reply:
        pickle = host.window.find(call.function_digest).pickle
        return frame_pb2.Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=pickle)

    host.answer = answer
    functions = [made(b"%d" % number) for number in range(6)]
    with mock.patch.object(_function_window, "MAX_FUNCTIONS", 4):
        session = await cluster.session()
        for turn in range(3):
            for function in functions:
                calls = [session.call(0, function_digest=function.digest) for _ in range(turn + 1)]
                await session.send(functions=[function], calls=calls)
                for call in calls:
                    assert (await session.reply(call)).response == function.pickle
    assert len(host.functions) == 18


async def test_another_stream_is_told_again(cluster: FakeCluster) -> None:
    """A host that comes back gets the function of what it does not know, once more."""
    host = cluster.host()
    await host.hello(incarnation="same")
    host.answer = silent
    session = await cluster.session()
    function = made()
    call = session.call(0, b"x", function_digest=function.digest)
    await session.send(functions=[function], calls=[call])
    await until(lambda: host.calls)
    await host.close()
    back = cluster.host(host_id=host.host_id)
    await back.hello(incarnation="same", engine_id=0, epoch=host.welcomes[0].epoch)
    assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_OK
    assert list(back.functions) == [function]
    assert back.calls[0].function_digest == function.digest


async def test_a_function_counts_as_a_part_of_its_call(cluster: FakeCluster) -> None:
    """For what may wait, and for what one call may hold."""
    session = await cluster.session()
    function = made(b"x" * 5_000)
    await session.send(functions=[function], calls=[task(session, b"waits", function)])
    scheduler = tasks_of(cluster)
    await until(lambda: len(scheduler))
    assert scheduler.statistics().size > 5_000
    await cluster.host().hello()
    with mock.patch.object(router, "_MAX_FRAME", 4_000):
        reply = await session.ask(session.call(0, b"x", function_digest=function.digest))
    assert from_bytes(reply.error).reason == "VALUE_TOO_LARGE"


async def test_a_task_in_the_journal_has_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes it over has never seen the function: its request stands alone then. To its client, who
    names the function by its digest, it is the same task; a task with another function is not."""
    monkeypatch.setattr(task_rows, "YOUNG", 0.0)
    async with running(tmp_path) as cluster:
        session = await cluster.session()
        function, other = made(), made(b"other")
        arguments = value_pb2.Pickle(data=b"arguments")
        request = engine_pb2.ApplyRequest(pickled_arguments=arguments).SerializeToString()
        call = task(session, request, function)
        await session.send(functions=[function], calls=[call])
        journal = cluster.controller.journal
        await until(lambda: journal.is_task_written(_ids.operation_id(b"sessionA", call.call_id)))
        await until(lambda: journal.committed == journal.appended)
    async with running(tmp_path) as cluster:
        session = await cluster.session()
        scheduler = tasks_of(cluster)
        await until(lambda: len(scheduler))
        wrong = task(session, request, other)
        wrong.call_id = call.call_id
        await session.send(functions=[function, other], calls=[wrong])
        assert from_bytes((await session.reply(wrong)).error).reason == "OPERATION_EXISTS"
        del session.replies[call.call_id]
        await session.send(calls=[call])
        host = cluster.host()
        await host.hello()
        assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_OK
        sent = engine_pb2.ApplyRequest.FromString(host.calls[0].request)
        assert (sent.pickled_function.data, host.calls[0].function_digest) == (b"function", b"")
        assert not host.functions


def test_a_routed_call_counts_its_function_until_its_host_has_it() -> None:
    """Then neither is kept."""
    one = router.Router(0, 10_000)
    function, apply = Function(b"d", b"12345"), frame_pb2.METHOD_APPLY
    call = router.RoutedCall(1, mock.Mock(), mock.Mock(), 1, apply, b"o" * 16, b"", b"frame", function)
    one.add(call)
    assert one.statistics().waiting_bytes == 10 + router.CALL_OVERHEAD
    one.accepted(call)
    assert (call.function, one.statistics().waiting_bytes) == (None, router.CALL_OVERHEAD)
    assert one.answered(call)
    assert one.statistics().waiting_bytes == 0
