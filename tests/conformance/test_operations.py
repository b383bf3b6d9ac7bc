"""Operations: named, watched, stopped, timed out and read again, over every way to reach an engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from enginery import _ids
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, error_pb2, operation_pb2

from .under_test import Caller, EngineUnderTest

if TYPE_CHECKING:
    from pathlib import Path

ENDLESS = "print('begun', flush=True)\nwhile True: pass"
DEAF = """
import time
told = False
while True:
    try:
        if not told:
            told = True
            print('begun', flush=True)  # from here on an interrupt is in vain
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""
_new_ids = _ids.OperationIds()


def named() -> tuple[str, Caller]:
    """Return a new operation id as people write it, and a caller who uses it."""
    operation_id = _new_ids.mint()
    return _ids.show(operation_id), Caller(operation_id=operation_id)


async def begun(engine: EngineUnderTest, operation_id: str) -> None:
    """Wait until an operation that prints has printed a line."""
    text = ""
    async for event in engine.events(operation_id):
        text += event.stdout
        if "\n" in text:
            return
    raise AssertionError("it ended without printing")


async def known(engine: EngineUnderTest, operation_id: str) -> None:
    """Wait until an operation that was called has arrived."""
    while True:
        try:
            await engine.operation(operation_id)
        except DeliveryError as error:
            if error.reason != "OPERATION_NOT_FOUND":
                raise
            await asyncio.sleep(0.01)
        else:
            return


def result_of(outcome: operation_pb2.OperationOutcome) -> engine_pb2.ExecuteResult:
    """Return the result that an outcome carries."""
    response = engine_pb2.ExecuteResponse()
    assert outcome.response.Unpack(response), outcome
    return response.result


async def test_submit_wait_and_read(engine: EngineUnderTest) -> None:
    """An operation is submitted, waited for, and its typed answer is read by its id."""
    operation_id = await engine.submit("1 + 1")
    answer = await engine.operation(operation_id, wait=10)
    assert answer.operation.state == answer.outcome.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    assert result_of(answer.outcome).value.json.number_value == 2
    operation = answer.operation
    assert (operation.method, operation.arguments) == ("execute", "1 + 1")
    assert all(time.seconds for time in (operation.submit_time, operation.start_time, operation.end_time))
    assert operation.incarnation


async def test_a_unary_call_is_an_operation(engine: EngineUnderTest) -> None:
    """A call that names its operation can be read again by that name."""
    operation_id, caller = named()
    await engine.execute("print('seen'); 6 * 7", caller=caller)
    answer = await engine.operation(operation_id)
    assert result_of(answer.outcome).text == "42"
    assert result_of(answer.outcome).stdout == "seen\n"


async def test_events_in_order(engine: EngineUnderTest) -> None:
    """Started, output, displays and progress come as they happen, by rising sequence, and the outcome last."""
    code = (
        "import sys\nprint('one', flush=True)\nget_engine().display({'shown': 1})\n"
        "print('two', file=sys.stderr, flush=True)\nget_engine().progress(0.5, 'half')\n'end'"
    )
    operation_id = await engine.submit(code)
    await engine.operation(operation_id, wait=10)  # pieces of output that nobody has read are one
    events = [event async for event in engine.events(operation_id)]
    kinds = [event.WhichOneof("kind") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "outcome")
    assert [kind for kind in kinds if kind in ("stdout", "display")] == ["stdout", "display"]
    assert set(kinds) == {"started", "stdout", "display", "stderr", "progress", "outcome"}
    sequences = [event.sequence for event in events]
    assert sequences == list(range(1, len(events) + 1))
    assert result_of(events[-1].outcome).text == "'end'"
    assert [event.sequence async for event in engine.events(operation_id, after=2)] == sequences[2:]
    answer = await engine.operation(operation_id, after=1)
    assert [event.sequence for event in answer.events] == sequences[1:-1]
    assert answer.operation.last_sequence == sequences[-1]


async def test_output_is_followed_while_it_runs(engine: EngineUnderTest) -> None:
    """Two clients see what is printed before the operation ends, each from where it likes."""
    operation_id = await engine.submit(ENDLESS)
    await begun(engine, operation_id)
    await begun(engine, operation_id)
    running = await engine.operation(operation_id, after=0)
    assert running.operation.state == operation_pb2.OPERATION_STATE_RUNNING
    assert not running.HasField("outcome")
    assert "".join(event.stdout for event in running.events) == "begun\n"
    assert (await engine.cancel(operation_id)).stopping
    outcomes = [event async for event in engine.events(operation_id, after=2)]
    assert outcomes[-1].outcome.state == operation_pb2.OPERATION_STATE_CANCELLED


