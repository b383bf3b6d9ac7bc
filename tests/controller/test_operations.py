"""Calls about operations: found by their ids on whichever engine, or in the journal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from enginery import _ids, _pages, _status
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2
from tests.controller.fakes import FakeCluster, FakeHost, running, until
from tests.controller.test_transfers import HostSide, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from google.protobuf.message import Message

_new_ids = _ids.OperationIds(b"sessionA")
RUNNING, SUCCEEDED = operation_pb2.OPERATION_STATE_RUNNING, operation_pb2.OPERATION_STATE_SUCCEEDED


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[FakeCluster]:
    """A cluster with a long lease."""
    async with running(tmp_path / "state", lease=60.0) as made:
        yield made


class OperationsHost:
    """A host of one engine that answers calls about the operations that it has."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.engine_id = -1
        self.operations: dict[str, operation_pb2.Operation] = {}
        self.page_bound = 1_000
        host.answer = self.answer

    def add(self, number: int, state: operation_pb2.OperationState.ValueType = RUNNING) -> str:
        """Have one more, submitted `number` seconds after 1970; return its id."""
        operation_id = _ids.show(_new_ids.mint())
        operation = operation_pb2.Operation(
            operation_id=operation_id, state=state, engine_id=self.engine_id, last_sequence=3
        )
        operation.submit_time.FromSeconds(number)
        self.operations[operation_id] = operation
        return operation_id

    def answer(self, call: frame_pb2.Call) -> frame_pb2.Reply | None:
        try:
            response = self.respond(call.method, call.request)
        except DeliveryError as error:
            return frame_pb2.Reply(
                call_id=call.call_id, outcome=frame_pb2.OUTCOME_NOT_DELIVERED, error=_status.to_bytes(error)
            )
        data = call.request if response is None else response.SerializeToString()
        return frame_pb2.Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=data)

    def respond(self, method: int, request: bytes) -> Message | None:
        if method == frame_pb2.METHOD_GET_OPERATION:
            get = operation_pb2.GetOperationRequest.FromString(request)
            return operation_pb2.GetOperationResponse(operation=self.find(get.operation_id))
        if method == frame_pb2.METHOD_CANCEL:
            operation = self.find(operation_pb2.CancelRequest.FromString(request).operation_id)
            operation.stopping = True
            return operation_pb2.CancelResponse(operation=operation)
        if method == frame_pb2.METHOD_RELEASE:
            ids = operation_pb2.ReleaseRequest.FromString(request).operation_ids
            known = [self.operations.pop(one) for one in ids if one in self.operations]
            return operation_pb2.ReleaseResponse(released_count=len(known))
        if method == frame_pb2.METHOD_LIST_OPERATIONS:
            return self.page(operation_pb2.ListOperationsRequest.FromString(request))
        return None

    def find(self, operation_id: str) -> operation_pb2.Operation:
        if operation_id not in self.operations:
            raise DeliveryError("OPERATION_NOT_FOUND", operation_id=operation_id)
        return self.operations[operation_id]

    def page(self, request: operation_pb2.ListOperationsRequest) -> operation_pb2.ListOperationsResponse:
        def position(one: operation_pb2.Operation) -> _pages.Position:
            return one.submit_time.ToNanoseconds(), _ids.parse(one.operation_id)

        below = _pages.read(request.page_token)
        found = sorted(self.operations.values(), key=position, reverse=True)
        found = [one for one in found if below is None or position(one) < below]
        size = min(request.page_size, self.page_bound)
        response = operation_pb2.ListOperationsResponse(operations=found[:size])
        if len(found) > size:
            response.next_page_token = _pages.token(position(found[size - 1]))
        return response


async def hosts(cluster: FakeCluster, count: int = 2) -> list[OperationsHost]:
    """Return hosts of engines 0 to `count`."""
    made = [OperationsHost(cluster.host()) for _ in range(count)]
    for one in made:
        one.engine_id = (await one.host.hello()).engine_id
    return made


