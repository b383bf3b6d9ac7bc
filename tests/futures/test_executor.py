"""The rules of the executor that CPython's own tests do not show, or show in a way that does not fit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import BrokenExecutor, Future
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import enginery
from enginery.errors import KernelDied, OperationCancelled, RemoteError, SerializationError
from tests.futures.conftest import SPEED

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def executor(client: enginery.Client) -> Iterator[enginery.ClusterExecutor]:
    with client.executor() as executor:
        yield executor


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_a_notebook_makes_travels(executor: enginery.ClusterExecutor) -> None:
    """Lambdas and closures are called on engines, which no process pool can do."""
    base = 40
    assert executor.submit(lambda x: base + x, 2).result() == 42
    assert list(executor.map(lambda x, y: x + y + base, [1, 2, 3], [1, 2], chunksize=2)) == [42, 44]


def test_a_future_can_be_cancelled_until_it_is_sent(client: enginery.Client) -> None:
    """`cancel` of a future keeps the standard library's rule; its operation's stops what runs."""
    with client.executor(max_workers=1) as executor:
        running = executor.submit(time.sleep, 5 * SPEED)
        waiting = executor.submit(abs, -1)
        _until(lambda: running.operation is not None)
        assert running.running()
        assert not running.cancel()
        assert waiting.operation is None
        assert waiting.cancel()
        assert waiting.cancelled()
        assert running.operation is not None
        running.operation.cancel(grace=5)
        with pytest.raises(OperationCancelled):
            running.result(10)


def test_no_more_than_max_workers_run_at_a_time(client: enginery.Client) -> None:
    """With one worker calls run one after the other, whatever the number of engines, in the order given."""
    with client.executor(max_workers=1) as executor:
        spans = list(executor.map(_span, range(4)))
    assert all(one[1] <= next_one[0] for one, next_one in itertools.pairwise(spans))


def _span(_: int) -> tuple[float, float]:
    began = time.time()
    time.sleep(0.05)
    return began, time.time()


def test_a_kernel_that_dies_takes_its_own_call_along(executor: enginery.ClusterExecutor) -> None:
    """Its future has KernelDied; the executor is not broken, and a new kernel runs what comes next."""
    dying = executor.submit(_die)
    others = [executor.submit(pow, 2, n) for n in range(8)]
    with pytest.raises(KernelDied):
        dying.result(20)
    assert [future.result(20) for future in others] == [2**n for n in range(8)]
    assert executor.submit(abs, -1).result(20) == 1


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_says_where_it_was_raised(executor: enginery.ClusterExecutor) -> None:
    """The original is raised from a RemoteError, which shows the traceback of the engine."""
    error = executor.submit(_fail).exception()
    assert type(error) is RuntimeError
    assert error.args == (123,)
    assert isinstance(error.__cause__, RemoteError)
    assert "raise RuntimeError(123)  # some comment" in str(error.__cause__)


def _fail() -> None:
    raise RuntimeError(123)  # some comment


def test_what_cannot_be_pickled_is_told_by_the_future(executor: enginery.ClusterExecutor) -> None:
    """`submit` itself does not raise for it, as the standard library's process pool does not."""
    with pytest.raises(SerializationError, match="lock"):
        executor.submit(id, threading.Lock()).result(10)


def test_large_arguments_and_values_travel(executor: enginery.ClusterExecutor) -> None:
    """What is too large for a task goes to the least busy engine."""
    array = np.arange(1_000_000)
    assert int(executor.submit(np.sum, array).result(20)) == int(array.sum())
    assert executor.submit(np.ones, 1_000_000).result(20).sum() == 1_000_000


def test_output_is_with_the_operation_of_a_future(executor: enginery.ClusterExecutor) -> None:
    """What a call prints is not lost: `future.operation.stdout`."""
    future = executor.submit(print, "hello")
    assert future.result(10) is None
    assert future.operation is not None
    assert future.operation.stdout == "hello\n"


def test_an_initializer_runs_once_on_each_kernel(client: enginery.Client) -> None:
    """Before the first call on an engine, and again once its kernel is a new one."""
    with client.executor(initializer=_count_up, initargs=(10,)) as executor:
        assert {future.result(10) for future in [executor.submit(_count) for _ in range(12)]} == {10}
        with pytest.raises(KernelDied):
            executor.submit(_die).result(20)
        assert {future.result(20) for future in [executor.submit(_count) for _ in range(12)]} == {10}


def _count_up(by: int) -> None:
    os.environ["COUNTED"] = str(int(os.environ.get("COUNTED", "0")) + by)


def _count() -> int:
    return int(os.environ["COUNTED"])


