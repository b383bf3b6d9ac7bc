"""Calls that are not waited for, from threads, loops and callbacks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import enginery
from enginery import operation as operation_module
from enginery.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.fake import FakeController


def test_an_operation_is_a_future(client: enginery.Client, controller: FakeController) -> None:
    """It is there at once, is done later, and works with concurrent.futures."""
    controller.frozen.add(0)
    operation = client[0].execute("1 + 1", block=False)
    other = client[1].execute("2", block=False)
    assert isinstance(operation, concurrent.futures.Future)
    assert concurrent.futures.wait([operation, other], return_when="FIRST_COMPLETED").done == {other}
    assert repr(operation).startswith("<Operation [0:execute] waiting, ")
    assert not operation.done()
    with pytest.raises(TimeoutError, match=r"no answer within 0.01 s; the operation goes on"):
        operation.result(timeout=0.01)
    controller.thaw()
    assert operation.result(5).value == 2
    assert operation.exception() is None
    assert "succeeded" in repr(operation)
    assert (operation.engine_id, operation.method) == (0, "execute")


def test_what_belongs_to_this_process_says_so(client: enginery.Client) -> None:
    """A future, a cluster or a client as an argument is refused by name, not by a lock deep within it."""
    operation = client[0].apply(abs, -1, block=False)
    with pytest.raises(enginery.SerializationError, match=r"Operation.*give its result\(\)$"):
        client[1].apply(abs, operation)
    with pytest.raises(enginery.SerializationError, match=r"Group.*give its result\(\)$"):
        client.submit(abs, enginery.Group([operation]))
    with pytest.raises(enginery.SerializationError, match=r"Cluster.*connect\(state_dir\) elsewhere$"):
        client.submit(abs, enginery.Cluster(n=1))
    assert operation.result() == 1


def test_apply_keeps_what_was_printed(client: enginery.Client) -> None:
    """Output of apply is the operation's; its value is the answer."""
    operation = client[0].apply(len, "abc", block=False)
    assert operation.result() == 3
    assert (operation.stdout, operation.stderr, operation.displays) == ("applied\n", "", [])


def test_a_group_is_the_operations_and_a_future_of_their_list(client: enginery.Client) -> None:
    """It is a sequence in target order, and its result a list or one CompositeError."""
    group = client[[1, 0]].pull("id", block=False)
    assert group.result() == [1, 0]
    assert [operation.engine_id for operation in group] == group.engine_ids == [1, 0]
    assert group[0].result() == 1
    assert len(group) == len(group[:]) == 2
    assert repr(group) == "<Group pull on engines [1, 0]: 2 of 2 done>"
    failing = client[:].execute("1 / id", block=False)
    assert isinstance(failing.exception(), enginery.CompositeError)
    assert failing[1].result().value == 1.0
    assert "raised CompositeError" in failing._state_text()


async def test_operations_can_be_awaited_on_any_loop(client: enginery.Client) -> None:
    """In a coroutine `await` waits without blocking; blocking calls work too, as in a notebook."""
    assert (await client[0].execute("1 + 1", block=False)).value == 2
    assert await client[:].pull("id", block=False) == [0, 1]
    many = [client[n % 2].apply(abs, -n, block=False) for n in range(50)]
    assert await asyncio.gather(*many) == list(range(50))
    with pytest.raises(ZeroDivisionError):
        await client[0].execute("1/0", block=False)
    assert client[0].pull("id") == 0


async def test_a_cancelled_wait_leaves_the_operation_alone(
    client: enginery.Client, controller: FakeController
) -> None:
    """Cancelling the task that awaits ends the waiting, never the operation."""
    controller.frozen.add(0)
    operation = client[0].pull("id", block=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(operation, 0.01)
    controller.thaw()
    assert await operation == 0


def test_callbacks_may_start_calls_but_not_wait(client: enginery.Client, controller: FakeController) -> None:
    """Waiting on the thread that answers would stop everything: it raises instead."""
    seen: list[object] = []
    done = threading.Event()

    def callback(future: concurrent.futures.Future[object]) -> None:
        seen.append(future.result())
        seen.append(client[1].pull("id", block=False))
        try:
            client[1].pull("id")
        except RuntimeError as error:
            seen.append(error)
        done.set()

    controller.frozen.add(0)  # or it might be answered before the callback is there
    client[0].pull("id", block=False).add_done_callback(callback)
    controller.thaw()
    assert done.wait(10)
    assert seen[0] == 0
    assert isinstance(seen[1], enginery.Operation)
    assert seen[1].result() == 1
    assert "done-callback" in str(seen[2])


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ValueError])
def test_a_callback_that_raises_harms_nobody(
    client: enginery.Client, controller: FakeController, kind: type[BaseException]
) -> None:
    """Not even what ends a thread: it is logged, and the next call is answered."""

    def callback(_: concurrent.futures.Future[object]) -> None:
        raise kind

    controller.frozen.add(0)
    operation = client[0].pull("id", block=False)
    operation.add_done_callback(callback)
    controller.thaw()
    assert operation.result(10) == 0
    assert client[1].pull("id", block=False).result(10) == 1
    if kind is not ValueError:
        with pytest.raises(kind):
            operation.add_done_callback(callback)  # on the caller's own thread it is the caller's


