"""What code writes, by whatever means, arrives: in order, within bounds, with the command that wrote it."""

from __future__ import annotations

import asyncio

import pytest

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


async def test_a_chatty_grandchild_holds_nobody_up() -> None:
    """A process that writes for ever, left behind by a command, delays neither its reply nor the next."""
    async with running() as kernel:
        await kernel.ok("import subprocess; p = subprocess.Popen(['yes'])")
        async with asyncio.timeout(20):
            for _ in range(3):
                await kernel.ok("1")


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
