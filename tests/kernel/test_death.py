"""A kernel that ends says how; nothing that it leaves behind answers or lives on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from engine_service.kernel_exit import ExitStatus
from engine_service.kernel_process import Command, KernelExited, KernelOptions, KernelProcess
from enginery._encoded import Codec, Encoded
from tests.kernel.conftest import Driver, Heard, running
from tests.leftovers import is_alive

if TYPE_CHECKING:
    from pathlib import Path


async def _death(kernel: Driver, code: str) -> KernelExited:
    with pytest.raises(KernelExited) as caught:
        await kernel.execute(code)
    return caught.value


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV (signal 11)"),
        ("import os; os.abort()", "SIGABRT (signal 6)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL (signal 9), not sent by Enginery"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM (signal 15)"),
    ],
)
async def test_deaths_are_described(code: str, text: str) -> None:
    """Signal or exit code, soon, with what the kernel wrote before."""
    async with running() as kernel:
        async with asyncio.timeout(20):
            error = await _death(kernel, f"print('before')\n{code}")
        assert error.status.describe().startswith(text)
        assert kernel.stdout == b"before\n"
        if "SIGSEGV" in text:
            assert "<execute 1>" in str(error)
        with pytest.raises(KernelExited):
            await kernel.execute("1")


async def test_kills_and_stops() -> None:
    """`kill` ends the kernel and what it started; `stop` lets an idle one run its exit handlers."""
    async with running() as kernel:
        await kernel.ok("import subprocess; p = subprocess.Popen(['sleep', '60'])")
        child = int((await kernel.ok("p.pid")).text or 0)
        kernel.kernel.kill()
        status = await kernel.kernel.exited
        assert (status.signal, status.ordered, status.describe()) == (
            signal.SIGKILL,
            True,
            "SIGKILL (signal 9)",
        )
        async with asyncio.timeout(10):
            while is_alive(child):  # noqa: ASYNC110  # the system's work
                await asyncio.sleep(0.005)
    async with running() as kernel:
        await kernel.ok("import atexit; atexit.register(print, 'bye');")
        status = await kernel.kernel.stop(10)
        assert status.describe() == "exit code 0"
    async with running() as kernel:
        task = asyncio.ensure_future(kernel.execute("while True: pass"))
        await asyncio.sleep(0)
        assert (await kernel.kernel.stop(0.05)).signal == signal.SIGKILL
        with pytest.raises(KernelExited):
            await task


async def test_a_forked_child_never_answers() -> None:
    """A child that falls through user code ends; its parent answers once, and its death is noticed at once."""
    async with running() as kernel:
        for _ in range(5):
            reply = await kernel.ok("import os\npid = os.fork()\nif pid: status = os.waitpid(pid, 0)[1]\n'one'")
            assert reply.text == "'one'"
            assert (await kernel.ok("status, os.getpid()")).text == f"(0, {kernel.kernel.pid})"
        await kernel.ok(
            "import sys\nif os.fork() == 0: sys.exit(3)\nstatus = os.waitstatus_to_exitcode(os.wait()[1])"
        )
        assert (await kernel.ok("status")).text == "3"
        await kernel.ok("if os.fork() == 0: 1/0\nstatus = os.waitstatus_to_exitcode(os.wait()[1])")
        assert b"ZeroDivisionError" in kernel.stderr
        code = "if os.fork() == 0:\n    import time; time.sleep(60)\nos.kill(os.getpid(), 9)"
        async with asyncio.timeout(20):  # the child holds every descriptor open
            await _death(kernel, code)


async def test_a_closed_socket_is_the_end() -> None:
    """User code that closes all descriptors loses its kernel, with a reason, not a hang."""
    async with running() as kernel, asyncio.timeout(10):
        error = await _death(kernel, "import os; os.closerange(3, 100)")
        assert error.status.returncode != 0
        assert "closed it" in error.describe() or "closed its connection" in error.describe()


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage that is no frame",
        b"1ENG" + b"\xff" * 12,
        b"1ENG" + b"\x02\0\0\0" + b"\0" * 8 + b"[]",
        b"1ENG" + b"\x02\0\0\0" + b"\0" * 8 + b"{}",
        b"1ENG" + b"\x02\0\0\0" + b"\0" * 4 + b"\x05\0\0\0" + b"{}",
        b"1ENG" + b"\x02\0\0\0" + b"\xff\xff\0\0" + b"\0" * 4 + b"\xff" * 8 * 0xFFFF,
        b'1ENG\x1d\0\0\0\0\0\0\0\0\0\0\0{"kind":"reply","serial":999}',
        b'1ENG\x1b\0\0\0\0\0\0\0\0\0\0\0{"kind":"reply","serial":1}',
        b"1ENG" + (40_000).to_bytes(4, "little") + b"\0" * 8 + b"[" * 40_000,
    ],
)
async def test_hostile_bytes(sent: bytes) -> None:
    """Whatever user code writes to the socket, the host kills that kernel and says why."""
    code = f"""
import os, socket, stat
for fd in range(3, 1024):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode): socket.socket(fileno=os.dup(fd)).sendall({sent!r})
    except OSError: pass