def test_several_threads_share_a_client(client: enginery.Client) -> None:
    """Each gets its own answers."""

    def work(n: int) -> list[object]:
        return [client[i % 2].apply(abs, -n * 1000 - i) for i in range(50)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for n, answers in enumerate(pool.map(work, range(8))):
            assert answers == [n * 1000 + i for i in range(50)]


def test_calls_that_pile_up_share_messages(client: enginery.Client, controller: FakeController) -> None:
    """A burst of calls takes far fewer messages than calls, in order."""
    operations = [client[0].execute(f"a = {n}", block=False) for n in range(500)]
    concurrent.futures.wait(operations, timeout=20)
    assert client[0].pull("a") == 499
    assert sum(controller.messages) == 501
    assert len(controller.messages) < 400
    statistics = client.statistics()
    assert (statistics["calls"], statistics["replies"], statistics["waiting"]) == (501, 501, 0)


def interrupt_when(condition: Callable[[], bool]) -> None:
    """Send Ctrl-C to this process once `condition()` holds and the calling thread waits for an answer."""
    caller = threading.get_ident()

    def is_waiting() -> bool:
        frame = sys._current_frames()[caller]
        while frame.f_code.co_name != "_wait" and frame.f_back is not None:
            frame = frame.f_back
        return frame.f_code.co_name == "_wait"

    def watch() -> None:
        deadline = time.monotonic() + 10
        while not (condition() and is_waiting()) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch).start()


def test_ctrl_c_in_a_wait_for_an_operation_ends_the_waiting_only(
    client: enginery.Client, controller: FakeController
) -> None:
    """KeyboardInterrupt, with a note that says how to stop it; the operation goes on."""
    controller.frozen.add(0)
    operation = client[0].execute("a = 1", block=False)
    interrupt_when(lambda: len(controller.held) == 1)
    with pytest.raises(KeyboardInterrupt) as caught:
        operation.result()
    assert "cancel()" in caught.value.__notes__[0]
    controller.thaw()
    assert client[0].pull("a") == 1


def test_ctrl_c_in_a_call_stops_the_call_on_every_engine(
    client: enginery.Client, controller: FakeController
) -> None:
    """What waits for answers asks the engines to stop, without killing a kernel, and says what came of it."""
    controller.frozen |= {0, 1}
    interrupt_when(lambda: len(controller.held) == 2)
    with pytest.raises(KeyboardInterrupt) as caught:
        client[:].execute("a = 1")
    assert caught.value.__notes__ == ["execute on engines 0, 1: cancelled"]
    assert [request.interrupt_only for request in controller.cancels] == [True, True]
    controller.frozen.clear()
    with pytest.raises(NameError):
        client[0].pull("a")


def test_ctrl_c_in_a_call_that_may_be_killed(client: enginery.Client, controller: FakeController) -> None:
    """A call that said interrupt_only=False is stopped as it said."""
    controller.frozen.add(0)
    interrupt_when(lambda: len(controller.held) == 1)
    with pytest.raises(KeyboardInterrupt):
        client[0].execute("a = 1", interrupt_only=False)
    assert not controller.cancels[0].HasField("interrupt_only")


def test_ctrl_c_in_a_call_that_does_not_stop(
    client: enginery.Client, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait ends all the same, soon, and the note says by which id it can be stopped."""
    monkeypatch.setattr(operation_module, "CTRL_C_GRACE", 0.2)
    controller.frozen.add(0)
    controller.deaf = True
    interrupt_when(lambda: len(controller.held) == 1)
    with pytest.raises(KeyboardInterrupt) as caught:
        client[0].execute("a = 1")
    assert client.operations(state="running")[0].id in caught.value.__notes__[0]


def test_a_forked_child_is_told(client: enginery.Client, controller: FakeController) -> None:
    """A fork has no thread that answers: every use is an error that says what to do, none hangs."""
    controller.frozen.add(0)
    pending = client[0].pull("id", block=False)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        told = 0
        for call in (
            lambda: client[1].pull("id"),
            pending.result,
            lambda: enginery.connect(controller.path),
            client.close,
        ):
            try:
                call()
            except ConnectError as error:
                told += "spawn" in str(error)
        os.write(write_end, str(told).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    assert os.read(read_end, 10) == b"4"
    os.close(read_end)
    controller.thaw()
    assert pending.result(5) == 0
