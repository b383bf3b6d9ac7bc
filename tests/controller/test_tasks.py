"""Tasks: calls to any engine, placed by the controller."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf import struct_pb2

from enginery import _ids, _status
from enginery._methods import ANY_ENGINE
from enginery._reasons import DeliveryError
from enginery._status import from_bytes, to_bytes
from enginery.v1 import cluster_pb2, engine_pb2, frame_pb2, operation_pb2, value_pb2
from tests.controller.fakes import FakeCluster, FakeHost, FakeSession, running, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


Reply = frame_pb2.Reply


def task(session: FakeSession, request: bytes = b"work", **fields: Any) -> frame_pb2.Call:
    """Return a new task; `fields` are its options."""
    return session.call(ANY_ENGINE, request, task=frame_pb2.TaskOptions(**fields))


def silent(_call: frame_pb2.Call) -> None:
    """Answer nothing."""


def where(**properties: Any) -> struct_pb2.Struct:
    """Return what a task asks of its engine."""
    made = struct_pb2.Struct()
    made.update(properties)
    return made


def failing(error: DeliveryError, outcome: frame_pb2.Outcome.ValueType) -> Callable[[frame_pb2.Call], Reply]:
    """Return an answer of a host that does not run calls."""
    return lambda call: Reply(call_id=call.call_id, outcome=outcome, error=to_bytes(error))


def work(host: FakeHost) -> list[frame_pb2.Call]:
    """Return the attempts that a host was sent, without calls about operations."""
    return [call for call in host.calls if call.HasField("task")]


async def refusal(session: FakeSession, call: frame_pb2.Call) -> DeliveryError:
    """Return the error that a call is answered with."""
    return from_bytes((await session.ask(call)).error)


async def test_a_task_runs_on_an_engine(cluster: FakeCluster) -> None:
    """It is placed, its host is told that it is a task, and its reply says where it ran and how often."""
    host = cluster.host()
    await host.hello()
    session = await cluster.session()
    reply = await session.ask(task(session, label="L", retries=3))
    assert (reply.outcome, reply.response) == (frame_pb2.OUTCOME_OK, b"work")
    assert (reply.engine_id, reply.attempts) == (0, 1)
    sent = host.calls[0]
    assert (sent.engine_id, sent.session_id, sent.task) == (0, b"", frame_pb2.TaskOptions(label="L"))
    assert sent.operation_id == _ids.operation_id(b"sessionA", 1)
    assert sent.options.any_incarnation


async def test_a_task_waits_for_an_engine(cluster: FakeCluster) -> None:
    """Without an engine, or without one that has the properties, a task waits; one that gets them runs it."""
    session = await cluster.session()
    call = task(session, where=where(gpu=True, cores=4))
    await session.send(calls=[call])
    host = cluster.host()
    await host.hello()
    cores = value_pb2.Value(json=struct_pb2.Value(number_value=4))
    gpu = value_pb2.Value(json=struct_pb2.Value(bool_value=True))
    plain = await session.ask(task(session))
    assert plain.engine_id == 0
    assert call.call_id not in session.replies
    info = await cluster.cluster.GetClusterInfo(cluster_pb2.GetClusterInfoRequest(), metadata=cluster.metadata)
    assert (info.waiting_task_count, info.placed_task_count) == (1, 0)
    changed = engine_pb2.PropertiesChanged(engine_id=0, properties={"gpu": gpu, "cores": cores})
    host.send(properties_changed=[changed])
    assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_OK


async def test_least_load_and_one_at_a_time(cluster: FakeCluster) -> None:
    """Tasks whose durations are not known go one to each engine; the next goes to the one that answers."""
    host = cluster.host()
    host.answer = silent
    await host.hello(0)
    await host.hello(1)
    session = await cluster.session()
    calls = [task(session, b"%d" % n) for n in range(3)]
    await session.send(calls=calls)
    await until(lambda: len(host.calls) == 2)
    assert [call.engine_id for call in host.calls] == [0, 1]
    host.reply(host.calls[1])
    await until(lambda: len(host.calls) == 3)
    assert host.calls[2].engine_id == 1


async def test_a_far_engine_is_given_tasks_ahead(cluster: FakeCluster) -> None:
    """As many as it runs while an answer and the next task are on the way: its host says how long they ran."""
    host = cluster.host()
    host.answer = silent
    await host.hello()
    session = await cluster.session()
    await session.send(calls=[task(session, b"%d" % n) for n in range(10)])
    await until(lambda: host.calls)
    await asyncio.sleep(0.1)  # the way there and back
    (first,) = host.calls
    host.send(replies=[Reply(call_id=first.call_id, outcome=frame_pb2.OUTCOME_OK, run_us=1_000)])
    await until(lambda: len(host.calls) == 10)


async def test_engines_with_calls_of_views_come_last(cluster: FakeCluster) -> None:
    """A task does not queue behind a view's call while that runs; it has its turn when that has ended."""
    host = cluster.host()
    host.answer = silent
    await host.hello()
    session = await cluster.session()
    view, waiting = session.call(0, b"view"), task(session)
    await session.send(calls=[view, waiting])
    await until(lambda: host.calls)
    host.reply(host.calls[0])
    await until(lambda: len(host.calls) == 2)
    assert host.calls[1].request == b"work"


