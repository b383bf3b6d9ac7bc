"""Stopping calls, watching them, and having their answers in another process."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest

import enginery
from enginery import _lane, _status, operations
from enginery._reasons import DeliveryError
from enginery.errors import (
    BlobNotFound,
    OperationCancelled,
    OperationNotFound,
    OperationTimedOut,
    QueueFull,
    RemoteError,
)
from enginery.v1 import frame_pb2, operation_pb2
from tests.client.test_connection import wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.fake import FakeController


Held = enginery.Operation[enginery.ExecuteResult]


@pytest.fixture
def held(client: enginery.Client, controller: FakeController) -> Iterator[Held]:
    """An operation that runs on engine 0 until it is told otherwise."""
    controller.frozen.add(0)
    operation = client[0].execute("6 * 7", block=False)
    wait(lambda: len(controller.held) == 1)
    yield operation
    controller.thaw()
    operation.exception(10)


# ---- cancel


def test_cancel_of_what_runs(held: Held, controller: FakeController) -> None:
    """It is stopped, and the error says where it was; its output is there."""
    assert held.status == "running"
    assert held.cancel(grace=1.5, interrupt_only=True)
    with pytest.raises(OperationCancelled, match="namespace is kept") as caught:
        held.result(10)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert caught.value.__cause__.category == "CANCELLED"
    assert not caught.value.namespace_lost
    assert (caught.value.operation_id, caught.value.engine_id) == (held.id, 0)
    assert (held.status, held.stdout, held.is_cancelled) == ("cancelled", "begun\n", True)
    (request,) = controller.cancels
    assert (request.grace.ToMilliseconds(), request.interrupt_only) == (1500, True)
    assert held.cancel()
    assert len(controller.cancels) == 1


def test_cancel_of_what_waits_or_has_ended(
    client: enginery.Client, held: Held, controller: FakeController
) -> None:
    """Taken out of the queue it never runs; what has ended stays as it is."""
    controller.busy.add(0)
    waiting = client[0].execute("1", block=False)
    wait(lambda: len(controller.held) == 2)
    assert waiting.status == "queued"
    assert waiting.cancel()
    with pytest.raises(OperationCancelled, match="taken out of the queue"):
        waiting.result(10)
    controller.thaw()
    assert held.result(10).value == 42
    assert not held.cancel()
    assert held.status == "succeeded"
    assert len(controller.cancels) == 1


def test_cancel_of_what_was_not_sent(client: enginery.Client, controller: FakeController) -> None:
    """A call whose engine's queue is full is taken back here."""
    controller.refusals[0] = DeliveryError("QUEUE_FULL", engine_id=0, size=1, option="--queue-limit")
    operation = client[0].execute("1", block=False)
    wait(lambda: client.statistics()["refused"] > 0)
    assert operation.cancel()
    with pytest.raises(OperationCancelled):
        operation.result(10)


def test_cancel_of_a_group(client: enginery.Client, controller: FakeController) -> None:
    """Every engine is told at once."""
    controller.frozen |= {0, 1}
    group = client[:].execute("1", block=False)
    wait(lambda: len(controller.held) == 2)
    assert group.cancel()
    error = group.exception(10)
    assert isinstance(error, enginery.CompositeError)
    assert all(isinstance(each, OperationCancelled) for each in error.exceptions)
    assert "OperationCancelled" in str(error)


def test_interrupt_and_release(held: Held, controller: FakeController) -> None:
    """Interrupt names the operation; what is released is not known any more, and what was answered stays."""
    assert held.interrupt()
    controller.thaw()
    assert held.result(10).value == 42
    held.release()
    assert controller.records == {}
    assert held.status == "succeeded"
    with pytest.raises(OperationNotFound):
        held.info()


def test_a_timeout_is_an_option_of_the_call(client: enginery.Client, controller: FakeController) -> None:
    """Options of a view and of a call travel with it; the error of a timeout is a TimeoutError too."""
    view = client[0].options(timeout=3, any_incarnation=True).options(grace=0.5)
    view.execute("1", interrupt_only=True)
    view.apply(len, "abc", timeout=0.25)
    client[:].options(keep_queue=True).push({"a": 1})
    first, second, third, fourth = (call.options for call in controller.calls)
    assert (first.timeout.seconds, first.grace.ToMilliseconds()) == (3, 500)
    assert (first.interrupt_only, first.any_incarnation) == (True, True)
    assert (second.timeout.ToMilliseconds(), second.interrupt_only) == (250, False)
    assert third.keep_queue
    assert fourth.keep_queue
    client[0].execute("1")
    assert not controller.calls[-1].HasField("options")
    error = DeliveryError("OPERATION_TIMED_OUT", timeout=3, cause="its kernel was killed", namespace="lost")
    controller.refusals[0] = error
    with pytest.raises(OperationTimedOut, match="ran for 3 s") as caught:
        view.execute("1")
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.namespace_lost