def test_after_a_failed_initializer_nothing_is_taken(client: enginery.Client) -> None:
    """Whatever waits fails with BrokenExecutor, and it says why."""
    with client.executor(max_workers=1, initializer=divmod, initargs=(1, 0)) as executor:
        futures = [executor.submit(abs, -1) for _ in range(4)]
        for future in futures:
            with pytest.raises(BrokenExecutor, match="ZeroDivisionError"):
                future.result(10)
        with pytest.raises(BrokenExecutor, match="ZeroDivisionError"):
            executor.submit(abs, -1)


def test_an_executor_that_is_dropped_ends_its_thread_when_all_is_done(client: enginery.Client) -> None:
    """Its futures get their answers; nothing of it is left."""
    executor = client.executor()
    gone = weakref.ref(executor)
    answers = executor.map(abs, range(-5, 5))
    thread = executor._feeder._thread
    assert thread is not None
    del executor
    gc.collect()
    assert gone() is None
    assert list(answers) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    thread.join(10)
    assert not thread.is_alive()


def test_shutdown_without_waiting_goes_on_until_all_is_done(client: enginery.Client) -> None:
    """`shutdown(wait=False)` returns at once, and what was submitted is run."""
    executor = client.executor(max_workers=1)
    futures = [executor.submit(time.sleep, 0.05) for _ in range(3)]
    executor.shutdown(wait=False)
    assert not futures[-1].done()
    assert concurrent.futures.wait(futures, 10).not_done == set()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


def test_a_callback_may_shut_it_down(client: enginery.Client) -> None:
    """On the executor's own thread there is nothing to wait for."""
    executor = client.executor()
    shut: Future[None] = Future()

    def end(_: Future[int]) -> None:
        executor.shutdown(wait=True)
        shut.set_result(None)

    executor.submit(abs, -1).add_done_callback(end)
    shut.result(10)


async def test_asyncio_runs_functions_in_it(executor: enginery.ClusterExecutor) -> None:
    """`loop.run_in_executor` takes it as any executor."""
    loop = asyncio.get_running_loop()
    assert await asyncio.gather(*(loop.run_in_executor(executor, pow, 2, n) for n in range(5))) == [
        1,
        2,
        4,
        8,
        16,
    ]
    with pytest.raises(RuntimeError, match="123"):
        await loop.run_in_executor(executor, _fail)


def test_what_is_large_runs_as_what_is_small(client: enginery.Client) -> None:
    """Over the limit of tasks: the function has its own globals as they now are, and no engine gets them."""
    script: dict[str, Any] = {"__name__": "__main__", "factor": 1, "data": bytes(5_000_000)}
    exec("def f(x): return factor * (len(x) + len(data))\ndef g(x): return factor * len(x)", script)
    f, g = script["f"], script["g"]
    with client.executor() as executor:
        assert executor.submit(g, bytes(5_000_000)).result(20) == 5_000_000
        script["factor"] = 2
        assert executor.submit(g, bytes(5_000_000)).result(20) == 10_000_000
        assert executor.submit(f, b"").result(20) == 10_000_000
        with pytest.raises(TypeError, match="factor"):
            executor.submit(_raise, bytes(5_000_000)).result(20)
    names = client[:].keys()
    assert all("factor" not in there for there in names)


def _raise(_: bytes) -> None:
    raise TypeError("factor")


def test_some_engines_alone(client: enginery.Client) -> None:
    """An executor over a view uses its engines and no others."""
    engine_id = client.ids[-1]
    with client[[engine_id]].executor() as executor:
        ids = set(executor.map(_engine_id, range(8)))
    assert ids == {engine_id}


def _engine_id(_: int) -> int:
    return enginery.get_engine().id


def test_a_lazy_worker_is_no_worker(client: enginery.Client) -> None:
    """What makes no sense is refused when the executor is made."""
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            client.executor(wrong)
    with pytest.raises(TypeError, match="initializer"):
        client.executor(initializer="abs")  # type: ignore[arg-type]


def test_the_end_of_the_process_waits_for_all_work(cluster: enginery.Cluster) -> None:
    """As with the standard library's executors; who submits after that is told so."""
    script = """
        import atexit, sys, time
        import enginery

        @atexit.register
        def run_last():
            try:
                executor.submit(abs, -1)
            except RuntimeError as error:
                print(error)

        executor = enginery.connect(sys.argv[1]).executor()
        executor.submit(time.sleep, 0.5).add_done_callback(lambda future: print("slept", future.result()))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(cluster.state_dir)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == (
        "slept None\ncannot schedule new futures after interpreter shutdown\n",
        "",
    )