@pytest.mark.parametrize("outcome", [frame_pb2.OUTCOME_USER_ERROR, frame_pb2.OUTCOME_LOST])
async def test_retries(cluster: FakeCluster, outcome: int) -> None:
    """A task that raised or was lost runs again under another operation id, as often as it may."""
    host = cluster.host()
    error = DeliveryError("KERNEL_DIED", engine_id=0, cause="signal 9")

    def answer(call: frame_pb2.Call) -> Reply | None:
        if not call.HasField("task"):
            return None
        reply = Reply(call_id=call.call_id, outcome=outcome)  # type: ignore[arg-type]
        if outcome == frame_pb2.OUTCOME_LOST:
            reply.error = to_bytes(error)
        else:
            reply.response = b"raised"
        return reply

    host.answer = answer
    await host.hello()
    session = await cluster.session()
    reply = await session.ask(task(session, retries=2))
    assert (reply.outcome, reply.attempts) == (outcome, 3)
    ids = [call.operation_id for call in work(host)]
    first = _ids.operation_id(b"sessionA", 1)
    assert ids == [first, _ids.attempt_id(first, 2), _ids.attempt_id(first, 3)]
    if outcome == frame_pb2.OUTCOME_LOST:
        lost = from_bytes(reply.error)
        assert (lost.reason, lost.metadata["attempts"]) == ("TASK_LOST", "3")
        assert "signal 9" in lost.text


async def test_a_rejected_task_runs_elsewhere(cluster: FakeCluster) -> None:
    """An engine that rejects a task is not offered it again; when all have, the rejection is how it ends."""
    host = cluster.host()
    host.answer = lambda call: (
        Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_REJECTED, response=b"no")
        if call.HasField("task") and (call.request == b"never" or call.engine_id == 0)
        else Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=b"yes")
    )
    await host.hello(0)
    await host.hello(1)
    session = await cluster.session()
    reply = await session.ask(task(session))
    assert (reply.response, reply.engine_id, reply.attempts) == (b"yes", 1, 1)
    reply = await session.ask(task(session, b"never"))
    assert (reply.outcome, reply.response) == (frame_pb2.OUTCOME_REJECTED, b"no")


async def test_a_rejection_counts_when_the_others_go(cluster: FakeCluster) -> None:
    """A task ends with it once no engine is left that may take it, though another was full meanwhile."""
    host, other = cluster.host(), cluster.host()
    host.answer = lambda call: Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_REJECTED, response=b"no")
    full = failing(
        DeliveryError("QUEUE_FULL", engine_id=1, size="9", option="-"), frame_pb2.OUTCOME_NOT_DELIVERED
    )

    def refuse(call: frame_pb2.Call) -> Reply:
        goodbye = engine_pb2.Goodbye(engine_id=1, reason="done")
        asyncio.get_running_loop().call_soon(lambda: other.send(goodbyes=[goodbye]))  # behind the reply
        return full(call)

    other.answer = refuse
    await host.hello()
    await other.hello()
    session = await cluster.session()
    reply = await session.ask(task(session))
    assert (reply.outcome, reply.response) == (frame_pb2.OUTCOME_REJECTED, b"no")