@pytest.mark.parametrize("wrong", [-1, float("nan"), 1e10])
def test_times_that_make_no_sense_are_refused_here(client: enginery.Client, wrong: float) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="timeout"):
        client[0].execute("1", timeout=wrong)
    with pytest.raises(TypeError, match="number of seconds"):
        client[0].options(grace="1")  # type: ignore[arg-type]


def test_what_is_no_option_or_id_is_refused_here(held: Held, client: enginery.Client) -> None:
    """With words that say what was wrong, and before anything is done."""
    with pytest.raises(TypeError, match="interrupt_only is True or False, not str"):
        client[0].execute("1", interrupt_only="no")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="grace is a number of seconds, not str"):
        held.cancel(grace="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grace of -1 s"):
        held.cancel(grace=-1)
    assert not held.is_stopping
    with pytest.raises(ValueError, match="after is -1"):
        held.events(after=-1)
    with pytest.raises(TypeError, match="sequence of an event"):
        held.events(after="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'x' is not an operation's id"):
        client.operation("x")
    with pytest.raises(TypeError, match="is text, not int"):
        client.operation(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit is 0"):
        client.operations(limit=0)


def test_an_option_that_the_function_may_have_meant(client: enginery.Client) -> None:
    """`timeout=` of apply is its own; a function with such a parameter must be told apart."""

    def fetch(url: str, timeout: float = 1.0) -> float:
        return timeout

    with pytest.raises(TypeError, match=r"functools.partial.*view.options"):
        client[0].apply(fetch, "x", timeout=5)
    assert client[0].apply(functools.partial(fetch, timeout=5), "x") == 5
    assert client[0].options(timeout=5).apply(fetch, "x") == 1.0


# ---- engines that do not take calls


def test_a_full_queue_holds_calls_back(client: enginery.Client, controller: FakeController) -> None:
    """They wait for the hint and go in order; the caller sees nothing of it."""
    controller.refusals[0] = DeliveryError("QUEUE_FULL", engine_id=0, size=1, option="--queue-limit")
    calls = [client[0].execute(f"a = {number}", block=False) for number in range(20)]
    wait(lambda: client.statistics()["refused"] >= 20)
    assert client[1].execute("1").value == 1
    controller.refusals.clear()
    for call in calls:
        call.result(10)
    assert client[0].pull("a") == 19
    ran = [record.input.raw for record in controller.engines[0].records]
    assert ran == [f"a = {number}" for number in range(20)]


def test_a_queue_that_stays_full_fails_in_the_end(
    client: enginery.Client, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the error that says what is full."""
    monkeypatch.setattr("enginery._session.PATIENCE", 0.2)
    monkeypatch.setattr(_lane, "FIRST_DELAY", 0.01)
    controller.refusals[0] = DeliveryError("QUEUE_FULL", engine_id=0, size=1, option="--queue-limit")
    with pytest.raises(QueueFull, match="--queue-limit"):
        client[0].execute("1")


# ---- events


def test_events_as_they_happen(held: Held, controller: FakeController) -> None:
    """All that happened, then each as it happens, up to the outcome; unknown kinds are skipped."""
    controller.emit(held.id, started=operation_pb2.OperationStarted(incarnation="abc"))
    controller.emit(held.id, stdout="one\n")
    stream = held.events()
    assert [next(stream).kind, next(stream).text] == ["started", "one\n"]
    controller.emit(held.id, stderr="two\n")
    controller.emit(held.id, progress=operation_pb2.OperationProgress(fraction=0.5, text="half"))
    controller.emit(held.id, dropped=operation_pb2.OperationDropped(event_count=3, byte_count=99))
    controller.emit(held.id)
    assert (held.stdout, held.stderr) == ("one\n", "two\n")
    controller.thaw()
    error, progress, dropped, outcome = stream
    assert (error.kind, error.text, progress.fraction, progress.text) == ("stderr", "two\n", 0.5, "half")
    assert (dropped.dropped_events, dropped.dropped_bytes) == (3, 99)
    assert (outcome.kind, outcome.state, outcome.error) == ("outcome", "succeeded", "")
    assert outcome.sequence == 7
    assert repr(outcome) == "<Event 7 outcome 'succeeded'>"
    assert [event.sequence for event in held.events(after=5)] == [7]


async def test_events_in_a_coroutine(held: Held, controller: FakeController) -> None:
    """`async for` does not block, and a display is one."""
    controller.emit(held.id, display=operation_pb2.OperationEvent().display)
    threading.Timer(0.05, controller.thaw).start()
    kinds = [event.kind async for event in held.events()]
    assert kinds == ["display", "outcome"]


def test_events_survive_broken_streams(held: Held, controller: FakeController) -> None:
    """It attaches again after the last event that came: none is missing, none comes twice."""
    controller.cut_after = 2
    for number in range(4):
        controller.emit(held.id, stdout=f"{number}\n")
    stream = held.events()
    assert [next(stream).text for _ in range(4)] == ["0\n", "1\n", "2\n", "3\n"]
    controller.stop()
    controller.frozen.clear()
    controller.start()
    assert [event.kind for event in stream] == ["outcome"]
    assert controller.attached[:2] == [0, 2]
    assert controller.attached[-1] == 4


def test_a_stream_that_is_dropped_ends(client: enginery.Client, held: Held, controller: FakeController) -> None:
    """Nothing follows an operation for a reader that has gone; one that reads slowly is waited for."""
    for number in range(50):
        controller.emit(held.id, stdout=f"{number}\n")
    link = client._link
    stream = held.events()
    next(stream)
    assert link._tasks
    stream.close()
    assert list(stream) == []
    wait(lambda: not link._tasks)
    other = held.events()
    del other
    wait(lambda: not link._tasks)


def test_events_of_what_nobody_knows(held: Held, controller: FakeController) -> None:
    """An operation that was released is an error, not silence; so is a client that is closed."""
    controller.thaw()
    held.result(10)
    held.release()
    with pytest.raises(OperationNotFound):
        next(held.events())


# ---- from another process


def test_an_operation_of_another_client(held: Held, controller: FakeController) -> None:
    """By its id anyone can wait for it, read what it wrote, and have its answer."""
    controller.emit(held.id, stdout="one\n")
    with enginery.connect(controller.path) as other:
        operation = other.operation(held.id)
        assert (operation.id, operation.engine_id, operation.method) == (held.id, 0, "execute")
        assert (operation.status, operation.stdout) == ("running", "one\n")
        assert not operation.done()
        controller.thaw()
        assert operation.result(10).value == 42
        assert operation.status == "succeeded"
        assert other.operation(held.id).result(10).value == 42
        with pytest.raises(OperationNotFound):
            other.operation("01020304-0506-8708-8000-000000000001")
        with pytest.raises(ValueError, match="UUID"):
            other.operation("seven")


def test_answers_of_every_kind_can_be_had_again(client: enginery.Client, controller: FakeController) -> None:
    """As the call had them; what was asked for by name is a dictionary. What was fetched is gone."""

    def again(operation: enginery.Operation[Any]) -> Any:
        operation.exception(10)
        return client.operation(operation.id).result(10)

    view = client[0]
    assert again(view.push({"a": 1, "f": len}, block=False)) is None
    assert again(view.pull("a", block=False)) == {"a": 1}
    assert again(view.pull_function("f", block=False)) == {"f": len}
    assert again(view.apply(divmod, 7, 2, block=False)) == (3, 1)
    assert again(view.keys(block=False)) == ["a", "f", "id"]
    assert again(view.pull_serialized("a", block=False))["a"].load() == 1
    for code, kind in (("1/0", ZeroDivisionError), ("nothing", NameError)):
        with pytest.raises(kind):
            again(view.execute(code, block=False))
    large = view.apply(bytes, 3_000_000, block=False)
    large.result(10)
    with pytest.raises(BlobNotFound):
        again(large)


def test_answers_that_are_no_responses(client: enginery.Client, held: Held, controller: FakeController) -> None:
    """How an operation ended without a response is an error, with what is known; what makes no sense too."""
    record = controller.records[held.id]
    lost = DeliveryError("KERNEL_DIED", engine_id=0, cause="SIGSEGV", method="execute", operation_id=held.id)
    record.end(
        frame_pb2.Reply(
            call_id=record.call.call_id, outcome=frame_pb2.OUTCOME_LOST, error=_status.to_bytes(lost)
        )
    )
    with pytest.raises(enginery.KernelDied, match="SIGSEGV"):
        client.operation(held.id).result(10)
    assert client.operation(held.id).info().state == "lost"
    assert [event.error for event in held.events()][-1] == lost.text
    assert record.outcome is not None
    record.outcome.error.reason = "FROM_THE_FUTURE"
    with pytest.raises(enginery.EngineryError, match="FROM_THE_FUTURE"):
        client.operation(held.id).result(10)
    record.outcome.Clear()
    with pytest.raises(enginery.EngineryError):
        client.operation(held.id).result(10)


def test_operations_are_listed(client: enginery.Client, held: Held, controller: FakeController) -> None:
    """The newest first, each once, over pages, with what each is at a glance."""
    done = [client[1].execute(str(number), block=False) for number in range(4)]
    for operation in done:
        operation.result(10)
    listed = client.operations()
    assert [info.id for info in listed] == [*(operation.id for operation in reversed(done)), held.id]
    assert repr(listed[-1]) == f"<OperationInfo [0:execute] 'its arguments' running, 50% half, {held.id}>"
    assert [info.id for info in client.operations(state="running")] == [held.id]
    assert len(client.operations(state=["succeeded", "failed"], limit=3)) == 3
    with pytest.raises(ValueError, match="timed_out"):
        client.operations(state="slow")
    assert operations.state_name(99) == "failed"


def test_an_operation_outlives_its_connection(held: Held, controller: FakeController) -> None:
    """Another client's wait for it goes on over a restart of the controller, too."""
    with enginery.connect(controller.path) as other:
        operation = other.operation(held.id)
        controller.stop()
        controller.frozen.clear()
        controller.start()
        assert operation.result(10).value == 42
        assert held.result(10).value == 42
        assert len(controller.engines[0].records) == 1
