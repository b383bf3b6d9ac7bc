"""Calls that were started and not waited for: Operation, and Group over several engines."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from enginery import _ids, _loop, _methods
from enginery._decode import to_exception
from enginery._reasons import DeliveryError, public
from enginery.errors import CompositeError, EngineryError, remote_of
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from enginery._calls import Answer, Request
    from enginery._decode import Errors
    from enginery.result import Display

T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Late(Future[T]):
    """A future whose outcome is decoded by the first thread that asks for it.

    So nothing is unpickled on the thread that serves all calls, and an answer that nobody reads costs nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()  # it was sent: `cancel()` is False and changes nothing
        self._decoding = threading.RLock()
        self._outcome: tuple[T | None, Exception | None] | None = None

    def _decode(self) -> T:
        """Return the outcome, or raise it."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Let go of what only `_decode` needed."""

    def _wait(self, timeout: float | None) -> tuple[T | None, Exception | None]:
        if not self.done():
            _loop.check_wait()
        try:
            super().result(timeout)  # a done future's own result means nothing: see _decode
        except KeyboardInterrupt as stop:
            stop.add_note("the wait has ended, the call goes on: interrupt() of the view stops it")
            raise
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
        value, error = self._wait(timeout)
        try:
            if error is not None:
                raise _bare(error)
            return value  # type: ignore[return-value]  # T may be None
        finally:
            error = None  # or the traceback would hold this frame, which holds the error

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait for the answer and return what `result` would raise, None if it succeeded."""
        return self._wait(timeout)[1]

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the answer in a coroutine. Cancelling the wait does not stop the operation."""
        return asyncio.wrap_future(self).__await__()

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


def _call_back(fn: Callable[[Future[T]], object], future: Future[T]) -> None:
    try:
        fn(future)
    except (SystemExit, KeyboardInterrupt):
        if not _loop.is_current():
            raise
        logger.exception("a done-callback wanted to end the thread that serves all calls: %r", fn)


class Operation(_Late[T]):
    """One call on one engine that was started with `block=False`: an awaitable `concurrent.futures.Future`.

    `result()` waits, `await operation` does so in a coroutine, `add_done_callback`, `concurrent.futures.wait`
    and `as_completed` work. Callbacks run on the thread that serves all calls of the process: they must be
    quick, and may start calls but not wait for them. `cancel()` is always False: what was sent runs.
    """

    def __init__(self, request: Request[T], engine_id: int, operation_id: bytes, errors: Errors) -> None:
        """Made by views."""
        super().__init__()
        self._request = request
        self._engine_id = engine_id
        self._operation_id = operation_id
        self.errors: Errors = errors
        """How errors of user code are raised; see `connect`."""
        self._failure: DeliveryError | None = None
        self._answer: Answer | None = None

    @property
    def engine_id(self) -> int:
        """The engine that was called."""
        return self._engine_id

    @property
    def operation_id(self) -> str:
        """Names it everywhere: in errors, queue status and logs. A UUID."""
        return _ids.show(self._operation_id)

    @property
    def method(self) -> str:
        """What was called, such as `execute`."""
        return _methods.PYTHON_NAMES[self._request.method]

    @property
    def stdout(self) -> str:
        """What `apply` wrote to standard output; empty until it is done. `execute` has it in its result."""
        return str(getattr(self._message(), "stdout", ""))

    @property
    def stderr(self) -> str:
        """What `apply` wrote to standard error, as `stdout`."""
        return str(getattr(self._message(), "stderr", ""))

    @property
    def displays(self) -> list[Display]:
        """What `apply` displayed; empty until it is done. `execute` has it in its result."""
        return [] if self._answer is None else self._answer.displays()

    def _message(self) -> object:
        return None if self._answer is None else self._answer.message

    def succeed(self, answer: Answer) -> None:
        """Take the answer. Called once, by the session."""
        self._answer = answer
        self.set_result(None)  # type: ignore[arg-type]  # the outcome is decoded later

    def fail(self, failure: DeliveryError) -> None:
        """Take what kept the call from being answered. Called once, by the session."""
        failure.metadata.setdefault("engine_id", str(self._engine_id))
        failure.metadata.setdefault("operation_id", self.operation_id)
        failure.metadata.setdefault("method", self.method)
        self._failure = failure
        self.set_result(None)  # type: ignore[arg-type]

    def _decode(self) -> T:
        if self._failure is not None:
            if self._failure.reason in self._request.success_reasons:
                return self._request.fallback  # type: ignore[return-value]  # requests with reasons have one
            raise public(self._failure)
        answer = self._answer
        assert answer is not None
        try:
            if answer.outcome == frame_pb2.OUTCOME_USER_ERROR:
                raise to_exception(answer.remote_error(), self.errors)
            return self._request.decode(answer)
        except DeliveryError as error:  # a value whose form is wrong
            raise public(error) from error
        except EngineryError as error:
            if error.engine_id is None:
                error.engine_id = self._engine_id
            raise

    def _forget(self) -> None:
        if self._answer is not None:
            self._answer.forget_value()

    def __repr__(self) -> str:
        """Show engine, method and how it is."""
        return f"<Operation [{self._engine_id}:{self.method}] {self._state_text()}, {self.operation_id}>"


class Group(_Late[list[T]], Generic[T]):
    """The operations of one call over several engines: a future of the list of their answers, in target order.

    `result()` and `await group` raise one CompositeError if any engine failed; each operation still has its own
    answer. It is a sequence too: `group[0]`, `len(group)`, `for operation in group`.
    """

    def __init__(self, operations: Sequence[Operation[T]]) -> None:
        """Take at least one operation."""
        super().__init__()
        self._operations = tuple(operations)
        self._left = len(self._operations)
        self._counting = threading.Lock()
        for operation in self._operations:
            operation.add_done_callback(self._one_done)

    def _one_done(self, _: Future[T]) -> None:
        with self._counting:
            self._left -= 1
            last = self._left == 0
        if last:
            self.set_result([])

    @property
    def operations(self) -> tuple[Operation[T], ...]:
        """One for each engine, in target order."""
        return self._operations

    @property
    def engine_ids(self) -> list[int]:
        """The engines that were called, in target order."""
        return [operation.engine_id for operation in self._operations]

    def _decode(self) -> list[T]:
        return gather(self._operations)

    def __len__(self) -> int:
        """Return how many engines were called."""
        return len(self._operations)

    def __iter__(self) -> Iterator[Operation[T]]:
        """Iterate over the operations in target order."""
        return iter(self._operations)

    @overload
    def __getitem__(self, index: int) -> Operation[T]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Operation[T], ...]: ...
    def __getitem__(self, index: int | slice) -> Operation[T] | tuple[Operation[T], ...]:
        """Return the operation at a position."""
        return self._operations[index]

    def __repr__(self) -> str:
        """Show method, engines and how many are done."""
        done = sum(operation.done() for operation in self._operations)
        method = self._operations[0].method
        return f"<Group {method} on engines {self.engine_ids}: {done} of {len(self)} done>"


def gather(operations: Sequence[Operation[T]]) -> list[T]:
    """Wait for every operation and return their answers in order; CompositeError if any failed."""
    errors = [error for operation in operations if (error := operation.exception()) is not None]
    if errors:
        method = operations[0].method
        raise CompositeError(f"{method} failed on {len(errors)} of {len(operations)} engines", errors)
    return [operation.result() for operation in operations]