async def kept(cluster: FakeCluster, host: FakeHost) -> str:
    """Have engine 0 run an operation that the journal keeps; return its id."""
    operation = _ids.show(_new_ids.mint())
    metadata = cluster.to(0, enginery_operation_id=operation)
    await cluster.engines.Push(engine_pb2.PushRequest(), metadata=metadata)
    return operation


async def refusal(call: Awaitable[Any]) -> str:
    """Return the reason for which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return _status.from_rpc(error.value).reason


def get(cluster: FakeCluster, operation: str, engine_id: int | None = None) -> Awaitable[Any]:
    request = operation_pb2.GetOperationRequest(operation_id=operation)
    return cluster.engines.GetOperation(request, metadata=cluster.to(engine_id))


async def listed(cluster: FakeCluster, size: int = 100, **fields: Any) -> list[list[str]]:
    """Return the ids of all pages."""
    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        request = operation_pb2.ListOperationsRequest(page_size=size, page_token=token, **fields)
        page = await cluster.engines.ListOperations(request, metadata=cluster.to(None))
        pages.append([one.operation_id for one in page.operations])
        token = page.next_page_token
    return pages


# ---- on the engines


async def test_an_operation_is_found_without_its_engine(cluster: FakeCluster) -> None:
    """All connected engines are asked; the one that knows answers. GetOperation and Cancel alike."""
    _, second = await hosts(cluster)
    operation = second.add(1)
    assert (await get(cluster, operation)).operation.engine_id == 1
    request = operation_pb2.CancelRequest(operation_id=operation)
    answer = await cluster.engines.Cancel(request, metadata=cluster.to(None))
    assert answer.operation.stopping


async def test_the_engine_that_runs_it_is_asked_alone(cluster: FakeCluster) -> None:
    """While a call of the operation waits for its reply, it is known whose it is."""
    first, second = await hosts(cluster)
    operation = second.add(1)
    second.host.answer = lambda call: None if call.method == frame_pb2.METHOD_KEYS else second.answer(call)
    metadata = cluster.to(1, enginery_operation_id=operation)
    waiting = cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=metadata)
    await until(lambda: second.host.calls)
    assert (await get(cluster, operation)).operation.engine_id == 1
    assert not first.host.calls
    waiting.cancel()


@pytest.mark.parametrize("engine_id", [None, 0])
async def test_an_operation_that_nobody_knows(cluster: FakeCluster, engine_id: int | None) -> None:
    """OPERATION_NOT_FOUND, with an engine id or without; an id that is none is BAD_REQUEST."""
    await hosts(cluster)
    unknown = _ids.show(_new_ids.mint())
    assert await refusal(get(cluster, unknown, engine_id)) == "OPERATION_NOT_FOUND"
    request = operation_pb2.AttachRequest(operation_id=unknown)
    attached = cluster.engines.Attach(request, metadata=cluster.to(engine_id))
    assert await refusal(attached.read()) == "OPERATION_NOT_FOUND"
    if engine_id is None:
        assert await refusal(get(cluster, "seven")) == "BAD_REQUEST"


async def test_without_engines(cluster: FakeCluster) -> None:
    """No engine is needed to ask: there is nothing, and that is no error of a listing."""
    assert await refusal(get(cluster, _ids.show(_new_ids.mint()))) == "OPERATION_NOT_FOUND"
    assert await listed(cluster) == [[]]


async def test_an_engine_that_is_away_may_know_it(cluster: FakeCluster) -> None:
    """While an engine cannot be asked, what nobody else knows is ENGINE_AWAY: call again."""
    first, second = await hosts(cluster)
    await first.host.close()
    await until(lambda: cluster.controller.registry.statistics().away == 1)
    assert await refusal(get(cluster, _ids.show(_new_ids.mint()))) == "ENGINE_AWAY"
    operation = second.add(1)
    assert (await get(cluster, operation)).operation.operation_id == operation


async def test_attach_goes_to_the_engine_that_knows(cluster: FakeCluster) -> None:
    """Events pass as the host sends them; the stream ends as it does."""
    first, second = await hosts(cluster)
    operation = second.add(1)

    async def follow(side: HostSide) -> None:
        request = operation_pb2.AttachRequest.FromString((await side.read()).message)
        assert (request.operation_id, request.after_sequence) == (operation, 4)
        assert side.offer.method == frame_pb2.METHOD_ATTACH
        for sequence in (5, 6):
            events = [operation_pb2.OperationEvent(sequence=sequence)]
            await side.send(operation_pb2.AttachResponse(events=events))
        await side.finish()

    hosting = asyncio.create_task(serve(cluster, second.host, follow))
    request = operation_pb2.AttachRequest(operation_id=operation, after_sequence=4)
    attached = cluster.engines.Attach(request, metadata=cluster.to(None))
    assert [message.events[0].sequence async for message in attached] == [5, 6]
    await hosting
    assert not first.host.transfers


async def test_events_are_not_bounded_as_values_are(tmp_path: Path) -> None:
    """--value-limit is about values: more bytes of events than that pass."""
    async with running(tmp_path / "state", value_limit=100_000) as cluster:
        (host,) = await hosts(cluster, 1)
        operation = host.add(1)
        event = operation_pb2.OperationEvent(stdout="x" * 60_000)

        async def follow(side: HostSide) -> None:
            await side.read()
            for _ in range(4):
                await side.send(operation_pb2.AttachResponse(events=[event]))
            await side.finish()

        hosting = asyncio.create_task(serve(cluster, host.host, follow))
        request = operation_pb2.AttachRequest(operation_id=operation)
        attached = cluster.engines.Attach(request, metadata=cluster.to(None))
        assert len([message async for message in attached]) == 4
        await hosting


async def test_a_controller_that_stops_says_so_to_who_is_attached(tmp_path: Path) -> None:
    """The stream ends with SHUTTING_DOWN: attach again after the last sequence."""
    async with running(tmp_path / "state") as cluster:
        (host,) = await hosts(cluster, 1)
        operation = host.add(1)

        async def follow(side: HostSide) -> None:
            while await side.call.read() is not grpc.aio.EOF:
                pass

        hosting = asyncio.create_task(serve(cluster, host.host, follow))
        request = operation_pb2.AttachRequest(operation_id=operation)
        attached = cluster.engines.Attach(request, metadata=cluster.to(None))
        reading = asyncio.ensure_future(attached.read())
        await until(lambda: any(one.host.done() for one in cluster.controller._transfers.running))
        await cluster.controller.stop()
        assert await refusal(reading) == "SHUTTING_DOWN"
        await asyncio.gather(hosting, return_exceptions=True)


async def test_release_on_all_engines(cluster: FakeCluster) -> None:
    """Every engine is told; each operation that was known counts once. More than 1,000 ids are refused."""
    first, second = await hosts(cluster)
    operations = [first.add(1), second.add(2)]
    request = operation_pb2.ReleaseRequest(operation_ids=[*operations, _ids.show(_new_ids.mint())])
    assert (await cluster.engines.Release(request, metadata=cluster.to(None))).released_count == 2
    assert not first.operations
    assert not second.operations
    many = operation_pb2.ReleaseRequest(operation_ids=[operations[0]] * 1_001)
    assert await refusal(cluster.engines.Release(many, metadata=cluster.to(None))) == "BAD_REQUEST"


# ---- listing


@pytest.mark.parametrize("bound", [1_000, 2])
async def test_pages_of_all_engines_are_merged(cluster: FakeCluster, bound: int) -> None:
    """The newest first, whichever engine has it, each once, even if engines give less than they were asked."""
    made = await hosts(cluster, 3)
    expected = [made[number % 3 if number < 9 else 0].add(number) for number in range(13)][::-1]
    for one in made:
        one.page_bound = bound
    pages = await listed(cluster, 5)
    assert [operation for page in pages for operation in page] == expected
    assert all(len(page) <= 5 for page in pages)


async def test_the_journal_comes_last_and_adds_what_engines_do_not_know(cluster: FakeCluster) -> None:
    """What an engine knows still is on its own page only; what its host released is on the journal's."""
    (host,) = await hosts(cluster, 1)
    ids = [await kept(cluster, host.host) for _ in range(4)]
    host.operations[ids[1]] = operation_pb2.Operation(operation_id=ids[1], state=SUCCEEDED)
    journal = cluster.controller.journal
    await until(lambda: journal.committed == journal.appended)
    for size in (100, 2, 1):
        pages = await listed(cluster, size)
        assert [one for page in pages for one in page] == [ids[1], ids[3], ids[2], ids[0]]
    assert await listed(cluster, states=[RUNNING]) == [[ids[1]]], "the fake filters nothing, the journal does"
    assert (await listed(cluster, states=[SUCCEEDED]))[0][1:] == [ids[3], ids[2], ids[0]]
    assert await listed(cluster, session_id=b"sessionB".hex()) == [[ids[1]]]


