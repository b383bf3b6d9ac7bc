"""The thread that serves all clients of a process, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

from enginery._loop import LoopThread


def test_the_end_leaves_no_task_behind() -> None:
    """Whatever still waits is cancelled and gets to its end, or Python would complain of it at exit."""
    thread = LoopThread()
    waiting = asyncio.run_coroutine_threadsafe(asyncio.sleep(60), thread.loop)
    thread.stop()
    assert waiting.cancelled()
    assert thread.loop.is_closed()


def test_ctrl_c_ends_the_closing() -> None:
    """Who presses it while clients close does not want to wait, and is shown no traceback."""
    thread = LoopThread()
    closing = threading.Event()

    async def close() -> None:
        closing.set()
        await asyncio.sleep(60)

    def press() -> None:
        closing.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    thread.at_exit(close)
    presser = threading.Thread(target=press)
    presser.start()
    began = time.monotonic()
    thread.stop()
    presser.join()
    assert time.monotonic() - began < 4
    assert thread.loop.is_closed()