async def test_what_has_not_run_is_placed_again(cluster: FakeCluster) -> None:
    """A task that an engine refused, or took out of its queue, goes elsewhere, and no attempt is used."""
    host = cluster.host()
    await host.hello(0)
    await host.hello(1)
    session = await cluster.session()
    errors = [
        DeliveryError("QUEUE_FULL", engine_id=0, size="9", option="-"),
        DeliveryError("ENGINE_STOPPED", engine_id=0, cause="drains", has_run="false"),
        DeliveryError("QUEUE_CLEARED", engine_id=0, cause="cleared"),
    ]
    for error in errors:
        refuse = failing(error, frame_pb2.OUTCOME_LOST)
        refused: list[int] = []

        def answer(call: frame_pb2.Call, refuse: Any = refuse, refused: list[int] = refused) -> Reply:
            if refused:
                return Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=b"ran")
            refused.append(call.engine_id)
            refusal: Reply = refuse(call)
            return refusal

        host.answer = answer
        reply = await session.ask(task(session))
        assert (reply.response, reply.attempts) == (b"ran", 1)
        assert refused


async def test_tasks_of_an_engine_that_is_lost(tmp_path: Path) -> None:
    """With its engine a task is lost, once; with retries it runs on another."""
    async with running(tmp_path / "state", lease=0.2) as cluster:
        lost, other = cluster.host(), cluster.host()
        lost.answer = silent
        await lost.hello()
        session = await cluster.session()
        once, twice = task(session, b"once"), task(session, b"twice", retries=1)
        await session.send(calls=[once])
        await until(lambda: len(lost.calls) == 1)
        lost.send(replies=[])
        await session.send(calls=[twice])
        await lost.hello(1)
        await until(lambda: len(lost.calls) == 2)
        await other.hello()
        await lost.close()
        assert from_bytes((await session.reply(once)).error).reason == "ENGINE_LOST"
        reply = await session.reply(twice)
        assert (reply.response, reply.engine_id, reply.attempts) == (b"twice", 2, 2)


async def test_tasks_come_after_others(cluster: FakeCluster) -> None:
    """A task is placed when those before it have succeeded; if one has not, it ends as not run."""
    host = cluster.host()
    host.answer = silent
    await host.hello(0)
    await host.hello(1)
    session = await cluster.session()
    good, bad = task(session, b"good"), task(session, b"bad")
    names = [_ids.show(_ids.operation_id(b"sessionA", call.call_id)) for call in (good, bad)]
    both, anyway, first = (
        task(session, b"both", after=names),
        task(session, b"anyway", after=names, after_any_outcome=True),
        task(session, b"first", after=names[:1]),
    )
    await session.send(calls=[good, bad, both, anyway, first])
    await until(lambda: len(host.calls) == 2)
    host.reply(host.calls[0])
    await until(lambda: len(host.calls) == 3)
    assert host.calls[2].request == b"first"
    raised = Reply(call_id=host.calls[1].call_id, outcome=frame_pb2.OUTCOME_USER_ERROR, response=b"!")
    host.send(replies=[raised])
    error = from_bytes((await session.reply(both)).error)
    assert (error.reason, error.metadata["dependency"]) == ("DEPENDENCY_FAILED", names[1])
    await until(lambda: len(host.calls) == 4)
    assert host.calls[3].request == b"anyway"
    later = await refusal(session, task(session, after=names[1:]))  # it has ended by now
    assert later.reason == "DEPENDENCY_FAILED"
    host.answer = failing(DeliveryError("OPERATION_NOT_FOUND"), frame_pb2.OUTCOME_NOT_DELIVERED)
    unknown = await refusal(session, task(session, after=[_ids.show(_ids.OperationIds().mint())]))
    assert unknown.reason == "OPERATION_NOT_FOUND"