async def test_cancel_of_what_runs(engine: EngineUnderTest) -> None:
    """It is interrupted; the answer says where it was, its output is there, and so is the namespace."""
    await engine.push(kept=[1, 2])
    operation_id = await engine.submit(ENDLESS)
    await begun(engine, operation_id)
    await engine.cancel(operation_id)
    answer = await engine.operation(operation_id, wait=10)
    assert answer.outcome.state == operation_pb2.OPERATION_STATE_CANCELLED
    result = result_of(answer.outcome)
    assert result.error.category == error_pb2.ERROR_CATEGORY_CANCELLED
    assert result.error.errors[0].type_name == "KeyboardInterrupt"
    assert result.stdout == "begun\n"
    assert await engine.pull("kept") == {"kept": [1, 2]}
    again = await engine.cancel(operation_id)
    assert again.state == operation_pb2.OPERATION_STATE_CANCELLED


async def test_cancel_of_what_waits(engine: EngineUnderTest) -> None:
    """It is taken out of the queue and never runs; what is around it runs."""
    running = await engine.submit(ENDLESS)
    await begun(engine, running)
    waiting = await engine.submit("ran = True")
    behind = await engine.submit("behind = True")
    cancelled = await engine.cancel(waiting)
    assert cancelled.state == operation_pb2.OPERATION_STATE_CANCELLED
    await engine.cancel(running)
    assert (await engine.operation(behind, wait=10)).outcome.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    answer = await engine.operation(waiting)
    assert answer.outcome.error.reason == "OPERATION_CANCELLED"
    assert answer.outcome.error.metadata["namespace"] == "kept"
    assert await engine.evaluate("'ran' in globals(), behind") == (False, True)


async def test_who_waits_for_a_cancelled_call_is_told(engine: EngineUnderTest) -> None:
    """The unary call of a cancelled operation gets the interrupt as data, category CANCELLED."""
    operation_id, caller = named()
    waiting = asyncio.ensure_future(engine.execute(ENDLESS, caller=caller))
    await known(engine, operation_id)
    await begun(engine, operation_id)
    await engine.cancel(operation_id)
    result = await asyncio.wait_for(waiting, 10)
    assert result.error.category == error_pb2.ERROR_CATEGORY_CANCELLED


async def test_timeout(engine: EngineUnderTest) -> None:
    """A call that runs longer than its timeout is stopped; the time in the queue does not count."""
    first, second = Caller(timeout=0.2), Caller(timeout=30)
    one, two = await asyncio.gather(
        engine.execute("while True: pass", caller=first), engine.execute("1", caller=second)
    )
    assert one.error.category == error_pb2.ERROR_CATEGORY_TIMED_OUT
    assert two.text == "1"


async def test_what_does_not_stop_is_killed(engine: EngineUnderTest) -> None:
    """After two interrupts the kernel is killed: the error says so, and the id is back soon."""
    before = await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
    operation_id, caller = named()
    caller = Caller(operation_id=caller.operation_id, timeout=0.4, grace=0.1)  # it begins long before
    with pytest.raises(DeliveryError) as caught:
        await engine.execute(DEAF, caller=caller)
    assert caught.value.reason == "OPERATION_TIMED_OUT"
    assert caught.value.metadata["namespace"] == "lost"
    async with asyncio.timeout(10):
        assert await engine.evaluate("1") == 1
    after = await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
    assert after.engine_id == before.engine_id
    assert after.incarnation != before.incarnation
    events = [event async for event in engine.events(operation_id)]
    assert "".join(event.stdout for event in events) == "begun\n"
    assert events[-1].outcome.state == operation_pb2.OPERATION_STATE_TIMED_OUT


async def test_interrupt_only_never_kills(engine: EngineUnderTest) -> None:
    """A call that says so keeps its kernel, whatever it does with interrupts."""
    before = await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
    code = "import time\ncount = 0\nwhile count < 2:\n"
    code += "    try: time.sleep(60)\n    except KeyboardInterrupt: count += 1\n"
    code += "time.sleep(0.2)  # two graces in which it could be killed\n'done'"
    caller = Caller(timeout=0.4, grace=0.1, interrupt_only=True)  # it begins long before
    result = await engine.execute(code, caller=caller)
    assert result.text == "'done'"
    after = await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
    assert after.incarnation == before.incarnation


