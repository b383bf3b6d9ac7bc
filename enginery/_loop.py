"""The one background thread, with one event loop, that all clients of a process share.

gRPC keeps every loop that it ever saw, and a notebook's own loop is not ours to use: hence one loop, made when
it is first needed, that lives until the process ends. A forked child has no such thread; `get()` says so there.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from enginery.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_EXIT_PATIENCE = 5.0  # seconds for all clients to close when the process ends


class LoopThread:
    """A running event loop in a daemon thread."""

    def __init__(self) -> None:
        """Start the thread; the loop runs when this returns."""
        self.loop = asyncio.new_event_loop()
        self._closers: set[Callable[[], Coroutine[Any, Any, None]]] = set()
        self._thread = threading.Thread(target=self._run, name="enginery-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def is_current(self) -> bool:
        """Return whether the calling thread is the loop's."""
        return threading.get_ident() == self._thread.ident

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and return its result; TimeoutError after `timeout` seconds, and it is
        cancelled.

        RuntimeError on the loop's own thread, where waiting would stop everything; ConnectError after a fork.
        """
        try:
            check_wait()
        except BaseException:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def at_exit(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await `closer()` when the process ends."""
        self._closers.add(closer)

    def not_at_exit(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Forget `closer`."""
        self._closers.discard(closer)

    def stop(self) -> None:
        """Close what is registered and end the thread."""

        async def close_all() -> None:
            await asyncio.gather(*(closer() for closer in list(self._closers)))

        async def end_tasks() -> None:  # those that a Ctrl-C cut off would complain if they were left
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        for step in (close_all, end_tasks):
            with contextlib.suppress(TimeoutError, KeyboardInterrupt):  # the process ends anyway
                self.run(step(), _EXIT_PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_EXIT_PATIENCE)
        if not self._thread.is_alive():
            self.loop.close()


WOULD_DEADLOCK = (
    "this waits on the thread that answers: do not wait inside a done-callback; "
    "start the call with block=False there, or hand the work to another thread"
)
FORKED = (
    "this process was forked from one that uses Enginery, and gRPC does not survive that: "
    "start worker processes by 'spawn' or 'forkserver' (multiprocessing.get_context), "
    "or connect in the parent only"
)

_lock = threading.Lock()
_thread: LoopThread | None = None
_forked = False


def get() -> LoopThread:
    """Return the process's loop thread, started now if need be; ConnectError in a child forked after that."""
    global _thread
    check_fork()
    with _lock:
        if _thread is None:
            _thread = LoopThread()
            atexit.register(_at_exit)
        return _thread


def check_fork() -> None:
    """Raise ConnectError if this process was forked from one whose loop thread ran."""
    if _forked:
        raise ConnectError(FORKED, reason="FORKED")


def is_forked() -> bool:
    """Return whether this process was forked from one whose loop thread ran."""
    return _forked


def is_current() -> bool:
    """Return whether the calling thread is the loop's."""
    return _thread is not None and _thread.is_current()


def check_wait() -> None:
    """Raise if the calling thread must not wait for an answer: in a forked child, or on the loop's own
    thread."""
    check_fork()
    if is_current():
        raise RuntimeError(WOULD_DEADLOCK)


def _at_exit() -> None:
    if _thread is not None and not _forked:
        _thread.stop()


def _after_fork_in_child() -> None:
    global _forked, _lock
    _lock = threading.Lock()
    _forked = _thread is not None


os.register_at_fork(after_in_child=_after_fork_in_child)