async def test_placement_timeout(cluster: FakeCluster) -> None:
    """A task that is not placed in time ends as such, and says why it waited."""
    session = await cluster.session()
    call = task(session)
    call.task.placement_timeout.FromMilliseconds(50)
    error = await refusal(session, call)
    assert error.reason == "TASK_NOT_PLACED"
    assert "no engine is registered" in error.text


async def test_a_task_that_was_not_placed_may_come_again(cluster: FakeCluster) -> None:
    """Under the same id: it has not run, so nobody is told that it has."""
    session = await cluster.session()
    call = task(session)
    call.task.placement_timeout.FromMilliseconds(50)
    assert (await refusal(session, call)).reason == "TASK_NOT_PLACED"
    await cluster.host().hello()
    assert session.welcome is not None
    call.sent_epoch = session.welcome.controller_epoch
    session.replies.clear()
    assert (await session.ask(call)).response == b"work"


@pytest.mark.parametrize(
    "fields", [{"priority": 1_001}, {"after": ["x"]}, {"label": "x" * 201}, {"after": ["x"] * 1_001}]
)
async def test_bad_options(cluster: FakeCluster, fields: dict[str, Any]) -> None:
    """Options that make no sense are refused; so are methods that no task can have."""
    session = await cluster.session()
    assert (await refusal(session, task(session, **fields))).reason == "BAD_REQUEST"
    assert (await refusal(session, session.call(ANY_ENGINE, method="Pull"))).reason == "BAD_REQUEST"


async def test_cancel(cluster: FakeCluster) -> None:
    """A waiting task is taken out; for one on an engine, that is asked, and it does not run again."""
    session = await cluster.session()
    call = task(session, retries=5)
    name = _ids.show(_ids.operation_id(b"sessionA", call.call_id))
    cancel = operation_pb2.CancelRequest(operation_id=name).SerializeToString()
    await session.send(calls=[call])
    response = operation_pb2.CancelResponse.FromString(
        (await session.ask(session.call(ANY_ENGINE, cancel, "Cancel"))).response
    )
    assert response.operation.state == operation_pb2.OPERATION_STATE_CANCELLED
    assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_CANCELLED
    unknown = operation_pb2.CancelRequest(operation_id=_ids.show(bytes(16))).SerializeToString()
    error = await refusal(session, session.call(ANY_ENGINE, unknown, "Cancel"))
    assert error.reason == "OPERATION_NOT_FOUND"

    host = cluster.host()
    host.answer = silent
    await host.hello()
    call = task(session, retries=5)
    name = _ids.show(_ids.operation_id(b"sessionA", call.call_id))
    cancel = operation_pb2.CancelRequest(operation_id=name).SerializeToString()
    asking = session.call(ANY_ENGINE, cancel, "Cancel")
    await session.send(calls=[call, asking])
    await until(lambda: len(host.calls) == 2)
    asked = operation_pb2.CancelRequest.FromString(host.calls[1].request)
    assert asked.operation_id == name
    operation = operation_pb2.Operation(operation_id=name, state=operation_pb2.OPERATION_STATE_RUNNING)
    answer = operation_pb2.CancelResponse(operation=operation).SerializeToString()
    host.send(replies=[Reply(call_id=host.calls[1].call_id, outcome=frame_pb2.OUTCOME_OK, response=answer)])
    shown = operation_pb2.CancelResponse.FromString((await session.reply(asking)).response).operation
    assert (shown.attempts, shown.session_id) == (1, b"sessionA".hex())
    raised = Reply(call_id=host.calls[0].call_id, outcome=frame_pb2.OUTCOME_USER_ERROR, response=b"!")
    host.send(replies=[raised])
    assert (await session.reply(call)).attempts == 1


