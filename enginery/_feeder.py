"""The thread of an executor: sends work to the engines as they take it, and sets the futures.

Work waits here until an engine is about to take it, so that a future can be cancelled for as long as the
standard library allows it. Pickling and unpickling happen on this thread too, not on the one that serves all
calls.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import weakref
from collections import deque
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from enginery import _loop
from enginery._setup import InitializerFailed
from enginery.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginery.operation import Operation

T = TypeVar("T")

FEWEST_AHEAD = 2  # calls for each engine: one runs, one is there when it ends
MOST_AHEAD = 64
_FEW = 8  # a part of the window that is too small to be filled up at once
SHORT = 0.05  # seconds beyond the way: what comes back sooner lets more calls out
LONG = 0.2  # seconds beyond twice the way: what takes longer lets fewer out

logger = logging.getLogger("concurrent.futures")  # as the standard library's executors do


class EngineFuture(Future[T]):
    """A future of an executor; `operation` is what runs on an engine for it, None while it waits.

    Its `cancel` is the standard library's: it takes back what was not sent to an engine yet.
    `future.operation.cancel()` stops what runs.
    """

    operation: Operation[T] | None = None


@dataclass(slots=True, eq=False)
class Work(Generic[T]):
    """One call that an executor was given."""

    future: EngineFuture[T]
    function: Callable[..., T]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Window:
    """How many calls are with the engines at a time.

    As many as the executor was told, if it was. Else it follows how long they take: each that is back soon lets
    one more out, each that takes long one fewer. So short calls do not wait for the way there and back, however
    long that is, and long ones stay where they can be cancelled.
    """

    def __init__(self, limit: int | None, engine_count: Callable[[], int]) -> None:
        """Begin with few."""
        self._limit = limit
        self._engine_count = engine_count
        self._size = 0
        self._way: float | None = None  # seconds there and back, the least that was seen

    def room(self, sent: int) -> int:
        """Return how many more calls to send now that `sent` are with the engines.

        None for the sake of a few: every engine has a call ahead meanwhile, and several travel in one message.
        """
        if self._limit is not None:
            return self._limit - sent
        engines = max(1, self._engine_count())
        self._size = min(max(self._size, FEWEST_AHEAD * engines), MOST_AHEAD * engines)
        room = self._size - sent
        return room if room >= self._size // _FEW else 0

    def ended(self, seconds: float, run_time: float | None) -> None:
        """Take note of how long a call took, the way there and back included, and for how long it ran of that;
        None if nobody knows."""
        if run_time is not None:
            way = max(0.0, seconds - run_time)
            self._way = way if self._way is None else min(way, self._way)
        way = self._way or 0.0
        if seconds < SHORT + way:
            self._size += 1
        elif seconds > LONG + 2 * way:
            self._size -= 1


class Feeder:
    """What an executor waits for, and the thread that does it. It does not hold the executor."""

    def __init__(self, start: Callable[[Work[Any]], Operation[Any]], window: Window) -> None:
        """`start` sends one call to an engine; `window` says how many may be there."""
        self.broken = ""
        """Why no more work is taken; empty if it is."""
        self.is_shut = False
        self._is_cancelled = False
        self._start = start
        self._window = window
        self._waiting: deque[Work[Any]] = deque()
        self._sent: dict[Operation[Any], tuple[EngineFuture[Any], float]] = {}
        self._events: queue.SimpleQueue[Operation[Any] | None] = queue.SimpleQueue()
        self._adding = threading.Lock()
        self._thread: threading.Thread | None = None

    # ---- any thread

    def add(self, work: Work[T]) -> None:
        """Take work; BrokenExecutor or RuntimeError if there is no more to be taken."""
        _loop.check_fork()  # which the thread did not survive
        with self._adding:
            if self.broken:
                raise BrokenExecutor(self.broken)
            if _exiting:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self.is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(work)
            if self._thread is None:
                _live.add(self)
                self._thread = threading.Thread(target=self._run, name="enginery-executor", daemon=True)
                self._thread.start()
        self._events.put(None)

    def shut(self, *, cancel: bool = False) -> None:
        """Take no more work; with `cancel`, cancel what was not sent. No lock: a collector may call it."""
        self.is_shut = True
        self._is_cancelled = self._is_cancelled or cancel
        self._events.put(None)

    def join(self) -> None:
        """Wait until all work is done that was taken; in a callback of a future it does not wait."""
        with self._adding:  # the thread of work that is being added is there
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # ---- its own thread

    def _run(self) -> None:
        while self._send():
            self._take(self._events.get())
            while not self._events.empty():
                self._take(self._events.get())
        _live.discard(self)

    def _send(self) -> bool:
        """Send what may be sent; return whether there is anything to wait for."""
        if self.broken or self._is_cancelled:
            self._drop()
        room = self._window.room(len(self._sent)) if self._waiting else 0
        while self._waiting and room > 0:
            room -= self._send_one(self._waiting.popleft())
        if not self.is_shut or self._waiting or self._sent:
            return True
        with self._adding:  # what was let in before it was shut is there now
            return bool(self._waiting)

    def _send_one(self, work: Work[Any]) -> bool:
        """Send one call; return whether it is with an engine now."""
        future = work.future
        if not future.set_running_or_notify_cancel():
            return False
        try:
            operation = self._start(work)
        except Exception as error:
            future.set_exception(error)
            return False
        future.operation = operation
        self._sent[operation] = (future, time.monotonic())
        operation.add_done_callback(self._events.put)  # type: ignore[arg-type]  # it is called with the operation
        return True

    def _drop(self) -> None:
        """End what was not sent: the executor is broken, or was shut for good."""
        while self._waiting:
            future = self._waiting.popleft().future
            if self._is_cancelled:
                future.cancel()
            if future.set_running_or_notify_cancel():
                future.set_exception(BrokenExecutor(self.broken))

    def _take(self, operation: Operation[Any] | None) -> None:
        if operation is None:
            return
        future, sent_at = self._sent.pop(operation)
        answer = operation._answer
        self._window.ended(time.monotonic() - sent_at, None if answer is None else answer.duration())
        error = operation.exception()
        if error is None:
            future.set_result(operation.result())
            return
        if _is_failed_setup(error):
            self._break(error)
        future.set_exception(error)

    def _break(self, error: Exception) -> None:
        with self._adding:
            is_first, self.broken = not self.broken, self.broken or str(error)
        if is_first:
            logger.critical("Exception in initializer:", exc_info=error)


def _is_failed_setup(error: Exception) -> bool:
    by_name = isinstance(error, RemoteError) and error.type_name == InitializerFailed.__qualname__
    return by_name or isinstance(error, InitializerFailed)


# ---- the end of the process

_live: weakref.WeakSet[Feeder] = weakref.WeakSet()
_exiting = False


def _at_exit() -> None:
    """Let all work be done, as the standard library's executors do."""
    global _exiting
    _exiting = True
    feeders = list(_live)
    for feeder in feeders:
        feeder.shut()
    for feeder in feeders:
        feeder.join()


def register_at_exit() -> None:
    """Have the end of the process wait for executors, before clients and clusters end. Once is enough."""
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)  # what was registered last runs first
