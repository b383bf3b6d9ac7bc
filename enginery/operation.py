"""Calls that were started: one Operation each."""

from __future__ import annotations

import concurrent.futures
import time
from typing import TYPE_CHECKING, Any, TypeVar

from enginery import _calls, _ids, _loop, _methods, _options
from enginery._decode import to_exception, to_remote_error
from enginery._engine import MAX_SEQUENCE
from enginery._late import Late
from enginery._outcomes import RAISED, STATES, outcome_of
from enginery._reasons import DeliveryError, public
from enginery.errors import EngineryError, OperationNotFound
from enginery.operations import EventStream, Feed, from_message, state_name
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery._answer import Answer
    from enginery._calls import Request
    from enginery._decode import Errors
    from enginery._link import Link
    from enginery.operations import OperationInfo, OperationStatus
    from enginery.result import Display

T = TypeVar("T")

_CANCEL_PATIENCE = 5.0  # seconds that `cancel` waits to hear from the engine
CTRL_C_GRACE = 2.0
"""Seconds that a call which was waited for gets to stop after Ctrl-C, before the wait ends."""


class Operation(Late[T]):
    """One call that was started: an awaitable `concurrent.futures.Future`. Of calls with `block=False`, and of
    tasks.

    `result()` waits, `await operation` does so in a coroutine, `add_done_callback`, `concurrent.futures.wait`
    and `as_completed` work. Callbacks run on the thread that serves all calls of the process: they must be
    quick, and may start calls but not wait for them. `cancel` stops it on its engine. Its `id` names it for
    every client of the cluster: `client.operation(id)` gives it to another process, also when it has ended.
    """

    def __init__(self, request: Request[T], engine_id: int, operation_id: bytes, errors: Errors) -> None:
        """Made by views, and by `Client.operation`."""
        super().__init__()
        self.request = request
        self.target = engine_id
        """What it was sent to: its engine, or -1 for a task, whose engine the controller chooses."""
        self._engine_id = engine_id
        self._operation_id = operation_id
        self._submitted_at = time.monotonic()
        self._ended_at: float | None = None
        self.errors: Errors = errors
        """How errors of user code are raised; see `connect`."""
        self.is_stopping = False
        """Whether it was asked to stop, so that it is not sent again."""
        self.asked_engine = None if engine_id == _methods.ANY_ENGINE else engine_id
        """Whom questions about it go to: its engine, or None for whoever knows it."""
        self.attempts = 0
        """How often it was run if it is a task, known when it is done; 0 for other calls."""
        self._failure: DeliveryError | None = None
        self._answer: Answer | None = None

    @property
    def engine_id(self) -> int:
        """The engine that was called; of a task the one that ran it last, -1 until that is known."""
        return self._engine_id

    @property
    def operation_id(self) -> str:
        """Names it everywhere: in errors, queue status and logs, and for other processes. A UUID."""
        return _ids.show(self._operation_id)

    @property
    def id(self) -> str:
        """The same as `operation_id`."""
        return self.operation_id

    @property
    def method(self) -> str:
        """What was called, such as `execute`."""
        return _methods.PYTHON_NAMES[self.request.method]

    # ---- how it stands

    def info(self) -> OperationInfo:
        """Ask how it stands: state, times, progress. OperationNotFound if it was released, or not yet sent."""
        link = self._link()
        response = link.run(link.operations.get(self.operation_id, self.asked_engine))
        return from_message(response.operation)

    @property
    def status(self) -> OperationStatus:
        """How it stands: `queued`, `running`, `succeeded`, `failed`, `cancelled`, `timed_out` or `lost`.

        Asks the engine while it is not done; raises as `info` does.
        """
        if self._is_settled():
            return self._end_state()
        try:
            return self.info().state
        except OperationNotFound:
            if self._is_settled():
                return self._end_state()
            if not self.done():
                return "queued"  # its call has not arrived yet
            raise

    @property
    def is_large(self) -> bool:
        """Whether it is done and its answer was too large for a message, so that decoding may take long."""
        return self._outcome is None and self._answer is not None and bool(self._answer.blobs)

    def _is_settled(self) -> bool:
        """Return whether its end is known; one whose connection was lost may go on."""
        return self.done() and (self._failure is None or self._failure.reason != "CONTROLLER_LOST")

    def _end_state(self) -> OperationStatus:
        if self._answer is not None:
            return state_name(STATES[self._answer.outcome])
        assert self._failure is not None
        if self._failure.reason in self.request.success_reasons:
            return "succeeded"
        return state_name(STATES.get(outcome_of(self._failure), 0))

    @property
    def is_cancelled(self) -> bool:
        """Whether it is known to have been cancelled. Does not ask."""
        return self._is_settled() and self._end_state() == "cancelled"

    @property
    def has_failed(self) -> bool:
        """Whether it is done and `result` raises. Does not ask, and decodes nothing."""
        return self.done() and not (self._is_settled() and self._end_state() == "succeeded")

    # ---- how long it took

    @property
    def elapsed(self) -> float:
        """Seconds since it was submitted, or until it was answered."""
        return (time.monotonic() if self._ended_at is None else self._ended_at) - self._submitted_at

    @property
    def duration(self) -> float | None:
        """Seconds that its code ran on its engine; None until it is done, and for calls that run no code."""
        return None if self._answer is None else self._answer.duration()

    # ---- what it wrote

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far; asks its engine while it is not done.

        Of more than the engine's output limit the middle is missing, and marked.
        """
        return self._output("stdout")

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far, as `stdout`."""
        return self._output("stderr")

    def _output(self, stream: str) -> str:
        if self._answer is not None:
            return self._answer.output(stream)
        if self._is_settled() and self._end_state() == "failed":
            return ""  # it was not delivered
        link = self._link()
        try:
            events = link.run(link.operations.events(self.operation_id, self.asked_engine))
        except OperationNotFound:
            return ""  # it has not arrived, or was taken out of the queue and forgotten
        return "".join(getattr(event, stream) for event in events)

    @property
    def displays(self) -> list[Display]:
        """What it displayed; empty until it is done."""
        return [] if self._answer is None else self._answer.displays()

    def events(self, after: int = 0) -> EventStream:
        """Return what happened to it after event `after`, and then each event as it happens, up to its outcome.

        For `for` and `async for`. It may be read by any number of clients, from where each likes.
        """
        if type(after) is not int:  # a bool is no number
            raise TypeError(f"after is the sequence of an event, not {type(after).__name__}")
        if not 0 <= after <= MAX_SEQUENCE:
            raise ValueError(f"after is {after}: sequences count up from 1")
        link = self._link()
        feed, key = Feed(), self.operation_id
        follow = link.operations.follow(feed, key, self.asked_engine, after, lambda: not self.done())
        link.thread.loop.call_soon_threadsafe(link.start_task, follow)
        return EventStream(feed, link.thread)

    # ---- the end

    def cancel(self, grace: float | None = None, interrupt_only: bool | None = None) -> bool:
        """Stop it: take it out of the queue, or interrupt it, after `grace` seconds again, and after another
        `grace` kill its kernel, which takes the namespace along; the engine gets a new one.

        By default as its call said, else with a grace of 5 seconds; `interrupt_only` never kills. Returns
        whether it will not run or was told to stop, False if it had ended; `result()` tells what came of it:
        OperationCancelled, or its answer if it was done all the same. An engine that does not answer within 5
        seconds, since it is away, is told when it is back.
        """
        return stop_patiently([self], grace, interrupt_only)

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in it once, and leave it at that; return whether it was running."""
        link = self._link()
        answer = link.submit(_calls.interrupt(self.operation_id), [self.target], self.errors)[0]
        return answer.result() is not None

    def release(self) -> None:
        """Let its engine forget its answer and output, and the journal too; at its end if it has not ended."""
        link = self._link()
        link.run(link.operations.release(self.operation_id))

    def _link(self) -> Link:
        _loop.check_fork()
        owner = self.request.owner
        if owner is None:
            raise TypeError("this operation is about another, and is not one itself")
        return owner._link

    def ran(self, engine_id: int | None, attempts: int) -> None:
        """Take where a task ran last, and how often it did. Called before its end, by the session."""
        self.attempts = attempts
        if engine_id is not None:
            self._engine_id = engine_id

    def succeed(self, answer: Answer) -> None:
        """Take the answer. Called once, by the session."""
        self._answer = answer
        self._ended_at = time.monotonic()
        self.set_result(None)  # type: ignore[arg-type]  # the outcome is decoded later

    def fail(self, failure: DeliveryError) -> None:
        """Take what kept the call from being answered. Called once, by the session."""
        if self._engine_id != _methods.ANY_ENGINE:
            failure.metadata.setdefault("engine_id", str(self._engine_id))
        failure.metadata.setdefault("operation_id", self.operation_id)
        failure.metadata.setdefault("method", self.method)
        self._failure = failure
        self._ended_at = time.monotonic()
        self.set_result(None)  # type: ignore[arg-type]

    def _decode(self) -> T:
        if self._failure is not None:
            if self._failure.reason in self.request.success_reasons:
                return self.request.fallback  # type: ignore[return-value]  # requests with reasons have one
            raise public(self._failure)
        answer = self._answer
        assert answer is not None
        try:
            if answer.outcome in RAISED:
                raise to_exception(answer.remote_error(), self.errors)
            if answer.outcome != frame_pb2.OUTCOME_OK:
                raise self._stopped(answer)
            return self.request.decode(answer)
        except DeliveryError as error:  # a value whose form is wrong
            raise public(error) from error
        except EngineryError as error:
            if error.engine_id is None:
                error.engine_id = self._engine_id
            raise

    def _stopped(self, answer: Answer) -> EngineryError:
        """Return the error of an operation that was interrupted, and so has said where it was."""
        reason = (
            "OPERATION_TIMED_OUT" if answer.outcome == frame_pb2.OUTCOME_TIMED_OUT else "OPERATION_CANCELLED"
        )
        timeout = self.request.options.timeout
        known = {} if timeout is None else {"timeout": f"{timeout:g}"}
        failure = DeliveryError(
            reason,
            engine_id=self._engine_id,
            operation_id=self.operation_id,
            method=self.method,
            namespace="kept",
            cause="its code was interrupted, the namespace is kept",
            **known,
        )
        error = public(failure)
        error.__cause__ = to_remote_error(answer.remote_error())
        return error

    def _forget(self) -> None:
        if self._answer is not None:
            self._answer.forget_value()

    def __repr__(self) -> str:
        """Show engine, method and how it is."""
        where = "any" if self._engine_id == _methods.ANY_ENGINE else self._engine_id
        return f"<Operation [{where}:{self.method}] {self._state_text()}, {self.operation_id}>"


def stop(
    operations: Sequence[Operation[Any]],
    grace: float | None,
    interrupt_only: bool | None,
    timeout: float | None = None,
) -> list[bool]:
    """Cancel operations of one client at once; see `Operation.cancel`.

    TimeoutError if not all engines have answered within `timeout` seconds; by default it takes what it takes.
    """
    _options.seconds("grace", grace)
    _options.flag("interrupt_only", interrupt_only)
    link = operations[0]._link()
    going = [operation for operation in operations if not operation._is_settled()]
    stopped = (
        dict(zip(going, link.run(link.cancelling.stop(going, grace, interrupt_only), timeout), strict=True))
        if going
        else {}
    )
    return [stopped.get(operation, operation.is_cancelled) for operation in operations]


def stop_patiently(
    operations: Sequence[Operation[Any]], grace: float | None, interrupt_only: bool | None
) -> bool:
    """Cancel operations; return whether any of them stops, or will once its engine can be told."""
    try:
        return any(stop(operations, grace, interrupt_only, _CANCEL_PATIENCE))
    except TimeoutError:
        return True


def wait_for(operations: Sequence[Operation[Any]]) -> None:
    """Wait until calls are done that somebody waits for; Ctrl-C stops them, and its note says how that went."""
    try:
        for operation in operations:
            operation._wait(None)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(stop_on_interrupt([operation for operation in operations if not operation.done()]))
        raise interrupt.with_traceback(None) from None  # where in the wait it came says nothing


def stop_on_interrupt(operations: list[Operation[Any]]) -> str:
    """Stop calls on Ctrl-C, without killing a kernel unless they said so; return what came of it."""
    if not operations or operations[0].request.method not in _methods.OPERATIONS:
        return "the wait has ended"
    where = f"{operations[0].method} on engine{'s' if len(operations) > 1 else ''} " + ", ".join(
        str(operation.engine_id) for operation in operations
    )
    interrupt_only = None if operations[0].request.options.interrupt_only is False else True
    until = time.monotonic() + CTRL_C_GRACE
    link = operations[0]._link()
    try:
        link.run(link.cancelling.stop(operations, None, interrupt_only), CTRL_C_GRACE)
    except (EngineryError, TimeoutError) as error:
        return f"{where} could not be told to stop yet ({error!r}), and may go on"
    concurrent.futures.wait(operations, timeout=max(0.0, until - time.monotonic()))
    left = [operation for operation in operations if not operation.done()]
    if not left:
        ends = sorted({operation._end_state() for operation in operations})
        return f"{where}: {', '.join(ends)}"
    ids = ", ".join(operation.operation_id for operation in left)
    return (
        f"{where}: told to stop, and still at it after {CTRL_C_GRACE:g} s. It goes on; "
        f"client.operation(ID).cancel() kills the kernel if it must. ID: {ids}"
    )