async def test_too_many_tasks_are_refused(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bound a task is refused, and so is what its session sends behind it until it comes again."""
    scheduler = cluster.controller._switchboard.tasks.scheduler  # type: ignore[union-attr]
    monkeypatch.setattr(scheduler, "_max_tasks", 1)
    session = await cluster.session()
    kept, refused = task(session), task(session)
    await session.send(calls=[kept])
    error = await refusal(session, refused)
    assert (error.reason, error.metadata["engine_id"]) == ("QUEUE_FULL", "-1")
    await cluster.host().hello()
    await session.reply(kept)
    assert (await refusal(session, task(session))).reason == "QUEUE_FULL"
    session.replies.pop(refused.call_id)
    assert (await session.ask(refused)).outcome == frame_pb2.OUTCOME_OK
    assert (await session.ask(task(session))).outcome == frame_pb2.OUTCOME_OK


async def test_a_call_to_many_engines_in_one_frame(cluster: FakeCluster) -> None:
    """Each target gets the request under an operation of its own, and answers."""
    host = cluster.host()
    await host.hello(0)
    await host.hello(1)
    session = await cluster.session()
    targets = [frame_pb2.Target(engine_id=one) for one in (1, 7, 0, ANY_ENGINE)]
    call = frame_pb2.Call(
        call_id=50, method=frame_pb2.METHOD_APPLY, request=b"for all", targets=targets, engine_id=9
    )
    await session.send(calls=[call])
    await until(lambda: len(session.replies) == 4)
    assert [session.replies[50 + n].response for n in range(4)] == [b"for all", b"", b"for all", b""]
    for n in (1, 3):
        assert from_bytes(session.replies[50 + n].error).reason == "INVALID_ENGINE_ID"
    sent = {call.engine_id: call.operation_id for call in host.calls}
    assert sent == {1: _ids.operation_id(b"sessionA", 50), 0: _ids.operation_id(b"sessionA", 52)}
    assert not any(call.targets for call in host.calls)


class Unary:
    """Unary calls to any engine."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster

    def to(self, **more: str) -> Any:
        """Return the metadata of a task."""
        return self.cluster.to(None, **{"enginery_engine_id": "any", **more})


async def test_unary_tasks(cluster: FakeCluster) -> None:
    """`enginery-engine-id: any` makes a task of Execute, Apply and Submit; `enginery-task` says how."""
    host = cluster.host()
    answer = engine_pb2.ExecuteResponse(result=engine_pb2.ExecuteResult(number=2)).SerializeToString()
    host.answer = lambda call: Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=answer)
    await host.hello()
    unary = Unary(cluster)
    options = json.dumps({"label": "by hand", "priority": 3})
    response = await cluster.engines.Execute(
        engine_pb2.ExecuteRequest(code="1+1"), metadata=unary.to(enginery_task=options, enginery_timeout="5")
    )
    assert response.result.number == 2
    assert (host.calls[0].task.label, host.calls[0].options.timeout.seconds) == ("by hand", 5)
    for method, options in ((cluster.engines.Execute, '{"priority": 5000}'), (cluster.engines.Execute, "[")):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method(engine_pb2.ExecuteRequest(), metadata=unary.to(enginery_task=options))
        assert _status.from_rpc(error.value).reason == "BAD_REQUEST"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=unary.to())
    assert _status.from_rpc(error.value).reason == "BAD_REQUEST"


async def test_a_submitted_task_is_an_operation(cluster: FakeCluster) -> None:
    """Submit answers at once; GetOperation shows the waiting task, waits for its end, and knows it after."""
    unary = Unary(cluster)
    request = engine_pb2.SubmitRequest(execute=engine_pb2.ExecuteRequest(code="1+1"))
    submitted = (
        await cluster.engines.Submit(request, metadata=unary.to(enginery_task='{"label": "L"}'))
    ).operation
    assert (submitted.engine_id, submitted.state, submitted.label) == (-1, 1, "L")
    get = operation_pb2.GetOperationRequest(operation_id=submitted.operation_id)
    shown = (await cluster.engines.GetOperation(get, metadata=cluster.metadata)).operation
    assert (shown.engine_id, shown.method, shown.label) == (-1, "execute", "L")
    get.wait.seconds = 10
    waiting = asyncio.ensure_future(cluster.engines.GetOperation(get, metadata=unary.to()))
    host = cluster.host()
    refuse = failing(DeliveryError("OPERATION_NOT_FOUND", operation_id="x"), frame_pb2.OUTCOME_NOT_DELIVERED)
    ran = engine_pb2.ExecuteResponse(result=engine_pb2.ExecuteResult(number=2))
    host.answer = lambda call: (
        Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=ran.SerializeToString())
        if call.HasField("task")
        else refuse(call)
    )
    await host.hello()
    response = await waiting
    assert response.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    found = engine_pb2.ExecuteResponse()
    assert response.outcome.response.Unpack(found)
    assert found == ran


