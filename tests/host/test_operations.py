"""Operations over fake kernels: named, followed, stopped, drained and released, whatever the kernel does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from engine_service import events as events_module
from engine_service.engine import Engine, EngineOptions
from engine_service.kernel_process import DisplayData, ExitStatus, Failure, Reply
from engine_service.servicer import engine_handlers
from enginery import _ids
from enginery._encoded import Codec, Encoded
from enginery._engine import CallContext, CallReply
from enginery._methods import CANCEL_ON_DISCONNECT_KEY, ENGINE_SERVICE, METHODS
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, error_pb2, frame_pb2, operation_pb2
from tests.host.fakes import IDS, FakeKernel, call, execute, refused, running_engine, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine_service.operation import Answer, Operation

LARGE = "#" * (1 << 20)


async def submit(engine: Engine, code: str, **context: Any) -> str:
    """Submit code and return its operation."""
    request = engine_pb2.SubmitRequest(execute=engine_pb2.ExecuteRequest(code=code))
    return (await call(engine, request, engine_pb2.SubmitResponse, **context)).operation.operation_id


async def get(
    engine: Engine, operation_id: str, *, wait: float = 0, after: int | None = None
) -> operation_pb2.GetOperationResponse:
    """Ask for an operation."""
    request = operation_pb2.GetOperationRequest(operation_id=operation_id, after_sequence=after)
    request.wait.FromMilliseconds(round(wait * 1000))
    return await call(engine, request, operation_pb2.GetOperationResponse)


async def cancel(engine: Engine, operation_id: str, **how: Any) -> operation_pb2.Operation:
    """Cancel an operation."""
    request = operation_pb2.CancelRequest(operation_id=operation_id, interrupt_only=how.get("interrupt_only"))
    if "grace" in how:
        request.grace.FromMilliseconds(round(how["grace"] * 1000))
    return (await call(engine, request, operation_pb2.CancelResponse)).operation


async def follow(
    engine: Engine, operation_id: str, after: int = 0
) -> AsyncIterator[operation_pb2.OperationEvent]:
    """Attach."""
    request = operation_pb2.AttachRequest(operation_id=operation_id, after_sequence=after)
    async with contextlib.aclosing(engine.attach(request.SerializeToString())) as messages:
        async for data in messages:
            for event in operation_pb2.AttachResponse.FromString(data).events:
                yield event


async def in_kernel(kernel: FakeKernel, count: int = 1) -> None:
    """Wait until the kernel has so many commands."""
    await until(lambda: len(kernel.commands) == count)


def result_of(outcome: operation_pb2.OperationOutcome) -> engine_pb2.ExecuteResult:
    response = engine_pb2.ExecuteResponse()
    assert outcome.response.Unpack(response)
    return response.result


class Ended:
    """Writes down which operations have ended."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def properties_changed(self, engine: Engine) -> None: ...

    def kernel_changed(self, engine: Engine, reason: str) -> None: ...

    def engine_stopped(self, engine: Engine, reason: str) -> None: ...

    def operation_ended(self, engine: Engine, operation: Operation) -> None:
        assert operation.has_ended
        self.operations.append(operation)


# ---- asking


async def test_waiting_for_an_end_ends_with_it_or_with_the_wait() -> None:
    """Without a task: the answer of GetOperation comes when the operation ends, or when the wait is over."""
    async with running_engine() as (engine, kernels):
        operation_id = await submit(engine, "wait")
        await in_kernel(kernels.started[0])
        passed = await get(engine, operation_id, wait=0.02)
        assert passed.operation.state == operation_pb2.OPERATION_STATE_RUNNING
        assert not passed.HasField("outcome")
        assert not engine.operations.find(_ids.parse(operation_id)).waiting
        tasks = asyncio.all_tasks()
        request = operation_pb2.GetOperationRequest(operation_id=operation_id)
        request.wait.FromSeconds(60)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        data = request.SerializeToString()
        engine.submit(METHODS["GetOperation"], data, CallContext(IDS.mint()), answered.set_result)
        assert asyncio.all_tasks() == tasks
        kernels.started[0].released.set()
        answer = await answered
        assert isinstance(answer, CallReply)
        ended = operation_pb2.GetOperationResponse.FromString(answer.response)
        assert ended.outcome.state == operation_pb2.OPERATION_STATE_SUCCEEDED
        assert result_of(ended.outcome).text == "wait"


