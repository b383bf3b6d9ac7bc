"""What an interrupt does to code, and what code may do about it; `test_ladder` has all that it ends."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from engine_service.kernel_process import Command, KernelExited
from tests.kernel.conftest import Driver, running

if TYPE_CHECKING:
    from engine_service.kernel_process import Reply

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _interrupted(kernel: Driver, code: str) -> Reply:
    """Run `code`, which reports progress when it is under way, and interrupt it then."""
    kernel.progress.clear()
    task = asyncio.ensure_future(kernel.execute(code))
    async with asyncio.timeout(20):
        while not kernel.progress:  # noqa: ASYNC110  # an event of another process
            await asyncio.sleep(0.002)
        assert kernel.kernel.interrupt()
        return await task


async def test_code_may_catch_it(kernel: Driver) -> None:
    """KeyboardInterrupt can be caught, and the operation then ends as it likes."""
    code = """
try:
    get_engine().progress(0)
    while True: pass
except KeyboardInterrupt:
    x = 'caught'
x
"""
    assert (await _interrupted(kernel, code)).text == "'caught'"


async def test_interrupting_a_repr_and_a_str(kernel: Driver) -> None:
    """What shows a value or an exception is part of the operation."""
    await kernel.ok("def hang(self):\n    get_engine().progress(0)\n    while True: pass")
    await kernel.ok("class R: __repr__ = hang\nclass E(Exception): __str__ = hang")
    for code in ("R()", "raise E"):
        reply = await _interrupted(kernel, code)
        assert reply.failure is not None
        assert reply.failure.category == "INTERRUPTED"
    assert (await kernel.ok("1+1")).text == "2"


async def test_only_the_one_that_is_named(kernel: Driver) -> None:
    """Nothing runs, or another operation does: nothing happens."""
    assert not kernel.kernel.interrupt()
    task = asyncio.ensure_future(kernel.execute("import time; time.sleep(0.1); 'whole'"))
    await asyncio.sleep(0.02)
    assert not kernel.kernel.interrupt(b"another operation")
    assert (await task).text == "'whole'"


async def test_user_handlers_and_masks_do_not_stay(kernel: Driver) -> None:
    """A command that ignores or blocks SIGINT does so for itself alone."""
    await kernel.ok("import signal; _ = signal.signal(signal.SIGINT, signal.SIG_IGN)")
    await kernel.ok("_ = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])")
    reply = await _interrupted(kernel, "get_engine().progress(0)\nwhile True: pass")
    assert reply.failure is not None


async def test_a_late_interrupt_never_hits_the_next_operation() -> None:
    """Thousands of interrupts at every moment of short operations: each hits its own or nothing."""
    async with running() as kernel, asyncio.timeout(55):
        hits, moment = 0, 1e-4  # seconds after the begin; sought so that about half of them hit
        enough = time.monotonic() + 20  # on a machine that is busy
        for number in range(0, 20_000, 2):
            if number >= 2_000 and time.monotonic() > enough:
                break
            ended = _begin(kernel, number, "keys")
            until = time.perf_counter() + moment
            while time.perf_counter() < until:  # busy, so that it has ended there and is not known to have here
                pass
            assert kernel.kernel.interrupt(number.to_bytes(16, "big"))
            failure = (await ended).failure
            moment = min(max(moment * (0.98 if failure is None else 1.02), 1e-6), 1e-3)
            if failure is not None:
                hits += 1
                assert failure.category == "INTERRUPTED"
            victim = await _begin(kernel, number + 1, "execute", "pass")
            assert victim.failure is None, (number, victim.failure)
        assert 0 < hits < number // 2  # how many depends on who has the processor; both must have been tried


def _begin(kernel: Driver, number: int, method: str, code: str = "") -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    command = Command(method, number.to_bytes(16, "big"), 3, code=code)
    kernel.kernel.begin(command, partial(_settle, future))
    return future


def _settle(future: asyncio.Future[Reply], answer: Reply | KernelExited) -> None:
    if isinstance(answer, KernelExited):
        future.set_exception(answer)
    else:
        future.set_result(answer)


async def test_a_storm_of_interrupts(kernel: Driver) -> None:
    """Interrupts as fast as they can be sent end one operation, and leave the kernel sound."""
    for _ in range(20):
        task = asyncio.ensure_future(kernel.execute("while True: pass"))
        while not task.done():
            kernel.kernel.interrupt()
            await asyncio.sleep(0)
        failure = (await task).failure
        assert failure is not None
        assert failure.category == "INTERRUPTED"
        assert (await kernel.ok("1+1")).text == "2"


async def test_an_interrupted_await_shows_where(kernel: Driver) -> None:
    """The traceback leads to the line that waited, as it does without `await`."""
    code = "import asyncio\nasync def wait():\n    get_engine().progress(0)\n"
    code += "    await asyncio.sleep(60)\nawait wait()"
    reply = await _interrupted(kernel, code)
    assert reply.failure is not None
    assert reply.failure.errors[0].type_name == "KeyboardInterrupt"
    assert "line 4, in wait\n    await asyncio.sleep(60)\n" in reply.failure.traceback


async def test_the_traceback_ends_where_the_code_was(kernel: Driver) -> None:
    """The frame of the handler that raises is none of the user's."""
    tell = "import threading, time\nthreading.Timer(0.1, get_engine().progress, (0,)).start()"  # not amid this
    reply = await _interrupted(kernel, f"{tell}\ntime.sleep(60)")
    assert reply.failure is not None
    assert [frame.line for frame in reply.failure.errors[0].frames] == [3]
    assert "interrupts.py" not in reply.failure.traceback