@pytest.mark.parametrize("token", ["x", "journal.x", "journal.-1", "journal." + "9" * 30, "YWZ0ZXI6MQ=="])
async def test_a_token_of_others(cluster: FakeCluster, token: str) -> None:
    """BAD_PAGE_TOKEN: start again without one."""
    request = operation_pb2.ListOperationsRequest(page_token=token)
    call = cluster.engines.ListOperations(request, metadata=cluster.to(None))
    assert await refusal(call) == "BAD_PAGE_TOKEN"


async def test_a_session_that_is_none(cluster: FakeCluster) -> None:
    """BAD_REQUEST names the field."""
    request = operation_pb2.ListOperationsRequest(session_id="xyz")
    call = cluster.engines.ListOperations(request, metadata=cluster.to(None))
    assert await refusal(call) == "BAD_REQUEST"


# ---- in the journal


@pytest.mark.parametrize("engine_id", [None, 0])
@pytest.mark.parametrize("how", ["engine gone", "released by its host"])
async def test_the_journal_answers(cluster: FakeCluster, engine_id: int | None, how: str) -> None:
    """GetOperation, Cancel and Attach tell how it ended; its response is the typed message, unopened."""
    (host,) = await hosts(cluster, 1)
    operation = await kept(cluster, host.host)
    if how == "engine gone":
        host.host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0)])
        await until(lambda: not cluster.controller.registry.ids())
    answer = await get(cluster, operation, engine_id)
    assert (answer.operation.state, answer.operation.method) == (SUCCEEDED, "push")
    assert answer.operation.end_time.seconds
    response = engine_pb2.PushResponse()
    assert answer.outcome.response.Unpack(response)
    cancel = operation_pb2.CancelRequest(operation_id=operation)
    cancelled = await cluster.engines.Cancel(cancel, metadata=cluster.to(engine_id))
    assert cancelled.operation == answer.operation
    for after in (0, 7, (1 << 64) - 1):
        request = operation_pb2.AttachRequest(operation_id=operation, after_sequence=after)
        attached = cluster.engines.Attach(request, metadata=cluster.to(engine_id))
        ((event,),) = [message.events async for message in attached]
        assert event.sequence == min(after + 1, (1 << 64) - 1)
        assert event.outcome == answer.outcome