import time; time.sleep(20)
"""
    async with running() as kernel, asyncio.timeout(10):
        error = await _death(kernel, code)
        assert "broke the protocol" in error.status.describe()
        assert error.status.signal == signal.SIGKILL


async def test_start_up_code(tmp_path: Path) -> None:
    """Lines, files, properties and directory of the options are there; what they print goes to the log."""
    file = tmp_path / "seed.py"
    file.write_text("b = a + 1\nget_engine().properties['from_file'] = b\nprint('seeded')\n")
    options = KernelOptions(
        exec_lines=("a = 1", "import os"),
        exec_files=(file,),
        directory=tmp_path,
        properties={"gpu": Encoded(Codec.JSON, (b"true",))},
    )
    async with running(options) as kernel:
        assert await kernel.pull("a", "b") == {"a": 1, "b": 2}
        assert (await kernel.ok("os.getcwd()")).text == repr(str(tmp_path))
        assert set(kernel.kernel.properties) == {"gpu", "from_file"}
        assert b"".join(data for stream, data in kernel.late if stream == "stdout") == b"seeded\n"
        assert kernel.kernel.python_version.count(".") == 2
        assert kernel.kernel.resident_bytes() > 1 << 20


async def test_failed_starts(tmp_path: Path) -> None:
    """A start-up line that raises, or never ends, is a start that failed, with its output."""
    with pytest.raises(KernelExited, match="ZeroDivisionError") as caught:
        async with running(KernelOptions(exec_lines=("1/0",))):
            pass
    assert caught.value.status.describe() == "exit code 1"
    with pytest.raises(KernelExited, match=r"not ready after 0\.3 s"):
        async with running(KernelOptions(exec_lines=("import time; time.sleep(60)",), startup_timeout=0.3)):
            pass
    with pytest.raises(FileNotFoundError):
        async with running(KernelOptions(directory=tmp_path / "missing")):
            pass


async def test_a_caller_that_gives_up(tmp_path: Path) -> None:
    """Cancelling a `run` stops nothing; the kernel takes the next command when that one has ended."""
    go = tmp_path / "go"
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.005)\nx = 1"
    async with running() as kernel:
        task = asyncio.ensure_future(kernel.execute(code))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RuntimeError, match="one command"):
            await kernel.execute("1")
        go.touch()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await kernel.pull("x") == {"x": 1}
                except RuntimeError:
                    await asyncio.sleep(0.01)
                else:
                    break


async def test_nothing_stays_open() -> None:
    """A kernel that came and went leaves no descriptor and no process."""
    before = psutil.Process().num_fds()
    async with running() as kernel:
        await kernel.ok("1")
        pid = kernel.kernel.pid
    assert psutil.Process().num_fds() == before
    assert not psutil.pid_exists(pid)


async def test_two_at_once_are_refused() -> None:
    """A kernel runs one command at a time; its caller sees to that."""
    async with running() as kernel:
        command = Command("execute", b"1", 0, code="import time; time.sleep(0.1)")
        first = asyncio.ensure_future(kernel.kernel.run(command))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one command"):
            await kernel.kernel.run(command)
        await first


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(0), "exit code 0"),
        (ExitStatus(-11), "SIGSEGV (signal 11)"),
        (ExitStatus(-9, ordered=True, peak_bytes=1 << 30), "SIGKILL (signal 9)"),
        (
            ExitStatus(-9, peak_bytes=812 << 20),
            "SIGKILL (signal 9), not sent by Enginery; its memory had peaked at 812 MB",
        ),
        (ExitStatus(-9, out_of_memory=True), "SIGKILL (signal 9): killed by the system's OOM killer"),
        (ExitStatus(-40), "a signal (signal 40)"),
        (ExitStatus(-9, ordered=True, cause="killed, since so"), "killed, since so"),
    ],
)
def test_exit_status(status: ExitStatus, text: str) -> None:
    """Every end has words of its own."""
    assert status.describe() == text


async def test_start_returns_a_process() -> None:
    """The class is made by `start` alone, and knows its kernel."""
    kernel = await KernelProcess.start(KernelOptions(), Heard())
    assert psutil.Process(kernel.pid).is_running()
    assert len(kernel.incarnation) == 36
    await kernel.stop(5)


async def test_user_code_has_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Enginery told its own gRPC is no business of gRPC in user code; what the user set is."""
    monkeypatch.setenv("GRPC_TRACE", "the user's")
    names = (
        "GRPC_EXPERIMENTS",
        "GRPC_ENABLE_FORK_SUPPORT",
        "GRPC_VERBOSITY",
        "GRPC_DNS_RESOLVER",
        "GRPC_TRACE",
    )
    async with running() as kernel:
        reply = await kernel.ok(f"import os\n[name for name in {names} if name in os.environ]")
    assert reply.text == "['GRPC_TRACE']"


@pytest.mark.parametrize("said", ["output", "progress", "display"])
async def test_a_defect_in_what_hears_of_a_kernel_ends_it(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the call ends too: nobody would ever read what it says next."""
    code = {"output": "print(1)", "progress": "get_engine().progress(1)", "display": "get_engine().display(1)"}

    def defect(*_: object) -> None:
        raise RuntimeError("a defect")

    async with running() as kernel:
        monkeypatch.setattr(kernel.heard, said, defect)
        with contextlib.suppress(KernelExited):  # it may have answered already
            await kernel.execute(code[said])
        assert "its host has a defect" in (await kernel.kernel.exited).describe()