async def test_refused_submits_leave_no_operation() -> None:
    """What is not accepted never was: the same id may be used for what is right."""
    async with running_engine() as (engine, _):
        operation = IDS.mint()
        empty = call(engine, engine_pb2.SubmitRequest(), engine_pb2.SubmitResponse, operation_id=operation)
        assert await refused(empty) == "BAD_REQUEST"
        bad = engine_pb2.SubmitRequest(apply=engine_pb2.ApplyRequest())
        assert (
            await refused(call(engine, bad, engine_pb2.SubmitResponse, operation_id=operation)) == "BAD_REQUEST"
        )
        assert await refused(get(engine, _ids.show(operation))) == "OPERATION_NOT_FOUND"
        assert (await execute(engine, "1", operation_id=operation)).text == "1"


async def test_a_call_without_its_request_joins_or_is_released() -> None:
    """The controller sends no request again that the host has said it knows."""
    async with running_engine() as (engine, kernels):
        operation = IDS.mint()
        first = asyncio.ensure_future(execute(engine, "wait", operation_id=operation))
        await in_kernel(kernels.started[0])
        joined = engine.call(METHODS["Execute"], b"", CallContext(operation, known=True))
        again = asyncio.ensure_future(joined)
        kernels.started[0].released.set()
        assert engine_pb2.ExecuteResponse.FromString((await again).response).result == await first
        unknown = engine.call(METHODS["Execute"], b"", CallContext(IDS.mint(), known=True))
        assert await refused(unknown) == "OPERATION_RELEASED"


async def test_actions_are_done_once() -> None:
    """An interrupt that is sent again hits nobody else; another action under its id is refused."""
    async with running_engine() as (engine, kernels):
        running = asyncio.ensure_future(execute(engine, "deaf"))
        await in_kernel(kernels.started[0])
        operation = IDS.mint()
        for _ in range(2):
            await call(
                engine, engine_pb2.InterruptRequest(), engine_pb2.InterruptResponse, operation_id=operation
            )
        assert kernels.started[0].interrupts == 1
        other = call(
            engine, engine_pb2.ClearQueueRequest(), engine_pb2.ClearQueueResponse, operation_id=operation
        )
        assert await refused(other) == "OPERATION_EXISTS"
        kernels.started[0].released.set()
        await running


async def test_pages_begin_where_the_last_one_ended() -> None:
    """Whatever is submitted or ends between two pages; sizes of 0 and over the most are what they mean."""
    async with running_engine() as (engine, _):
        ids = [await submit(engine, str(number)) for number in range(7)]
        seen: list[str] = []
        request = operation_pb2.ListOperationsRequest(page_size=3)
        while True:
            page = await call(engine, request, operation_pb2.ListOperationsResponse)
            seen += [operation.operation_id for operation in page.operations]
            await submit(engine, "between")
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert seen == ids[::-1]
        for size in (0, 5_000):
            request = operation_pb2.ListOperationsRequest(page_size=size)
            page = await call(engine, request, operation_pb2.ListOperationsResponse)
            assert len(page.operations) == 10
        request = operation_pb2.ListOperationsRequest(page_token="nonsense")
        assert await refused(call(engine, request, operation_pb2.ListOperationsResponse)) == "BAD_PAGE_TOKEN"