async def test_tasks_are_listed_attached_to_and_released(cluster: FakeCluster) -> None:
    """A waiting task is on the first page; Attach waits for its engine; released, its answer is not kept."""
    session = await cluster.session()
    calls = [task(session, label=f"task {number}") for number in range(3)]
    await session.send(calls=calls)
    names = [_ids.show(_ids.operation_id(b"sessionA", call.call_id)) for call in calls]
    await until(lambda: cluster.controller._switchboard.tasks.scheduler.statistics().waiting == 3)  # type: ignore[union-attr]
    request = operation_pb2.ListOperationsRequest(page_size=2, session_id=b"sessionA".hex())
    listed = []
    for _ in range(2):
        page = await cluster.engines.ListOperations(request, metadata=cluster.metadata)
        listed += [(one.operation_id, one.label, one.engine_id) for one in page.operations]
        request.page_token = page.next_page_token
    assert listed == [(names[n], f"task {n}", -1) for n in (2, 1, 0)]
    released = operation_pb2.ReleaseRequest(operation_ids=names[:1])
    response = await cluster.engines.Release(released, metadata=cluster.metadata)
    assert response.released_count == 1
    attach = operation_pb2.AttachRequest(operation_id=names[0])
    following = cluster.engines.Attach(attach, metadata=cluster.metadata)
    host = cluster.host()
    host.answer = silent
    await host.hello()
    await until(lambda: host.calls and host.transfers)
    assert host.transfers[0].method == frame_pb2.METHOD_ATTACH
    following.cancel()
    host.answer = lambda call: Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=call.request)
    host.reply(host.calls[0])
    for call in calls:
        assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_OK
    await host.close()
    await until(lambda: cluster.controller._switchboard.statistics().connected == 0)  # type: ignore[union-attr]
    journal = cluster.controller.journal
    await until(lambda: journal.committed == journal.appended)
    request = operation_pb2.ListOperationsRequest(session_id=b"sessionA".hex())
    page = await cluster.engines.ListOperations(request, metadata=cluster.metadata)
    assert [(one.label, one.attempts) for one in page.operations] == [("task 2", 1), ("task 1", 1)]
    assert await journal.find(_ids.operation_id(b"sessionA", 1)) is None
    assert await journal.find(_ids.operation_id(b"sessionA", 2)) is not None


async def test_a_task_that_was_sent_before(cluster: FakeCluster) -> None:
    """Sent again it joins what is here, gets the answer of what has ended, and begins if it never arrived."""
    host = cluster.host()
    host.answer = silent
    await host.hello()
    session = await cluster.session()
    call = task(session)
    await session.send(calls=[call])
    await until(lambda: host.calls)
    again = await cluster.session()
    assert again.welcome is not None
    epoch = again.welcome.controller_epoch
    resent = frame_pb2.Call()
    resent.CopyFrom(call)
    resent.sent_epoch = epoch
    await again.send(calls=[resent])
    other = frame_pb2.Call()
    other.CopyFrom(resent)
    other.call_id, other.operation_id, other.request = 99, _ids.operation_id(b"sessionA", 1), b"another"
    assert (await refusal(again, other)).reason == "OPERATION_EXISTS"
    host.reply(host.calls[0])
    assert (await again.reply(call)).response == b"work"
    assert len(host.calls) == 1
    again.replies.clear()
    assert (await again.ask(resent)).response == b"work"
    assert len(host.calls) == 1
    again.replies.clear()
    other.sent_epoch = epoch
    assert (await refusal(again, other)).reason == "OPERATION_EXISTS"  # though the first has ended
    lost = frame_pb2.Call(
        call_id=77, engine_id=-1, method=frame_pb2.METHOD_APPLY, request=b"new", sent_epoch=epoch
    )
    host.answer = lambda call: Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=b"ran")
    assert (await again.ask(lost)).response == b"ran"
