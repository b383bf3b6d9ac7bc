"""Tasks of one engine over fake kernels: several lie ready in its kernel, and each ends as if it were alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine_service.engine import EngineOptions
from engine_service.kernel_page import AHEAD
from engine_service.kernel_process import ExitStatus, Reply
from enginery import _ids
from enginery._encoded import Codec, Encoded
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, error_pb2, operation_pb2
from tests.host.fakes import IDS, FakeKernel, call, execute, refused, running_engine, until

if TYPE_CHECKING:
    from engine_service.engine import Engine


def start(engine: Engine, *codes: str, **context: Any) -> list[asyncio.Future[engine_pb2.ExecuteResult]]:
    """Submit tasks."""
    return [asyncio.ensure_future(execute(engine, code, **task(**context))) for code in codes]


def task(**context: Any) -> dict[str, Any]:
    """Return the context of a task, as the link makes it."""
    return {"is_task": True, "any_incarnation": True, **context}


async def error_of(ended: asyncio.Future[Any]) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await ended
    return caught.value


async def cancel(engine: Engine, operation_id: bytes, **how: Any) -> None:
    request = operation_pb2.CancelRequest(operation_id=_ids.show(operation_id))
    if "grace" in how:
        request.grace.FromMilliseconds(how["grace"])
    await call(engine, request, operation_pb2.CancelResponse)


async def held(kernel: FakeKernel, count: int = AHEAD) -> None:
    """Wait until the kernel has so many and has begun the first."""
    await until(lambda: len(kernel.line) == count and bool(kernel.commands))


def ran(kernel: FakeKernel) -> list[str]:
    return [command.code for command in kernel.commands]


async def test_up_to_eight_lie_ready_in_the_kernel() -> None:
    """In their order; those that have not begun are queued, as those are that the kernel does not have."""
    async with running_engine() as (engine, kernels):
        tasks = start(engine, "wait", *map(str, range(9)))
        kernel = kernels.started[0]
        await held(kernel)
        assert len(engine.queue) == 2
        assert engine.status().queued_count == 9
        status = await call(engine, engine_pb2.QueueStatusRequest(), engine_pb2.QueueStatusResponse)
        assert status.pending.arguments == "wait"
        assert [waiting.arguments for waiting in status.queue] == [str(number) for number in range(9)]
        states = [operation.state for operation in reversed(list(engine.operations.newest_first()))]
        assert states[0] == operation_pb2.OPERATION_STATE_RUNNING
        assert set(states[1:]) == {operation_pb2.OPERATION_STATE_QUEUED}
        kernel.released.set()
        assert [result.text for result in await asyncio.gather(*tasks)] == ["wait", *map(str, range(9))]
        assert ran(kernel) == ["wait", *map(str, range(9))]


async def test_what_has_not_begun_is_given_back() -> None:
    """Another engine is free: what waits ends at once, what lies in the kernel when that comes to it.

    It may come again under its id. What runs, and what is no task, is left alone.
    """
    async with running_engine() as (engine, kernels):
        ids = [IDS.mint() for _ in range(12)]
        tasks = [start(engine, "wait" if not n else str(n), operation_id=one)[0] for n, one in enumerate(ids)]
        kernel = kernels.started[0]
        await held(kernel)
        plain = IDS.mint()
        last = asyncio.ensure_future(execute(engine, "plain", operation_id=plain))
        await until(lambda: len(engine.queue) == 5)
        engine.recall([*ids, plain, IDS.mint()])
        errors = [await error_of(one) for one in tasks[AHEAD:]]
        assert {error.reason for error in errors} == {"QUEUE_CLEARED"}
        assert not any(one.done() for one in tasks[:AHEAD])
        kernel.released.set()
        assert (await tasks[0]).text == "wait"
        assert {(await error_of(one)).reason for one in tasks[1:AHEAD]} == {"QUEUE_CLEARED"}
        assert (await last).text == "plain"
        assert (await start(engine, "again", operation_id=ids[-1])[0]).text == "again"


async def test_what_is_no_task_waits_for_those_before_it_and_is_waited_for() -> None:
    """So that its failure can clear what its session queued, and nothing overtakes anything."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        first = start(engine, "wait", "a")
        plain = asyncio.ensure_future(execute(engine, "plain"))
        last = start(engine, "b", "c")
        await held(kernel, 2)
        assert len(engine.queue) == 3
        kernel.released.set()
        await asyncio.gather(*first, plain, *last)
        assert ran(kernel) == ["wait", "a", "plain", "b", "c"]


async def test_a_task_that_fails_clears_nothing() -> None:
    """Neither what lies ready behind it nor what waits."""
    async with running_engine() as (engine, _):
        failed, *others = start(engine, "fail", *map(str, range(12)))
        assert (await failed).error.category == error_pb2.ERROR_CATEGORY_USER
        assert [(await other).text for other in others] == [str(number) for number in range(12)]


async def test_output_displays_and_progress_are_of_the_task_that_runs() -> None:
    """Not of those that lie ready."""
    async with running_engine() as (engine, _):
        results = await asyncio.gather(*start(engine, *(f"print {number}" for number in range(5))))
        assert [result.stdout for result in results] == [str(number) for number in range(5)]


