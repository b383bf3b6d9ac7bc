"""Whatever an operation does it can be stopped: by the ladder, on real kernels, and nothing else is hit."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

import psutil
import pytest

from engine_service.kernel_process import KernelExited, Reply
from engine_service.ladder import Action, Ladder
from tests.kernel.conftest import Driver, running
from tests.leftovers import is_alive

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CAUSE = "killed, since it did not stop"


@dataclass(frozen=True)
class Stopped:
    """How an operation came to its end."""

    answer: Reply | KernelExited
    interrupts: int


async def _stop(driver: Driver, code: str, grace: float, *, last_grace: float | None = None) -> Stopped:
    """Run `code`, which reports progress when it is under way, and stop it by the ladder then.

    `last_grace` is the one between the second interrupt and the kill, if it is another.
    """
    driver.heard.clear()
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(driver.execute(code))
    async with asyncio.timeout(20):
        while not driver.progress:  # noqa: ASYNC110  # an event of another process
            await asyncio.sleep(0.002)
        ladder = Ladder(grace, interrupt_only=False)
        actions = ladder.begin(loop.time())
        ladder.grace = grace if last_grace is None else last_grace
        interrupts = 0
        while not running.done():
            for action in actions:
                if action is Action.INTERRUPT:
                    interrupts += 1
                    driver.kernel.interrupt()
                else:
                    driver.kernel.kill(cause=_CAUSE)
            timeout = None if ladder.next_at is None else max(0.0, ladder.next_at - loop.time())
            await asyncio.wait((running,), timeout=timeout)
            actions = ladder.tick(loop.time())
    error = running.exception()
    if error is not None:
        assert isinstance(error, KernelExited)
        return Stopped(error, interrupts)
    return Stopped(running.result(), interrupts)


_BY_ONE_INTERRUPT = {
    "endless loop": "while True: pass",
    "endless generator": "sum(x for x in iter(int, 1))",
    "sleep": "import time; time.sleep(60)",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "queue": "import queue; queue.Queue().get()",
    "thread": "import threading; e = threading.Event(); t = threading.Thread(target=e.wait, daemon=True)\n"
    "t.start()\ntry: t.join()\nfinally: e.set()",
    "subprocess": "import subprocess; subprocess.run(['sleep', '60'])",
    "socket": "import socket; one, other = socket.socketpair(); one.recv(1)",
    "select": "import select; select.select([], [], [])",
    "await": "import asyncio; await asyncio.sleep(60)",
    "asyncio.run": "import asyncio; asyncio.run(asyncio.sleep(60))",
    "finally": "try:\n    while True: pass\nfinally: done = True",
    "numpy": "import numpy\nwhile True: numpy.broadcast_to(1.0, (5000, 5000)).sum()",
    "C code that holds the GIL and can be woken": "import ctypes; ctypes.PyDLL(None).sleep(60)",
    "C code without the GIL": "import ctypes; ctypes.CDLL(None).pause()",
    "display": "while True: get_engine().display(1)",
    "output": "while True: print('x' * 1000)",
}
_BY_THE_SECOND = {
    "a finalizer, which swallows the first": """
class Slow:
    def __del__(self):
        get_engine().progress(0)
        while True: pass
slow = Slow()
del slow
while True: pass
""",
    "a task that does not let itself be cancelled": """
import asyncio
async def stubborn():
    while True:
        try:
            get_engine().progress(0)
            await asyncio.sleep(60)
        except asyncio.CancelledError: pass
