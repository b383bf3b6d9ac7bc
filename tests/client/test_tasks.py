"""Tasks as their client has them: what is sent, what is refused before that, what comes back."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import operator
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import enginery
from enginery import _methods
from enginery._chunk_size import LARGEST
from enginery._reasons import DeliveryError
from enginery.errors import OperationCancelled, SerializationError, TaskReject, ValueTooLarge
from enginery.v1 import frame_pb2
from tests.client.test_operations import interrupt_when

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.client.fake import FakeController


def sent(controller: FakeController) -> frame_pb2.Call:
    """Return the call that came last."""
    return controller.calls[-1]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---- submit


def test_a_task_is_a_call_of_any_engine(client: enginery.Client, controller: FakeController) -> None:
    """Its operation is a future like others; which engine ran it, and how often, is known when it is done."""
    controller.frozen.add(_methods.ANY_ENGINE)
    operation = client.submit(operator.add, 1, 2)
    assert (operation.engine_id, operation.attempts) == (-1, 0)
    assert repr(operation).startswith("<Operation [any:apply] waiting")
    until(lambda: bool(controller.held))
    controller.thaw()
    assert operation.result(5) == 3
    assert (operation.engine_id in (0, 1), operation.attempts) == (True, 1)
    call = sent(controller)
    assert (call.engine_id, call.HasField("task"), call.HasField("options")) == (-1, True, False)
    assert call.task == frame_pb2.TaskOptions()


def test_options_travel(client: enginery.Client, controller: FakeController) -> None:
    """Those of placing in `task`, those of running in `options`."""
    before = client.submit(abs, -1)
    before.result(5)
    controller.frozen.add(_methods.ANY_ENGINE)
    waiting = [client.submit(abs, -n) for n in range(2)]
    other = "11111111-2222-8333-8444-555555555555"
    client.tasks(after_any_outcome=True, placement_timeout=2.5, grace=1.0, interrupt_only=True).submit(
        abs,
        -1,
        retries=3,
        where={"gpu": True, "memory": 16},
        priority=-5,
        after=[before, enginery.Group(waiting), waiting[0], other],
        label="mine",
        timeout=1.5,
    )
    until(lambda: len(controller.calls) == 4)
    task, options = sent(controller).task, sent(controller).options
    assert (task.retries, task.priority, task.label) == (3, -5, "mine")
    assert dict(task.where) == {"gpu": True, "memory": 16}
    assert list(task.after) == [waiting[0].id, waiting[1].id, other]  # `before` is known to have succeeded
    assert task.after_any_outcome
    assert task.placement_timeout.ToMilliseconds() == 2500
    assert (options.timeout.ToMilliseconds(), options.grace.ToMilliseconds()) == (1500, 1000)
    assert options.interrupt_only
    client.submit(abs, -1, after=other, after_any_outcome=True, placement_timeout=2.5)
    until(lambda: len(controller.calls) == 5)
    task = sent(controller).task
    assert (task.after_any_outcome, task.placement_timeout.ToMilliseconds()) == (True, 2500)
    controller.thaw()
    assert list(client.map(abs, [-1], placement_timeout=2.5)) == [1]
    assert sent(controller).task.placement_timeout.ToMilliseconds() == 2500


def test_settings_hold_within_a_block(client: enginery.Client, controller: FakeController) -> None:
    """`with tasks.options(...)` lends them to `tasks`; views made of it keep theirs."""
    tasks = client.tasks(retries=1)
    with tasks.options(priority=7) as urgent:
        tasks.submit(abs, -1).result(5)
        assert (sent(controller).task.retries, sent(controller).task.priority) == (1, 7)
    urgent.submit(abs, -1).result(5)
    assert sent(controller).task.priority == 7
    tasks.submit(abs, -1).result(5)
    assert sent(controller).task.priority == 0
    made = tasks.options(where={"gpu": True}, timeout=2.0)
    assert repr(made).startswith("<TaskView retries=1 where={'gpu': True} timeout=2.0 of <Client ")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"retries": -1}, ValueError),
        ({"retries": True}, TypeError),
        ({"retries": 1.5}, TypeError),
        ({"priority": 1001}, ValueError),
        ({"priority": "high"}, TypeError),
        ({"where": "gpu"}, TypeError),
        ({"where": {1: 2}}, TypeError),
        ({"where": {"a": {1, 2}}}, ValueError),
        ({"where": {"a": 1 << 60}}, ValueError),
        ({"after": "me"}, ValueError),
        ({"after": 5}, TypeError),
        ({"after": [5]}, TypeError),
        ({"after": [f"{n:032x}" for n in range(1001)]}, ValueError),
        ({"label": 5}, TypeError),
        ({"label": "x" * 201}, ValueError),
        ({"timeout": -1.0}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
)
def test_options_that_make_no_sense_are_refused_here(
    client: enginery.Client, controller: FakeController, options: dict[str, Any], error: type[Exception]
) -> None:
    """Before anything is sent."""
    with pytest.raises(error):
        client.submit(abs, -1, **options)
    with pytest.raises(error):
        client.tasks(**options)
    assert controller.calls == []


def test_a_parameter_of_a_reserved_name_is_told(client: enginery.Client) -> None:
    """It might have been meant for the function."""

    def wait(timeout: float = 0.0) -> float:
        return timeout

    with pytest.raises(TypeError, match="submit takes timeout= for itself"):
        client.submit(wait, timeout=3.0)
    assert client.submit(functools.partial(wait, timeout=3.0)).result(5) == 3.0
    assert client.tasks()._submit(wait, (), {"timeout": 4.0}).result(5) == 4.0


def test_what_cannot_be_sent_fails_here(client: enginery.Client, controller: FakeController) -> None:
    """What cannot be pickled, and what is larger than a message: a task has no engine to upload to."""
    with pytest.raises(SerializationError, match="argument 1"):
        client.submit(abs, threading.Lock())
    with pytest.raises(TypeError, match="not int"):
        client.submit(5)  # type: ignore[call-overload]
    with pytest.raises(ValueTooLarge, match="reference"):
        client.submit(len, os.urandom(5 << 20))
    assert controller.calls == []
    assert client.submit(len, os.urandom(3 << 20)).result(10) == 3 << 20


def test_code_is_a_task_too(client: enginery.Client, controller: FakeController) -> None:
    """`execute` runs it in the namespace of whichever engine."""
    assert client.tasks(label="sum").execute("1 + 1").result(5).value == 2
    assert (sent(controller).engine_id, sent(controller).task.label) == (-1, "sum")


def test_a_name_names_a_function_of_the_engines(client: enginery.Client) -> None:
    """As for `apply`."""
    assert client.submit("abs", -5).result(5) == 5


def test_cancel_asks_for_any_engine(client: enginery.Client, controller: FakeController) -> None:
    """Who has the task the controller knows."""
    controller.frozen.add(_methods.ANY_ENGINE)
    operation = client.submit(abs, -1)
    until(lambda: bool(controller.held))
    assert operation.cancel()
    with pytest.raises(OperationCancelled):
        operation.result(5)
    assert (sent(controller).method, sent(controller).engine_id) == (_methods.METHODS["Cancel"], -1)


def test_a_task_that_was_refused_holds_back_no_other(
    client: enginery.Client, controller: FakeController
) -> None:
    """Tasks have no order: those that were taken may take long, and what was refused goes before."""
    controller.frozen.add(_methods.ANY_ENGINE)
    taken = client.submit(abs, -1)
    until(lambda: len(controller.held) == 1)
    controller.frozen.clear()
    controller.refusals[-1] = DeliveryError("QUEUE_FULL", engine_id=-1, size="100000 tasks", option="nothing")
    refused = client.submit(abs, -2)
    until(lambda: client.statistics()["refused"] > 0)
    controller.refusals.clear()
    assert refused.result(5) == 2
    assert not taken.done()
    controller.thaw()
    assert taken.result(5) == 1


def test_tasks_are_sent_again_with_the_epoch_of_their_first_controller(
    client: enginery.Client, controller: FakeController
) -> None:
    """So that a new controller knows that they may have run; one that was never sent says nothing."""
    controller.frozen.add(_methods.ANY_ENGINE)
    operation = client.submit(abs, -1)
    until(lambda: len(controller.calls) == 1)
    assert sent(controller).sent_epoch == 0
    controller.stop()
    controller.epoch = 2
    until(lambda: not client.statistics()["connected"])
    later = client.submit(abs, -2)
    controller.start()
    until(lambda: len(controller.calls) == 3)
    assert {call.call_id: call.sent_epoch for call in controller.calls[1:]} == {1: 1, 2: 0}
    controller.thaw()
    assert (operation.result(5), later.result(5)) == (1, 2)


def test_a_rejection_that_nobody_takes_is_raised(client: enginery.Client) -> None:
    """As what it is."""

    def picky() -> None:
        raise TaskReject("no GPU here")

    with pytest.raises(TaskReject, match="no GPU"):
        client.submit(picky).result(5)


# ---- map


def test_map_gives_values_in_order(client: enginery.Client) -> None:
    """Of one iterable or several, the shortest of which ends it."""
    assert list(client.map(abs, range(-50, 50))) == [abs(n) for n in range(-50, 50)]
    assert list(client.map(operator.add, [1, 2, 3], itertools.count(10))) == [11, 13, 15]
    assert list(client.map(abs, [])) == []
    assert list(client.map("abs", [-1, -2])) == [1, 2]
    assert sorted(client.map(abs, range(-100, 0), ordered=False, chunksize=7)) == list(range(1, 101))


def test_map_knows_its_length_if_its_iterables_do(client: enginery.Client) -> None:
    """For progress bars."""
    values = client.map(abs, range(5), [1, 2, 3])
    assert len(values) == 3
    with pytest.raises(TypeError, match="length"):
        len(client.map(abs, itertools.repeat(1, 3)))


def test_chunks_are_learned(client: enginery.Client, controller: FakeController) -> None:
    """Calls that are over at once travel together; the function is pickled once."""
    assert list(client.map(operator.neg, range(5000))) == [-n for n in range(5000)]
    assert len(controller.calls) < 1000
    controller.calls.clear()
    assert list(client.map(operator.neg, range(10), chunksize=4)) == [-n for n in range(10)]
    assert len(controller.calls) == 3
    controller.calls.clear()
    assert list(client.map(operator.neg, range(10), timeout=5)) == [-n for n in range(10)]
    assert len(controller.calls) == 10


def test_an_endless_iterable_is_read_only_so_far_ahead(
    client: enginery.Client, controller: FakeController
) -> None:
    """As far as `max_outstanding` says, or as engines need."""
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    with client.map(abs, numbers(), max_outstanding=5) as values:
        assert read == 5
        assert [next(values) for _ in range(20)] == list(range(1, 21))
        assert read <= 25
    read = 0
    with client.map(abs, numbers()) as values:
        assert [next(values) for _ in range(3000)] == list(range(1, 3001))
        assert read <= 3000 + 2 * 4 * LARGEST + LARGEST
    assert next(values, None) is None


def test_what_a_function_raised_is_raised_at_its_place(client: enginery.Client) -> None:
    """Alone or within a chunk; the iterator goes on behind it, and may give errors as values."""

    def inverse(n: int) -> float:
        return 1 / n

    for chunksize in (1, 3):
        values = client.map(inverse, [1, 0, 2, 4], chunksize=chunksize)
        assert next(values) == 1.0
        with pytest.raises(ZeroDivisionError) as caught:
            next(values)
        assert isinstance(caught.value.__cause__, enginery.RemoteError)
        assert "in inverse" in str(caught.value.__cause__)
        assert list(values) == [0.5, 0.25]
        both: Any = client.map(inverse, [1, 0], chunksize=chunksize, return_exceptions=True)
        one, error = both
        assert one == 1.0
        assert isinstance(error, ZeroDivisionError)


async def test_a_function_that_raises_stop_iteration_ends_no_map(client: enginery.Client) -> None:
    """The values behind it would be lost without a word."""
    for chunksize in (1, 3):
        values = client.map(next, [iter([1]), iter([]), iter([2])], chunksize=chunksize)
        assert next(values) == 1
        with pytest.raises(RuntimeError, match="the function raised StopIteration"):
            next(values)
        assert list(values) == [2]
        values = client.map(next, [iter([]), iter([2])], chunksize=chunksize)
        with pytest.raises(RuntimeError, match="the function raised StopIteration"):
            await anext(values)
        assert [value async for value in values] == [2]


def test_errors_stay_wrapped_where_that_is_wanted(client: enginery.Client) -> None:
    """Nothing is unpickled then; also an exception that cannot be pickled arrives."""

    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__("odd")

    def odd(_: int) -> Any:
        raise Odd(1, 2)

    (error,) = client.map(odd, [1], chunksize=2, return_exceptions=True)
    assert "odd" in str(error)
    client.errors = "wrap"
    one, _ = client.map(odd, [1, 2], chunksize=2, return_exceptions=True)
    assert isinstance(one, enginery.RemoteError)
    assert one.type_name.endswith("Odd")


def test_a_chunk_that_is_tried_again_fails_as_a_whole(client: enginery.Client) -> None:
    """With retries an item that raises must end its task: each item of it raises then."""

    def inverse(n: int) -> float:
        return 1 / n

    errors: list[Any] = list(client.map(inverse, [1, 0], chunksize=2, retries=1, return_exceptions=True))
    assert [type(error) for error in errors] == [ZeroDivisionError, ZeroDivisionError]


def test_an_iterable_that_raises_ends_the_map_behind_its_items(client: enginery.Client) -> None:
    """What was read before it is given out first; so for an item that cannot be pickled."""

    def numbers() -> Iterator[Any]:
        yield 1
        yield 2
        raise KeyError("mine")

    values = client.map(abs, numbers())
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(KeyError, match="mine"):
        next(values)
    assert list(values) == []
    values = client.map(abs, [3, threading.Lock(), 4])
    assert next(values) == 3
    with pytest.raises(SerializationError):
        next(values)
    assert list(values) == []


def test_large_items_travel_in_small_chunks(client: enginery.Client, controller: FakeController) -> None:
    """A chunk that has become too large for a message is divided."""
    items: list[bytes] = [b""] * 200 + [os.urandom(1 << 20)] * 8
    assert list(client.map(len, items)) == [0] * 200 + [1 << 20] * 8


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"chunksize": "large"}, TypeError),
        ({"chunksize": True}, TypeError),
        ({"max_outstanding": 0}, ValueError),
        ({"max_outstanding": 1.5}, TypeError),
        ({"ordered": "no"}, TypeError),
        ({"retries": -1}, ValueError),
    ],
)
def test_bad_options_of_a_map_are_refused_here(
    client: enginery.Client, controller: FakeController, options: dict[str, Any], error: type[Exception]
) -> None:
    """Before anything is read or sent."""
    items = iter([1, 2])
    with pytest.raises(error):
        client.map(abs, items, **options)
    assert list(items) == [1, 2]
    with pytest.raises(TypeError, match="at least one iterable"):
        client.map(abs)
    with pytest.raises(ValueError, match="by its name"):
        client.map("abs", [1], chunksize=2)
    assert controller.calls == []


async def test_maps_are_async_iterators(client: enginery.Client, controller: FakeController) -> None:
    """In order or as they come; other coroutines go on meanwhile."""
    assert [value async for value in client.map(abs, range(-20, 0))] == list(range(20, 0, -1))
    assert sorted([v async for v in client.map(abs, range(-9, 0), ordered=False)]) == list(range(1, 10))
    controller.frozen.add(_methods.ANY_ENGINE)
    values = client.map(abs, [-1])
    waiting = asyncio.ensure_future(anext(values))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    controller.thaw()
    assert await waiting == 1
    with pytest.raises(StopAsyncIteration):
        await anext(values)


def test_ctrl_c_in_a_map_closes_it(client: enginery.Client, controller: FakeController) -> None:
    """Its tasks are stopped, without killing a kernel: nobody else has them, and engines would be busy."""
    controller.frozen.add(_methods.ANY_ENGINE)
    values = client.map(abs, range(3))
    interrupt_when(lambda: len(controller.held) == 3)
    with pytest.raises(KeyboardInterrupt) as caught:
        list(values)
    assert caught.value.__notes__[0].startswith("the map is closed")
    until(lambda: len(controller.cancels) == 3)
    assert [request.interrupt_only for request in controller.cancels] == [True] * 3
    assert next(values, None) is None


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_map_that_is_closed_cancels_its_tasks(
    client: enginery.Client, controller: FakeController, how: str
) -> None:
    """By `close`, at the end of `with`, or when nobody has it any more; what others submitted goes on."""
    controller.frozen.add(_methods.ANY_ENGINE)
    other = client.submit(abs, -1)
    values = client.map(abs, itertools.count(), max_outstanding=3)
    until(lambda: len(controller.held) == 4)
    if how == "close":
        values.close()
        values.close()
    elif how == "with":
        with values:
            pass
    else:
        del values
        gc.collect()
    until(lambda: len(controller.cancels) == 3)
    controller.thaw()
    assert other.result(5) == 1


def test_a_map_submits_many_at_once(client: enginery.Client, controller: FakeController) -> None:
    """Not one for each value that is taken out: what is submitted together travels together."""
    with client.map(abs, itertools.count(), chunksize=1) as values:
        first = values._read
        submitted = []
        for _ in range(first):
            next(values)
            submitted.append(values._read - first)
    steps = sorted(set(submitted))
    assert steps[1] >= first // 4
    assert len(steps) <= 5
