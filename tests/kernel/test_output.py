"""What code writes, by whatever means, arrives: in order, within bounds, with the command that wrote it."""

from __future__ import annotations

import asyncio
import fcntl
import sys

import pytest

from engine_service.kernel_process import DisplayData, KernelExited
from tests.kernel.conftest import Driver, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_every_way_of_writing_keeps_its_order(kernel: Driver) -> None:
    """`print`, a partial line, `os.write`, a C `puts` and a subprocess share one stream, in order."""
    code = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
for n in range(3):
    print("print", n)
    sys.stdout.write("partial ")
    os.write(1, b"write\\n")
    libc.puts(b"puts")
    print("part", end=" ")
    libc.printf(b"printf ")
    subprocess.run(["echo", "echo"], check=True)
    print("err", file=sys.stderr)
    libc.perror(b"perror")
"""
    await kernel.ok(code)
    once = "print {}\npartial write\nputs\npart printf echo\n"
    assert kernel.stdout.decode() == "".join(once.format(n) for n in range(3))
    lines = kernel.stderr.decode().splitlines()
    assert lines[::2] == ["err"] * 3
    assert all(line.startswith("perror: ") for line in lines[1::2])


async def test_output_is_never_late(kernel: Driver) -> None:
    """All that a command wrote comes before its reply, none with the next."""
    for n in range(200):
        assert await kernel.output(f"print({n})") == f"{n}\n"


async def test_output_between_commands_goes_to_the_log(kernel: Driver) -> None:
    """A thread that writes after its command ended writes to the engine's log; during another, to that one."""
    await kernel.ok("import threading\ngo = threading.Event()\ndone = threading.Event()")
    await kernel.ok(
        "def late():\n    go.wait()\n    print('late')\n    done.set()\nt = threading.Thread(target=late)"
    )
    await kernel.ok("t.start()")
    assert await kernel.output("go.set(); done.wait(); print('mine')") == "late\nmine\n"
    await kernel.ok("threading.Timer(0.05, print, ['alone']).start()")
    async with asyncio.timeout(10):
        while b"".join(data for _, data in kernel.late) != b"alone\n":  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.01)
    assert {stream for stream, _ in kernel.late} == {"stdout"}


async def test_bytes_that_are_no_text(kernel: Driver) -> None:
    """Output is bytes as written; text that has no UTF-8 is written with escapes and raises nothing."""
    await kernel.ok("import os; os.write(1, b'\\xff\\xfe\\n'); print('\\udcff\\ud800')")
    assert kernel.stdout == b"\xff\xfe\n\\udcff\\ud800\n"


async def test_output_that_somebody_else_reads(kernel: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the user's may open the other end, and take what the host was told is there."""
    ioctl = fcntl.ioctl

    def boast(fd: int, request: int, waiting: bytearray) -> object:
        answer = ioctl(fd, request, waiting)
        waiting[:] = (int.from_bytes(waiting, sys.byteorder) + 1).to_bytes(4, sys.byteorder)
        return answer

    monkeypatch.setattr(fcntl, "ioctl", boast)
    async with asyncio.timeout(10):
        assert await kernel.output("print('mine')") == "mine\n"


async def test_a_chatty_grandchild_holds_nobody_up() -> None:
    """A process that writes for ever, left behind by a command, delays neither its reply nor the next."""
    async with running() as kernel:
        await kernel.ok("import subprocess; p = subprocess.Popen(['yes'])")
        async with asyncio.timeout(20):
            for _ in range(3):
                await kernel.ok("1")


async def test_output_comes_while_it_runs(kernel: Driver) -> None:
    """What a command writes is told at once, not only when it ends."""
    task = asyncio.ensure_future(kernel.execute("print('begun')\nimport time; time.sleep(60)"))
    async with asyncio.timeout(10):
        while kernel.stdout != b"begun\n":  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.002)
        assert kernel.kernel.interrupt()
        await task


async def test_displays_have_their_place(kernel: Driver) -> None:
    """What is displayed comes after all output before it and before all after it, by whatever way."""
    code = """
import os, subprocess, sys
for n in range(50):
    print("print", n)
    os.write(1, b"write\\n")
    subprocess.run(["echo", "child"]) if n % 25 == 0 else None
    get_engine().display(n)
    print("err", n, file=sys.stderr)
    get_engine().display(-n)
"""
    await kernel.ok(code)
    events = [(event.kind, event.payload) for event in kernel.heard.log.read(0, 1 << 30)]
    expected: list[tuple[str, object]] = []
    for n in range(50):
        child = b"child\n" if n % 25 == 0 else b""
        expected += [
            ("stdout", b"print %d\nwrite\n" % n + child),
            ("display", DisplayData({"text/plain": str(n)})),
            ("stderr", b"err %d\n" % n),
            ("display", DisplayData({"text/plain": str(-n)})),
        ]
    assert events == expected


