"""A future whose outcome is decoded late: what Operation and Group have in common."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from concurrent.futures import Future
from concurrent.futures._base import RUNNING
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from enginery import _loop, _waker
from enginery._old_names import OF_RESULTS, OldNames
from enginery.errors import EngineryError, remote_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")

_WAIT_ENDED = "the wait has ended, the operation goes on: cancel() stops it"

logger = logging.getLogger(__name__)


class Late(OldNames, Future[T]):
    """A future whose outcome is decoded by the first thread that asks for it.

    So nothing is unpickled on the thread that serves all calls, and an answer that nobody reads costs nothing.
    """

    _old_names = OF_RESULTS

    def __init__(self) -> None:
        super().__init__()
        self._state = RUNNING  # what `cancel` does is not what futures mean by it
        self._decoding = threading.RLock()
        self._outcome: tuple[T | None, Exception | None] | None = None

    def _decode(self) -> T:
        """Return the outcome, or raise it."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Let go of what only `_decode` needed."""

    def _wait(self, timeout: float | None) -> tuple[T | None, Exception | None]:
        if self._outcome is not None:
            return self._outcome
        if not self.done():
            _loop.check_wait()
            try:
                super().result(timeout)  # a future's own result means nothing: see _decode
            except TimeoutError:
                raise TimeoutError(
                    f"no answer within {timeout:g} s; the operation goes on: cancel() stops it"
                ) from None
        with self._decoding:
            if self._outcome is None:
                try:
                    self._outcome = (self._decode(), None)
                except Exception as error:
                    self._outcome = (None, _bare(error))
                self._forget()
            return self._outcome

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer and return it, or raise what went wrong.

        TimeoutError after `timeout` seconds (default: none); that ends the waiting only, and so does Ctrl-C.
        """
        try:
            value, error = self._wait(timeout)
        except KeyboardInterrupt as stop:
            stop.add_note(_WAIT_ENDED)
            raise
        try:
            if error is not None:
                raise _bare(error)
            return value  # type: ignore[return-value]  # T may be None
        finally:
            error = None  # or the traceback would hold this frame, which holds the error

    def get(self, timeout: float | None = None) -> T:
        """Return the answer, as `result`: the name that results have elsewhere."""
        return self.result(timeout)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait for the answer and return what `result` would raise, None if it succeeded."""
        try:
            return self._wait(timeout)[1]
        except KeyboardInterrupt as stop:
            stop.add_note(_WAIT_ENDED)
            raise

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the answer in a coroutine. Cancelling the wait does not stop the operation."""
        yield from self.arrival()
        return self.result()

    def arrival(self) -> Generator[Any, None, None]:
        """Wait in a coroutine until it is done, and decode nothing. For `yield from`."""
        if not self.done():
            # Not asyncio.wrap_future: it would cancel the operation with the wait.
            waiter = asyncio.get_running_loop().create_future()
            super().add_done_callback(functools.partial(_wake_up, _waker.of_running_loop(), waiter))
            yield from waiter

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to an engine."""
        kind = type(self).__name__
        raise TypeError(f"a future ({kind}) waits in this process and cannot be pickled: give its result()")

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn` with this when it is done, at once if it is. What `fn` raises is logged.

        On the thread that serves all calls that goes for SystemExit and KeyboardInterrupt too.
        """
        super().add_done_callback(functools.partial(_call_back, fn))

    def _state_text(self) -> str:
        if not self.done():
            return "waiting"
        if self._outcome is None:
            return "done"
        error = self._outcome[1]
        return "succeeded" if error is None else f"raised {type(error).__name__}"


def _bare(error: Exception) -> Exception:
    """Take our own frames off what an engine or a connection says; a defect keeps them.

    They say nothing to the reader, and would pile up on an error that is raised again.
    """
    if isinstance(error, EngineryError) or remote_of(error) is not None:
        BaseException.with_traceback(error, None)
    return error


def _wake_up(waker: _waker.Waker, waiter: asyncio.Future[None], _: Future[Any]) -> None:
    waker.wake(waiter)


def _call_back(fn: Callable[[Future[T]], object], future: Future[T]) -> None:
    try:
        fn(future)
    except (SystemExit, KeyboardInterrupt):
        if not _loop.is_current():
            raise
        logger.exception("a done-callback wanted to end the thread that serves all calls: %r", fn)