async def test_a_lost_operation_is_told_with_its_error(cluster: FakeCluster) -> None:
    """The outcome of what was lost with its engine says why."""
    (host,) = await hosts(cluster, 1)
    host.host.answer = lambda _call: None
    operation = _ids.show(_new_ids.mint())
    call = cluster.engines.Keys(
        engine_pb2.KeysRequest(), metadata=cluster.to(0, enginery_operation_id=operation)
    )
    await until(lambda: host.host.calls)
    host.host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="enough")])
    assert await refusal(call) == "ENGINE_STOPPED"
    answer = await get(cluster, operation)
    assert answer.operation.state == operation_pb2.OPERATION_STATE_LOST
    assert (answer.outcome.error.reason, answer.outcome.error.metadata["cause"]) == ("ENGINE_STOPPED", "enough")
    assert not answer.outcome.HasField("response")


@pytest.mark.parametrize("journal", [True, False])
async def test_a_submitted_operation_is_lost_with_its_engine(tmp_path: Path, journal: bool) -> None:
    """Nobody waits for it here, yet whoever asks is told; so for one of an inventory, unless it has ended."""
    async with running(tmp_path / "state", lease=60.0, journal=journal) as cluster:
        (host,) = await hosts(cluster, 1)
        submitted, done = (_ids.show(_new_ids.mint()) for _ in range(2))
        for operation in (submitted, done):
            metadata = cluster.to(0, enginery_operation_id=operation)
            await cluster.engines.Submit(engine_pb2.SubmitRequest(), metadata=metadata)
        listed = _new_ids.mint()
        await host.host.hello(1, operation_ids=[listed])
        end = engine_pb2.OperationEnded(
            engine_id=0,
            operation_id=_ids.parse(done),
            method=frame_pb2.METHOD_KEYS,
            outcome=frame_pb2.OUTCOME_OK,
        )
        host.host.send(ended=[end])
        host.host.send(goodbyes=[engine_pb2.Goodbye(engine_id=0), engine_pb2.Goodbye(engine_id=1)])
        await until(lambda: not cluster.controller.registry.ids())
        for operation in (submitted, _ids.show(listed)):
            answer = await get(cluster, operation)
            assert answer.operation.state == operation_pb2.OPERATION_STATE_LOST
            assert answer.outcome.error.reason == "ENGINE_STOPPED"
        call = cluster.engines.Keys(
            engine_pb2.KeysRequest(), metadata=cluster.to(0, enginery_operation_id=submitted)
        )
        assert await refusal(call) == "ENGINE_STOPPED"
        if journal:
            assert (await get(cluster, done)).operation.state == SUCCEEDED
        else:
            assert await refusal(get(cluster, done)) == "OPERATION_NOT_FOUND"