async def test_a_large_task_is_translated_aside_and_keeps_its_place() -> None:
    """What comes after it is handed over after it."""
    async with running_engine() as (engine, kernels):
        large = "#" * (1 << 20)
        await asyncio.gather(*start(engine, "a", large, "b", large, "c", "d"))
        assert ran(kernels.started[0]) == ["a", large, "b", large, "c", "d"]


async def test_a_large_answer_is_composed_aside_while_the_next_ones_run() -> None:
    """Each gets its own."""
    async with running_engine() as (engine, kernels):
        large = Encoded(Codec.TEXT, (b"x" * (1 << 19),))
        kernels.started[0].reply = lambda command: Reply(
            values={"value": large} if command.code == "large" else {}, text=command.code
        )
        results = await asyncio.gather(*start(engine, *["large", "small"] * 6))
        assert [result.text for result in results] == ["large", "small"] * 6
        assert [len(result.value.text) for result in results] == [1 << 19, 0] * 6


async def test_one_that_lies_ready_is_cancelled_alone_and_never_runs() -> None:
    """It ends with the answer of the kernel, which does not begin it."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        operation = IDS.mint()
        before = start(engine, "wait", "a")
        (cancelled,) = start(engine, "never", operation_id=operation)
        after = start(engine, "b")
        await held(kernel, 4)
        await cancel(engine, operation)
        await cancel(engine, operation)
        assert not cancelled.done()
        kernel.released.set()
        error = await error_of(cancelled)
        assert (error.reason, error.metadata["namespace"]) == ("OPERATION_CANCELLED", "kept")
        await asyncio.gather(*before, *after)
        assert ran(kernel) == ["wait", "a", "b"]
        assert kernel.interrupts == 0


async def test_one_that_has_begun_before_it_was_revoked_is_stopped() -> None:
    """Once the answer before it is read; the ladder is that of its cancel."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        kernel.revoke = lambda operation_id: None  # type: ignore[method-assign]  # it comes too late
        operation = IDS.mint()
        (first,) = start(engine, "wait")
        (cancelled,) = start(engine, "wait", operation_id=operation)
        await held(kernel, 2)
        await cancel(engine, operation)
        assert engine.interrupt(operation) == b""
        assert engine.interrupt(b"")
        assert (await first).error.category == error_pb2.ERROR_CATEGORY_INTERRUPTED
        assert (await cancelled).error.category == error_pb2.ERROR_CATEGORY_CANCELLED
        assert kernel.interrupts == 2


@pytest.mark.parametrize("how", ["cleared", "drained", "stopped", "reset"])
async def test_those_that_lie_ready_end_as_those_that_wait(how: str) -> None:
    """Nothing of them runs; the controller reads that it may place them elsewhere."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        running, *others = start(engine, "wait", *map(str, range(10)))
        await held(kernel)
        reset = None
        if how == "cleared":
            request = engine_pb2.ClearQueueRequest()
            assert (await call(engine, request, engine_pb2.ClearQueueResponse)).cleared_count == 10
        elif how == "drained":
            engine.drain("test", 60)
        elif how == "stopped":
            engine.stop("test")
        else:
            reset = asyncio.ensure_future(call(engine, engine_pb2.ResetRequest(), engine_pb2.ResetResponse))
            await asyncio.sleep(0)
        kernel.released.set()
        errors = [await error_of(other) for other in others]
        expected = "QUEUE_CLEARED" if how in ("cleared", "reset") else "ENGINE_STOPPED"
        assert {error.reason for error in errors} == {expected}
        if expected == "ENGINE_STOPPED":
            assert {error.metadata["has_run"] for error in errors} == {"false"}
        if how == "stopped":
            assert "has_run" not in (await error_of(running)).metadata
        else:
            assert (await running).text == "wait"
        if reset is not None:
            await reset
        assert [code for code in ran(kernel) if code] == ["wait"]


async def test_a_task_that_was_cleared_may_come_again() -> None:
    """Under the same id, as its controller places it: it runs then, and the old error is not told again."""
    async with running_engine() as (engine, kernels):
        ids = [IDS.mint(), IDS.mint()]
        (running,) = start(engine, "wait")
        others = [*start(engine, "1", operation_id=ids[0]), *start(engine, "2", operation_id=ids[1])]
        await held(kernels.started[0], 3)
        await call(engine, engine_pb2.ClearQueueRequest(), engine_pb2.ClearQueueResponse)
        kernels.started[0].released.set()
        assert {(await error_of(other)).reason for other in others} == {"QUEUE_CLEARED"}
        await running
        again = [*start(engine, "1", operation_id=ids[0]), *start(engine, "2", operation_id=ids[1])]
        assert [(await one).text for one in again] == ["1", "2"]
        assert ran(kernels.started[0]) == ["wait", "1", "2"]


async def test_what_a_dead_kernel_had_not_begun_runs_on_the_next() -> None:
    """In the old order and before what waits; the one that ran is lost, what was cancelled is not run."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        operation = IDS.mint()
        (dying,) = start(engine, "deaf")
        some = start(engine, "0", "1")
        (cancelled,) = start(engine, "never", operation_id=operation)
        more = start(engine, *map(str, range(2, 12)))
        await held(kernel)
        await cancel(engine, operation)
        kernel.die(ExitStatus(-11))
        assert (await error_of(dying)).reason == "KERNEL_DIED"
        assert (await error_of(cancelled)).reason == "OPERATION_CANCELLED"
        assert [(await one).text for one in [*some, *more]] == [str(number) for number in range(12)]
        assert ran(kernel) == ["deaf"]
        assert ran(kernels.started[1]) == [str(number) for number in range(12)]