@pytest.mark.parametrize(
    "request_message",
    [
        operation_pb2.GetOperationRequest(operation_id="seven"),
        operation_pb2.CancelRequest(operation_id=""),
        operation_pb2.ReleaseRequest(operation_ids=["seven"]),
        operation_pb2.ReleaseRequest(operation_ids=[_ids.show(bytes(16))] * 1_001),
        operation_pb2.ListOperationsRequest(session_id="seven"),
        operation_pb2.ListOperationsRequest(session_id="07"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_names_nothing_is_refused(request_message: Any) -> None:
    """BAD_REQUEST says which field is wrong."""
    async with running_engine() as (engine, _):
        method = METHODS[type(request_message).__name__.removesuffix("Request")]
        called = engine.call(method, request_message.SerializeToString(), CallContext(IDS.mint()))
        assert await refused(called) == "BAD_REQUEST"


async def test_negative_times_are_refused() -> None:
    """A grace or a wait is at least 0."""
    async with running_engine() as (engine, _):
        operation_id = await submit(engine, "1")
        assert await refused(get(engine, operation_id, wait=-1)) == "BAD_REQUEST"
        assert await refused(cancel(engine, operation_id, grace=-1)) == "BAD_REQUEST"


# ---- following


async def test_who_is_attached_sees_everything_as_it_happens() -> None:
    """From the queue on: started, output, and the outcome; who stops reading is forgotten."""
    async with running_engine() as (engine, kernels):
        first = asyncio.ensure_future(execute(engine, "wait"))
        await in_kernel(kernels.started[0])
        operation_id = await submit(engine, "print seen")
        events = follow(engine, operation_id)
        upcoming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        assert not upcoming.done()
        kernels.started[0].released.set()
        kinds = [(await upcoming).WhichOneof("kind")] + [event.WhichOneof("kind") async for event in events]
        assert kinds == ["started", "stdout", "outcome"]
        await first
        left = follow(engine, operation_id)
        await anext(left)
        await left.aclose()  # type: ignore[attr-defined]
        assert not engine.operations.find(_ids.parse(operation_id)).log._watchers


async def test_the_outcome_comes_whatever_the_reader_has() -> None:
    """Attaching after the last event, or far after it, gives the outcome again."""
    async with running_engine() as (engine, _):
        operation_id = await submit(engine, "1")
        await get(engine, operation_id, wait=10)
        for after in (2, 99):
            events = [event async for event in follow(engine, operation_id, after)]
            assert [event.WhichOneof("kind") for event in events] == ["outcome"]
            assert events[0].sequence == 2


async def test_large_events_fit_their_messages() -> None:
    """Binary output grows as text, large forms of displays become blobs: each message stays below 4 MiB."""
    display = DisplayData({"text/plain": "x", "image/png": bytes(2 << 20)})

    def answer(command: object) -> Reply:
        kernels.started[0].write("stdout", b"\xff" * (1 << 20))
        kernels.started[0].show(display)
        return Reply(text="5")

    async with running_engine() as (engine, kernels):
        kernels.started[0].reply = answer
        operation_id = await submit(engine, "1")
        await get(engine, operation_id, wait=10)
        request = operation_pb2.AttachRequest(operation_id=operation_id).SerializeToString()
        messages = [data async for data in engine.attach(request)]
        assert max(map(len, messages)) < 4 << 20
        events = [event for data in messages for event in operation_pb2.AttachResponse.FromString(data).events]
        assert "".join(event.stdout for event in events) == "\\xff" * (1 << 20)
        (shown,) = [event.display for event in events if event.HasField("display")]
        assert [form.WhichOneof("content") for form in shown.data] == ["text", "blob"]
        asked = 0
        while asked < events[-2].sequence:
            response = await get(engine, operation_id, after=asked)
            assert response.ByteSize() < 4 << 20
            asked = response.events[-1].sequence


async def test_many_readers_keep_the_loop_from_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message is made each time around the loop, however many are attached; each reader gets everything."""
    loop = asyncio.get_running_loop()
    times_around = 0
    reads: list[int] = []
    read = events_module.read

    def count() -> None:
        nonlocal times_around
        times_around += 1
        ticking[0] = loop.call_soon(count)

    def note(*arguments: Any) -> Any:
        reads.append(times_around)
        return read(*arguments)

    async with running_engine() as (engine, kernels):
        operation_id = await submit(engine, "wait")
        await in_kernel(kernels.started[0])
        monkeypatch.setattr(events_module, "read", note)
        ticking = [loop.call_soon(count)]
        request = operation_pb2.AttachRequest(operation_id=operation_id).SerializeToString()

        async def follow_all() -> list[bytes]:
            return [data async for data in engine.attach(request)]

        readers = [asyncio.ensure_future(follow_all()) for _ in range(8)]
        kernels.started[0].write("stdout", b"x" * (2 << 20))
        await until(lambda: len(reads) >= 8)
        kernels.started[0].write("stdout", b"last")
        kernels.started[0].released.set()
        for messages in await asyncio.gather(*readers):
            events = [
                event for data in messages for event in operation_pb2.AttachResponse.FromString(data).events
            ]
            assert sum(len(event.stdout) for event in events) == (2 << 20) + 4
            assert events[-1].WhichOneof("kind") == "outcome"
        ticking[0].cancel()
        assert len(reads) == len(set(reads))


async def test_large_displays_become_blobs_once() -> None:
    """However often events are read: else readers would fill the store, and push out results."""
    display = DisplayData({"text/plain": "x", "image/png": bytes(2 << 20)})

    def answer(command: object) -> Reply:
        kernels.started[0].show(display)
        return Reply(text="5")

    async with running_engine() as (engine, kernels):
        kernels.started[0].reply = answer
        operation_id = await submit(engine, "1")
        first = result_of((await get(engine, operation_id, wait=10)).outcome).displays[0].data[1].blob
        for _ in range(3):
            (_, event) = (await get(engine, operation_id, after=0)).events
            assert event.display.data[1].blob.blob_id == first.blob_id
        assert len(engine.blobs) == 1
        engine.blobs.release(first.blob_id)
        (_, event) = (await get(engine, operation_id, after=0)).events
        assert event.display.data[1].blob.blob_id != first.blob_id
        assert len(engine.blobs) == 1


async def test_blobs_take_no_room_of_the_message() -> None:
    """However many large forms there are: else small ones beside them would become blobs too."""

    def answer(command: object) -> Reply:
        for _ in range(20):
            display = DisplayData({"text/plain": "x", "text/html": "y" * (300 << 10)})
            kernels.started[0].show(display)
        return Reply(text="5")

    async with running_engine() as (engine, kernels):
        kernels.started[0].reply = answer
        displays = (await execute(engine, "1")).displays
        kinds = {tuple(form.WhichOneof("content") for form in display.data) for display in displays}
        assert (len(displays), kinds, len(engine.blobs)) == (20, {("text", "blob")}, 20)


async def test_an_end_that_cannot_be_told_to_one_is_told_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be out of descriptors when a large display is to become a blob."""

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    async with running_engine() as (engine, kernels):
        operation_id = await submit(engine, "wait")
        await in_kernel(kernels.started[0])
        asking = asyncio.ensure_future(get(engine, operation_id, wait=10, after=0))
        await asyncio.sleep(0)
        other = asyncio.ensure_future(execute(engine, "wait", operation_id=_ids.parse(operation_id)))
        next_one = asyncio.ensure_future(execute(engine, "1"))
        await until(lambda: len(engine.queue) == 1)
        monkeypatch.setattr(events_module, "read", refuse)
        kernels.started[0].released.set()
        assert await refused(asking) == "INTERNAL"
        assert (await other).text == "wait"
        assert (await next_one).text == "1"


async def test_who_waits_has_the_answer_of_what_was_released_before_its_end() -> None:
    """It is given to those who wait, and not kept."""
    async with running_engine() as (engine, kernels):
        operation_id = await submit(engine, "wait")
        await in_kernel(kernels.started[0])
        asking = asyncio.ensure_future(get(engine, operation_id, wait=10))
        await asyncio.sleep(0)
        assert engine.operations.release([_ids.parse(operation_id)]) == 1
        kernels.started[0].released.set()
        assert result_of((await asking).outcome).text == "wait"
        assert await refused(get(engine, operation_id)) == "OPERATION_NOT_FOUND"


async def test_a_reader_of_what_was_released_is_told() -> None:
    """The rest is not there any more."""
    async with running_engine() as (engine, _):
        operation_id = await submit(engine, "1")
        await get(engine, operation_id, wait=10)
        events = follow(engine, operation_id)
        await anext(events)
        engine.operations.release([_ids.parse(operation_id)])
        with pytest.raises(DeliveryError, match="OPERATION_NOT_FOUND"):
            await anext(events)


# ---- stopping


async def test_a_late_cancel_changes_nothing() -> None:
    """One that has ended stays as it is, and nothing is interrupted."""
    async with running_engine() as (engine, kernels):
        operation_id = await submit(engine, "1")
        await get(engine, operation_id, wait=10)
        assert (await cancel(engine, operation_id)).state == operation_pb2.OPERATION_STATE_SUCCEEDED
        assert kernels.started[0].interrupts == 0


async def test_one_that_completes_all_the_same_has_succeeded() -> None:
    """Being asked to stop is no failure."""
    async with running_engine() as (engine, kernels):
        running = asyncio.ensure_future(execute(engine, "deaf"))
        await in_kernel(kernels.started[0])
        operation_id = engine.status().operation_id
        assert (await cancel(engine, operation_id)).stopping
        kernels.started[0].released.set()
        assert (await running).text == "deaf"
        answer = await get(engine, operation_id)
        assert answer.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_a_second_cancel_may_be_sharper() -> None:
    """An endless grace becomes none, and only interrupts become a kill; the error says what is lost."""
    async with running_engine() as (engine, kernels):
        operation = IDS.mint()
        running = asyncio.ensure_future(
            execute(engine, "deaf", operation_id=operation, grace=1_000.0, interrupt_only=True)
        )
        waiting = asyncio.ensure_future(execute(engine, "1"))
        moved = asyncio.ensure_future(execute(engine, "2", any_incarnation=True))
        await in_kernel(kernels.started[0])
        await cancel(engine, _ids.show(operation))
        assert kernels.started[0].interrupts == 1
        await cancel(engine, _ids.show(operation), grace=0, interrupt_only=False)
        with pytest.raises(DeliveryError) as caught:
            await running
        assert caught.value.reason == "OPERATION_CANCELLED"
        assert caught.value.metadata["namespace"] == "lost"
        assert "its kernel was killed" in caught.value.text
        assert kernels.started[0].interrupts == 2
        assert await refused(waiting) == "KERNEL_DIED"
        assert (await moved).text == "2"
        assert "did not stop when it was interrupted" in engine.last_failure
        record = await call(engine, engine_pb2.GetResultRequest(number=1), engine_pb2.GetResultResponse)
        assert record.result.error.category == error_pb2.ERROR_CATEGORY_KERNEL_DIED


async def test_what_takes_any_kernel_does_not_mind_how_its_session_lost_one() -> None:
    """A failure clears what its session queued behind it; the end of a kernel what was meant for that one."""
    async with running_engine() as (engine, _):
        session = b"sessionA"
        dying = asyncio.ensure_future(execute(engine, "die", session_id=session))
        bound = asyncio.ensure_future(execute(engine, "1", session_id=session))
        moved = asyncio.ensure_future(execute(engine, "2", session_id=session, any_incarnation=True))
        assert [await refused(task) for task in (dying, bound)] == ["KERNEL_DIED", "KERNEL_DIED"]
        assert (await moved).text == "2"


async def test_one_that_dies_by_itself_while_it_is_stopped_is_lost() -> None:
    """Only a kernel that the host killed makes it cancelled."""
    async with running_engine() as (engine, kernels):
        running = asyncio.ensure_future(execute(engine, "deaf"))
        await in_kernel(kernels.started[0])
        await cancel(engine, engine.status().operation_id)
        kernels.started[0].die(ExitStatus(-11))
        assert await refused(running) == "KERNEL_DIED"


async def test_what_the_kernel_does_not_have_yet_is_stopped_before_it_begins() -> None:
    """A large request is translated aside: cancelled meanwhile, it never reaches the kernel."""
    async with running_engine() as (engine, kernels):
        operation_id = await submit(engine, LARGE)
        assert (await cancel(engine, operation_id, grace=0)).state == operation_pb2.OPERATION_STATE_RUNNING
        answer = await get(engine, operation_id, wait=10)
        assert answer.outcome.error.reason == "OPERATION_CANCELLED"
        assert answer.outcome.error.metadata["namespace"] == "kept"
        assert not kernels.started[0].commands
        assert not kernels.started[0].exited.done()


async def test_what_has_its_answer_is_not_stopped() -> None:
    """While a large reply is composed a cancel, however sharp, kills nobody."""
    async with running_engine() as (engine, kernels):
        large = Encoded(Codec.TEXT, (bytes(1 << 20),))
        kernels.started[0].reply = lambda command: Reply(values={"value": large}, text="x")
        operation_id = await submit(engine, "1")
        await in_kernel(kernels.started[0])
        await asyncio.sleep(0)
        assert not (await cancel(engine, operation_id, grace=0)).stopping
        answer = await get(engine, operation_id, wait=10)
        assert answer.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED
        assert not kernels.started[0].exited.done()


async def test_the_answer_of_a_kernel_that_is_killed_counts() -> None:
    """One that stops just as it is killed is cancelled with its response; the next never meets that kernel."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        running = asyncio.ensure_future(execute(engine, "wait"))
        waiting = asyncio.ensure_future(execute(engine, "1"))
        moved = asyncio.ensure_future(execute(engine, "2", any_incarnation=True))
        await in_kernel(kernel)
        kernel.kill = lambda *args, **kwargs: None  # type: ignore[method-assign]
        await cancel(engine, engine.status().operation_id, grace=0)
        assert (await running).error.category == error_pb2.ERROR_CATEGORY_CANCELLED
        assert await refused(waiting) == "KERNEL_DIED"
        assert len(kernel.commands) == 1
        kernel.die(ExitStatus(-9, ordered=True))
        assert (await moved).text == "2"
        assert kernel.incarnation != engine.kernel.incarnation


async def test_the_timeout_of_one_never_stops_the_next() -> None:
    """It counts from when the operation begins to run, and ends with it."""
    async with running_engine() as (engine, kernels):
        assert (await execute(engine, "1", timeout=0.1)).text == "1"
        running = asyncio.ensure_future(execute(engine, "wait"))
        await in_kernel(kernels.started[0], 2)
        late = asyncio.ensure_future(execute(engine, "wait", timeout=0.01))
        await asyncio.sleep(0.12)
        assert kernels.started[0].interrupts == 0
        kernels.started[0].released.set()
        await asyncio.gather(running, late)


async def test_a_failure_by_stopping_clears_the_sessions_queue() -> None:
    """As any failure does, unless the call keeps the queue."""
    async with running_engine() as (engine, kernels):
        for keeps, expected in ((False, "QUEUE_CLEARED"), (True, "")):
            running = asyncio.ensure_future(execute(engine, "wait", session_id=b"sessions", keep_queue=keeps))
            behind = asyncio.ensure_future(execute(engine, "1", session_id=b"sessions"))
            await until(lambda: engine.queue.running is not None and len(engine.queue) == 1)
            await until(
                lambda: bool(kernels.started[0].commands) and kernels.started[0].commands[-1].code == "wait"
            )
            await cancel(engine, engine.status().operation_id)
            assert (await running).error.category == error_pb2.ERROR_CATEGORY_CANCELLED
            if expected:
                assert await refused(behind) == expected
            else:
                assert (await behind).text == "1"


# ---- limits


async def test_a_kernel_over_its_memory_limit_is_killed_and_the_operation_named() -> None:
    """Running or idle; the error has size, limit, method and operation, and the engine goes on."""
    async with running_engine(EngineOptions(memory_limit=2 << 20)) as (engine, kernels):
        operation = IDS.mint()
        running = asyncio.ensure_future(execute(engine, "wait", operation_id=operation))
        await in_kernel(kernels.started[0])
        kernels.started[0].memory = 3 << 20
        with pytest.raises(DeliveryError) as caught:
            await running
        assert caught.value.reason == "MEMORY_LIMIT_EXCEEDED"
        metadata = caught.value.metadata
        assert (metadata["size"], metadata["limit"]) == (str(3 << 20), str(2 << 20))
        assert (metadata["method"], metadata["operation_id"]) == ("execute", _ids.show(operation))
        assert (await execute(engine, "1")).text == "1"
        kernels.started[1].memory = 4 << 20
        await until(lambda: len(kernels.started) == 3)
        assert f"killed at {4 << 20} bytes of resident memory" in engine.status().last_failure


# ---- what the controller has


async def test_answers_are_unsettled_until_they_are_taken_for_good() -> None:
    """The listener hears of each end after those who waited; `unsettled` and inventory have it until then."""
    async with running_engine() as (engine, kernels):
        engine.listener = heard = Ended()
        first, second = await submit(engine, "1"), await submit(engine, "fail")
        await get(engine, second, wait=10)
        assert [_ids.show(operation.operation_id) for operation in heard.operations] == [first, second]
        assert [operation.outcome for operation in engine.unsettled()] == [
            frame_pb2.OUTCOME_OK,
            frame_pb2.OUTCOME_USER_ERROR,
        ]
        engine.settle([_ids.parse(first)])
        running = await submit(engine, "wait")
        assert engine.inventory() == [_ids.parse(second), _ids.parse(running)]
        assert (await get(engine, first)).HasField("outcome")
        statistics = engine.statistics()
        assert (statistics["operations"], statistics["ended"], statistics["unsettled"]) == (3, 2, 1)
        kernels.started[0].released.set()
        await get(engine, running, wait=10)


# ---- leaving


async def test_draining_finishes_what_runs_and_hands_back_what_waits() -> None:
    """Nothing more is taken, asking goes on, and the engine stops when it is idle."""
    async with running_engine() as (engine, kernels):
        running = asyncio.ensure_future(execute(engine, "wait"))
        waiting = asyncio.ensure_future(execute(engine, "1"))
        await in_kernel(kernels.started[0])
        operation_id = engine.status().operation_id
        engine.drain("the host stops", 60)
        assert (engine.is_draining, engine.is_stopping) == (True, False)
        assert engine.status().draining
        assert await refused(waiting) == "ENGINE_STOPPED"
        assert await refused(execute(engine, "2")) == "ENGINE_STOPPED"
        asked = await get(engine, operation_id)
        assert asked.operation.state == operation_pb2.OPERATION_STATE_RUNNING
        kernels.started[0].released.set()
        assert (await running).text == "wait"
        await engine.wait_stopped()
        assert engine.stop_reason == "the host stops"


@pytest.mark.parametrize("what", ["nothing", "deaf", "dies"])
async def test_draining_ends_whatever_runs(what: str) -> None:
    """At once if nothing does, after the grace if it does not end, and with a kernel that dies."""
    async with running_engine() as (engine, kernels):
        running = None if what == "nothing" else asyncio.ensure_future(execute(engine, "deaf"))
        if running is not None:
            await in_kernel(kernels.started[0])
        engine.drain("the host stops", 0.02 if what == "deaf" else 60)
        engine.drain("again", 0)
        if what == "dies":
            kernels.started[0].die(ExitStatus(-11))
        if running is not None:
            assert await refused(running) == ("KERNEL_DIED" if what == "dies" else "ENGINE_STOPPED")
        await engine.wait_stopped()
        assert len(kernels.started) == 1


async def test_stopping_does_not_wait_for_a_drain() -> None:
    """Who is told twice does not want to wait."""
    async with running_engine() as (engine, kernels):
        running = asyncio.ensure_future(execute(engine, "deaf"))
        await in_kernel(kernels.started[0])
        engine.drain("the host stops", 60)
        engine.stop("at once")
        assert await refused(running) == "ENGINE_STOPPED"
        await engine.wait_stopped()


async def test_one_operations_story_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """At level debug each line says which engine, operation and client it is about."""
    caplog.set_level("DEBUG", "engine_service")
    async with running_engine() as (engine, kernels):
        operation = IDS.mint()
        running = asyncio.ensure_future(execute(engine, "deaf", operation_id=operation, session_id=b"sessions"))
        await in_kernel(kernels.started[0])
        await cancel(engine, _ids.show(operation), grace=0)
        await refused(running)
        engine.settle([operation, operation, IDS.mint()])
    story = [
        record.getMessage().partition(":")[0]
        for record in caplog.records
        if getattr(record, "operation", b"") == operation and record.client == b"sessions"  # type: ignore[attr-defined]
    ]
    assert story == ["accepted", "began", "stop asked", "interrupt", "interrupt", "kill", "ended", "journaled"]
    assert "ended: cancelled" in caplog.messages


async def test_a_reply_says_what_an_operation_says() -> None:
    """The answer that is read by id is, byte for byte, the reply of the call."""
    async with running_engine() as (engine, _):
        operation = IDS.mint()
        request = engine_pb2.ExecuteRequest(code="fail").SerializeToString()
        reply = await engine.call(METHODS["Execute"], request, CallContext(operation))
        assert isinstance(reply, CallReply)
        answer = await get(engine, _ids.show(operation))
        assert answer.outcome.response.value == reply.response
        assert answer.outcome.state == operation_pb2.OPERATION_STATE_FAILED


@pytest.mark.parametrize("asked", ["true", "false"])
async def test_who_hangs_up_cancels_only_if_the_call_says_so(asked: str) -> None:
    """By default ending the waiting ends no operation."""
    async with running_engine() as (engine, kernels):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((engine_handlers([engine]),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            rpc: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
            rpc = channel.unary_unary(f"/{ENGINE_SERVICE.full_name}/Execute")
            request = engine_pb2.ExecuteRequest(code="wait").SerializeToString()
            waiting = rpc(request, metadata=((CANCEL_ON_DISCONNECT_KEY, asked),))
            await in_kernel(kernels.started[0])
            operation = engine.queue.running
            assert operation is not None
            waiting.cancel()
            if asked == "true":
                await until(lambda: operation.has_ended)
                assert operation.outcome == frame_pb2.OUTCOME_CANCELLED
            await server.stop(0)  # so that the host, too, knows that the caller is gone
            assert kernels.started[0].interrupts == (asked == "true")


@pytest.mark.parametrize("code", ["die", "large"])
async def test_a_kept_error_holds_nothing_else(code: str) -> None:
    """Not the frames in which it was raised, which hold the reply, nor those of who heard of it."""
    async with running_engine() as (engine, kernels):
        if code == "large":
            kernels.started[0].reply = lambda _: Reply(failure=Failure((), "x" * (5 << 20)))
        operation_id = IDS.mint()
        with pytest.raises(DeliveryError):
            await execute(engine, code, operation_id=operation_id)
        answer = engine.operations.find(operation_id).answer
        assert isinstance(answer, DeliveryError)
        assert (answer.__traceback__, answer.__cause__, answer.__context__) == (None, None, None)