async def test_threads_display(kernel: Driver) -> None:
    """Threads display side by side, each in its own order; one that its command left behind goes to the log."""
    code = """
import threading
def show(name):
    for n in range(100): get_engine().display(f"{name}{n}")
threads = [threading.Thread(target=show, args=(name,)) for name in "ab"]
for t in threads: t.start()
for n in range(100): get_engine().display(f"c{n}")
for t in threads: t.join()
"""
    await kernel.ok(code)
    shown = [str(display.data["text/plain"]).strip("'") for display in kernel.heard.log.displays()]
    for name in "abc":
        assert [one for one in shown if one[0] == name] == [f"{name}{n}" for n in range(100)]
    await kernel.ok("threading.Timer(0.02, get_engine().display, (5,)).start()")
    async with asyncio.timeout(10):
        while ("stdout", b"5\n") not in kernel.late:  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.005)


async def test_a_signal_handler_may_display(kernel: Driver) -> None:
    """Displays and progress from handlers that strike amid others neither wedge the kernel nor are lost."""
    code = """
import signal, time
def show(*_):
    global struck
    struck += 1
    get_engine().display("handler")
    get_engine().progress(1)
    if time.monotonic() < until:  # else it strikes for ever, where a display takes longer than that
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
struck = 0
until = time.monotonic() + 0.2
signal.signal(signal.SIGALRM, show)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
count = 0
while time.monotonic() < until:
    get_engine().display("code")
    count += 1
signal.setitimer(signal.ITIMER_REAL, 0)
(count, struck)
"""
    async with asyncio.timeout(20):
        reply = await kernel.ok(code)
    shown = [display.data["text/plain"] for display in kernel.heard.log.displays()]
    by_code, by_handler = (shown.count(repr(who)) for who in ("code", "handler"))
    assert reply.text == f"({by_code}, {by_handler})"
    assert by_handler


async def test_an_interrupt_amid_displays(kernel: Driver) -> None:
    """An interrupt while an object is displayed leaves no acknowledgement that the next takes for its own."""
    for _ in range(30):
        kernel.progress.clear()
        code = "get_engine().progress(0)\nwhile True: get_engine().display(1)"
        task = asyncio.ensure_future(kernel.execute(code))
        async with asyncio.timeout(10):
            while not kernel.progress:  # noqa: ASYNC110  # of another process
                await asyncio.sleep(0.001)
            assert kernel.kernel.interrupt()
            failure = (await task).failure
        assert failure is not None
        assert failure.category == "INTERRUPTED"
    await kernel.ok("for n in range(3):\n    print(n, end='')\n    get_engine().display(n)")
    kinds = [event.kind for event in kernel.heard.log.read(0, 1 << 30)]
    assert kinds == ["stdout", "display"] * 3


async def test_a_forked_child_displays_nothing(kernel: Driver) -> None:
    """Only the kernel itself speaks to the host: a child would mix up the acknowledgements."""
    await kernel.ok(
        "import os\nif os.fork() == 0:\n    get_engine().display(1)\n    os._exit(0)\n"
        "_ = os.wait()\nget_engine().display(2)"
    )
    assert [display.data["text/plain"] for display in kernel.heard.log.displays()] == ["2"]


async def test_who_floods_the_host_with_displays_is_killed() -> None:
    """The host keeps no acknowledgements for a kernel that does not wait for them."""
    code = """
import os, socket, stat
from engine_service.kernel_frames import Frame, send
socks = []
for fd in range(3, 1024):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode): socks.append(socket.socket(fileno=os.dup(fd)))
    except OSError: pass
for n in range(100_000):
    send(socks[0], Frame({"kind": "shown", "number": 1, "display": [{}, {}]}))
"""
    async with running() as kernel, asyncio.timeout(20):
        with pytest.raises(KernelExited, match="broke the protocol"):
            await kernel.execute(code)


async def test_closed_and_replaced_streams(kernel: Driver) -> None:
    """User code may replace or close `sys.stdout`: its command still answers."""
    await kernel.ok("import io, sys; kept = sys.stdout; sys.stdout = io.StringIO(); print('hidden')")
    await kernel.ok("sys.stdout.close()")
    await kernel.ok("sys.stdout = None")
    assert await kernel.output("sys.stdout = kept; print('back')") == "back\n"


async def test_progress(kernel: Driver) -> None:
    """Running code reports how far it is; reports are thinned out, the last one passes."""
    await kernel.ok("for n in range(100_001): get_engine().progress(n / 100_000, 'of many')")
    assert kernel.progress[0] == (0.0, "of many")
    assert kernel.progress[-1] == (1.0, "of many")
    assert 2 <= len(kernel.progress) < 1000
    assert await kernel.raises("get_engine().progress(1.5)") == "ValueError"
    assert await kernel.raises("get_engine().progress(float('nan'))") == "ValueError"