await stubborn()
""",
}
_BY_THE_KILL = {
    "swallows every KeyboardInterrupt": "while True: pass",
    "ignores the signal": "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)",
    "C code that holds the GIL for ever": "import collections as c, itertools as i; c.deque(i.repeat(0), 0)",
    "numpy for hours": "import numpy; numpy.broadcast_to(1.0, (10**6, 10**6)).sum()",
}


def _stubborn(line: str) -> str:
    """Return code that goes on with `line` after an interrupt: so one that comes before it changes nothing."""
    return f"while True:\n  try:\n    get_engine().progress(0)\n    {line}\n  except KeyboardInterrupt: pass"


@pytest.mark.parametrize("what", [*_BY_ONE_INTERRUPT, *_BY_THE_SECOND])
async def test_whatever_runs_can_be_interrupted(kernel: Driver, what: str) -> None:
    """Loops, waits, children, awaits, C code that ends: KeyboardInterrupt, and the namespace is intact."""
    # Imported before: an interrupt within one may hit a callback of the import system, which loses it.
    await kernel.ok("kept = 5")
    await kernel.ok("import asyncio, ctypes, numpy, queue, select, socket, subprocess, threading, time")
    if what in _BY_THE_SECOND:  # which say themselves when they are where an interrupt is in vain
        stopped = await _stop(kernel, _BY_THE_SECOND[what], 0.1, last_grace=10)
    else:
        stopped = await _stop(kernel, f"get_engine().progress(0)\n{_BY_ONE_INTERRUPT[what]}", 10)
    assert isinstance(stopped.answer, Reply)
    assert stopped.answer.failure is not None
    assert stopped.answer.failure.errors[0].type_name == "KeyboardInterrupt"
    assert stopped.answer.failure.category == "INTERRUPTED"
    assert stopped.interrupts == (2 if what in _BY_THE_SECOND else 1)
    assert (await kernel.ok("kept")).text == "5"


@pytest.mark.parametrize("what", _BY_THE_KILL)
async def test_whatever_refuses_is_killed(what: str) -> None:
    """What no interrupt stops ends with its kernel after two graces, and the end says why."""
    async with running() as kernel:
        await kernel.ok("import numpy")  # which fails for good if an interrupt comes amid it
        stopped = await _stop(kernel, "print('begun')\n" + _stubborn(_BY_THE_KILL[what]), 0.1)
        assert isinstance(stopped.answer, KernelExited)
        assert stopped.interrupts == 2
        assert stopped.answer.status.signal == signal.SIGKILL
        assert stopped.answer.describe() == _CAUSE
        assert kernel.stdout == b"begun\n"


async def test_a_kill_takes_the_group_along() -> None:
    """Everything that the kernel started in its group is gone once it has ended."""
    async with running() as kernel:
        script = "sleep 60 & echo $!; wait"
        await kernel.ok(
            f"import subprocess; p = subprocess.Popen(['sh', '-c', {script!r}], stdout=-1, text=True)"
        )
        child = int((await kernel.ok("p.pid")).text or 0)
        grandchild = int((await kernel.ok("int(p.stdout.readline())")).text or 0)
        kernel.kernel.kill()
        await kernel.kernel.exited
        async with asyncio.timeout(10):
            while any(is_alive(pid) for pid in (child, grandchild)):  # noqa: ASYNC110  # the system's work
                await asyncio.sleep(0.005)


async def test_a_stray_child_keeps_nobody_waiting() -> None:
    """A child in a session of its own lives on and holds the pipes: neither answers nor the end wait for it."""
    async with running() as kernel, asyncio.timeout(10):
        code = (
            "import subprocess; p = subprocess.Popen(['sleep', '60'], start_new_session=True, close_fds=False)"
        )
        await kernel.ok(code)
        stray = int((await kernel.ok("p.pid")).text or 0)
        try:
            stopped = await _stop(kernel, _stubborn("while True: pass"), 0.05)
            assert isinstance(stopped.answer, KernelExited)
            assert is_alive(stray)
        finally:
            os.kill(stray, signal.SIGKILL)


async def test_what_a_kernel_and_its_children_have() -> None:
    """Memory of the kernel alone, and with its children; what they share is counted once where it matters."""
    async with running() as kernel:
        await kernel.ok("import os, time; big = b'x' * (64 << 20)")
        await kernel.ok("pid = os.fork()\nif pid == 0:\n    time.sleep(60)\n    os._exit(0)")
        own = kernel.kernel.resident_bytes()
        assert own > 64 << 20
        assert own == pytest.approx(psutil.Process(kernel.kernel.pid).memory_info().rss, rel=0.1)
        rough = kernel.kernel.group_bytes(above=1 << 40)
        exact = kernel.kernel.group_bytes()
        assert rough > own + (60 << 20)
        assert 64 << 20 < exact < own + (40 << 20)
        kernel.kernel.kill()
        await kernel.kernel.exited
        assert kernel.kernel.resident_bytes() == kernel.kernel.group_bytes() == 0