async def test_a_kernel_that_dies_before_it_begins_what_it_was_given_says_so() -> None:
    """The controller may place it anew, since it cannot have run."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        kernel._serve = asyncio.Event().wait  # type: ignore[assignment]  # it begins nothing
        (given,) = start(engine, "1")
        await until(lambda: bool(kernel.line))
        kernel.die(ExitStatus(-9))
        error = await error_of(given)
        assert (error.reason, error.metadata["has_run"]) == ("KERNEL_DIED", "false")


async def test_a_kernel_that_is_killed_for_one_takes_no_other_along() -> None:
    """They go to the next kernel."""
    async with running_engine() as (engine, kernels):
        (deaf,) = start(engine, "deaf", timeout=0.01, grace=0.01)
        others = start(engine, *map(str, range(10)))
        error = await error_of(deaf)
        assert (error.reason, error.metadata["namespace"]) == ("OPERATION_TIMED_OUT", "lost")
        assert [(await other).text for other in others] == [str(number) for number in range(10)]
        assert ran(kernels.started[0]) == ["deaf"]


async def test_one_that_ends_just_before_its_kernel_is_killed_keeps_it() -> None:
    """Its answer is read first; what was recalled for the kill goes back, and runs in its order."""
    async with running_engine() as (engine, kernels):
        kernel = kernels.started[0]
        operation = IDS.mint()
        (deaf,) = start(engine, "deaf", operation_id=operation)
        others = start(engine, *map(str, range(10)))
        await held(kernel)

        def catch_up() -> None:
            _, done = kernel.line.popleft()
            kernel.serving.cancel()  # type: ignore[union-attr]
            done(Reply(text="deaf", started_at=1, duration=1))
            kernel.serving = asyncio.create_task(kernel._serve())

        kernel.catch_up = catch_up  # type: ignore[method-assign]
        await cancel(engine, operation, grace=0)
        assert (await deaf).text == "deaf"
        assert [(await other).text for other in others] == [str(number) for number in range(10)]
        assert ran(kernel) == ["deaf", *map(str, range(10))]
        assert len(kernels.started) == 1


async def test_the_timeout_of_a_task_counts_from_when_it_runs() -> None:
    """Not while it lies ready."""
    async with running_engine() as (engine, kernels):
        (first,) = start(engine, "wait")
        (timed,) = start(engine, "deaf", timeout=0.02, grace=60)
        await held(kernels.started[0], 2)
        await asyncio.sleep(0.05)
        assert kernels.started[0].interrupts == 0
        kernels.started[0].released.set()
        await asyncio.gather(first, timed)


async def test_memory_that_is_over_its_limit_is_the_one_s_that_runs() -> None:
    """The others go to the next kernel."""
    async with running_engine(EngineOptions(memory_limit=2 << 20)) as (engine, kernels):
        running, *others = start(engine, "wait", "1", "2")
        await held(kernels.started[0], 3)
        kernels.started[0].memory = 3 << 20
        assert (await error_of(running)).reason == "MEMORY_LIMIT_EXCEEDED"
        assert [(await other).text for other in others] == ["1", "2"]


async def test_a_refused_task_is_told_that_it_has_not_run() -> None:
    """Of an engine that drains."""
    async with running_engine() as (engine, kernels):
        (running,) = start(engine, "wait")
        await held(kernels.started[0], 1)
        engine.drain("test", 60)
        (late,) = start(engine, "1")
        assert (await error_of(late)).metadata["has_run"] == "false"
        assert await refused(execute(engine, "1")) == "ENGINE_STOPPED"
        kernels.started[0].released.set()
        await running


async def test_a_task_that_was_rejected_and_released_may_come_again() -> None:
    """It has not run: a controller that lost count of who rejected it places it here once more."""
    async with running_engine() as (engine, kernels):
        operation_id, other_id = IDS.mint(), IDS.mint()
        for _ in range(2):
            (rejected,) = start(engine, "reject", operation_id=operation_id)
            assert (await rejected).error.category == error_pb2.ERROR_CATEGORY_REJECTED
            assert engine.operations.release([operation_id]) == 1
        (failed,) = start(engine, "fail", operation_id=other_id)
        await failed
        engine.operations.release([other_id])
        assert await refused(execute(engine, "fail", **task(operation_id=other_id))) == "OPERATION_RELEASED"
        assert ran(kernels.started[0]) == ["reject", "reject", "fail"]