async def test_release_reaches_the_journal(cluster: FakeCluster) -> None:
    """What was released is not answered from the journal any more."""
    (host,) = await hosts(cluster, 1)
    operation = await kept(cluster, host.host)
    request = operation_pb2.ReleaseRequest(operation_ids=[operation])
    assert (await cluster.engines.Release(request, metadata=cluster.to(None))).released_count == 1
    assert await refusal(get(cluster, operation)) == "OPERATION_NOT_FOUND"
    assert (await cluster.engines.Release(request, metadata=cluster.to(0))).released_count == 0


async def test_an_answer_that_was_released_before_the_end_is_not_kept(cluster: FakeCluster) -> None:
    """Those who wait get it, and the journal does not."""
    (host,) = await hosts(cluster, 1)
    operation = host.add(1)
    host.host.answer = lambda call: None if call.method == frame_pb2.METHOD_PUSH else host.answer(call)
    metadata = cluster.to(0, enginery_operation_id=operation)
    waiting = [
        asyncio.ensure_future(cluster.engines.Push(engine_pb2.PushRequest(), metadata=metadata)) for _ in "12"
    ]
    await until(lambda: len(host.host.calls) == 2)
    pushes = host.host.calls[:]
    request = operation_pb2.ReleaseRequest(operation_ids=[operation])
    assert (await cluster.engines.Release(request, metadata=cluster.to(None))).released_count == 1
    for push in pushes:
        host.host.reply(push)
    await asyncio.gather(*waiting)
    assert await refusal(get(cluster, operation)) == "OPERATION_NOT_FOUND"


async def test_a_host_may_refuse_a_stream_that_it_was_to_serve(cluster: FakeCluster) -> None:
    """What its host says when it is too late reaches who wanted to attach."""
    (host,) = await hosts(cluster, 1)
    operation = host.add(1)
    late = _status.to_bytes(DeliveryError("OPERATION_NOT_FOUND", operation_id=operation))

    async def refuse(side: HostSide) -> None:
        await side.read()
        await side.finish(engine_pb2.TransferRequest(status=late))

    hosting = asyncio.create_task(serve(cluster, host.host, refuse))
    request = operation_pb2.AttachRequest(operation_id=operation)
    attached = cluster.engines.Attach(request, metadata=cluster.to(0))
    assert await refusal(attached.read()) == "OPERATION_NOT_FOUND"
    await hosting