async def test_the_same_id_never_runs_twice(engine: EngineUnderTest) -> None:
    """It joins what runs and gets the answer of what has run; another call under it is refused."""
    await engine.execute("count = 0")
    operation_id, caller = named()
    code = "import time; count += 1; time.sleep(0.2); count"
    results = await asyncio.gather(*(engine.execute(code, caller=caller) for _ in range(3)))
    assert [result.text for result in results] == ["1", "1", "1"]
    assert (await engine.execute(code, caller=caller)).text == "1"
    assert await engine.submit(code, caller) == operation_id
    assert await engine.evaluate("count") == 1
    with pytest.raises(DeliveryError) as caught:
        await engine.execute("count += 100", caller=caller)
    assert caught.value.reason == "OPERATION_EXISTS"


async def test_who_goes_away_stops_nothing(engine: EngineUnderTest) -> None:
    """Ending the waiting ends no operation; the answer can be had later."""
    operation_id, caller = named()
    waiting = asyncio.ensure_future(engine.execute("import time; time.sleep(0.3); 'ran'", caller=caller))
    await known(engine, operation_id)
    waiting.cancel()
    answer = await engine.operation(operation_id, wait=10)
    assert result_of(answer.outcome).text == "'ran'"


async def test_list_and_release(engine: EngineUnderTest) -> None:
    """Operations are listed, the newest first, by page, state and session; a released one is known no more."""
    session = Caller(session_id=b"\x07" * 8)
    ids = [await engine.submit(f"{number} / 1", session) for number in range(5)]
    bad = await engine.submit("1 / 0", session)
    for operation_id in (*ids, bad):
        await engine.operation(operation_id, wait=10)
    request = operation_pb2.ListOperationsRequest(page_size=4, session_id=session.session_id.hex())
    first = await engine.call(request, operation_pb2.ListOperationsResponse)
    request.page_token = first.next_page_token
    second = await engine.call(request, operation_pb2.ListOperationsResponse)
    listed = [operation.operation_id for page in (first, second) for operation in page.operations]
    assert listed == [bad, *reversed(ids)]
    assert not second.next_page_token
    failed = operation_pb2.ListOperationsRequest(
        states=[operation_pb2.OPERATION_STATE_FAILED], session_id=session.session_id.hex()
    )
    only = await engine.call(failed, operation_pb2.ListOperationsResponse)
    assert [operation.operation_id for operation in only.operations] == [bad]
    release = operation_pb2.ReleaseRequest(operation_ids=[bad])
    assert (await engine.call(release, operation_pb2.ReleaseResponse)).released_count == 1
    with pytest.raises(DeliveryError) as caught:
        await engine.operation(bad)
    assert caught.value.reason == "OPERATION_NOT_FOUND"


async def test_unknown_operations(engine: EngineUnderTest) -> None:
    """An id that nobody knows is NOT_FOUND for every call that needs it; one that is no id is refused."""
    unknown = _ids.show(_new_ids.mint())
    with pytest.raises(DeliveryError) as caught:
        await engine.operation(unknown)
    assert caught.value.reason == "OPERATION_NOT_FOUND"
    with pytest.raises(DeliveryError) as caught:
        await engine.cancel(unknown)
    assert caught.value.reason == "OPERATION_NOT_FOUND"
    with pytest.raises(DeliveryError) as caught:
        _ = [event async for event in engine.events(unknown)]
    assert caught.value.reason == "OPERATION_NOT_FOUND"
    with pytest.raises(DeliveryError) as caught:
        await engine.operation("seven")
    assert caught.value.reason == "BAD_REQUEST"


async def test_dead_kernels_take_their_queue_unless_told(engine: EngineUnderTest, tmp_path: Path) -> None:
    """What was queued for a kernel that died is lost with it, but for calls that do not mind a new one."""
    go = tmp_path / "go"
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.005)\nos._exit(3)"
    operation_id = await engine.submit(code)
    lost = await engine.submit("'lost'")
    moved = await engine.submit("'moved'", Caller(any_incarnation=True))
    go.touch()
    answer = await engine.operation(operation_id, wait=10)
    assert answer.outcome.state == operation_pb2.OPERATION_STATE_LOST
    assert "exit code 3" in answer.outcome.error.message
    assert (await engine.operation(lost, wait=10)).outcome.error.reason == "KERNEL_DIED"
    assert result_of((await engine.operation(moved, wait=10)).outcome).text == "'moved'"
