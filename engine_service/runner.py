"""Runs the operations of one engine's queue in its kernel, and stops the one that runs.

A call needs no task: it goes to the kernel from where it is submitted, and its answer goes out from where the
kernel's is read. Tasks are handed to the kernel ahead of time: one of those has begun once the kernel has
answered the one before it, and the kernel's answer alone says what became of it.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine_service import endings, plain_response
from engine_service.kernel_frames import WireError
from engine_service.kernel_page import AHEAD
from engine_service.kernel_process import Command, KernelExited, Reply
from engine_service.ladder import Action, Ladder
from engine_service.late_output import LateOutput
from engine_service.operation import QUEUED, RUNNING, Answer, StopCause
from engine_service.requests import LARGE
from engine_service.responses import Composer
from enginery import _ids, _logs
from enginery._engine import CallReply
from enginery._methods import PYTHON_NAMES
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from engine_service.engine import Engine
    from engine_service.kernel_process import DisplayData
    from engine_service.operation import Operation

logger = logging.getLogger(__name__)
output_logger = logging.getLogger("engine_service.output")

_LOOK_AGAIN = 0.01  # seconds, while it is not known whether the kernel has begun what was revoked


class Phase(enum.Enum):
    """Where an operation is that was taken out of the queue.

    from          to                       when
    TRANSLATING   IN_KERNEL                its large request has become a command, in a thread
    AHEAD         IN_KERNEL                the kernel has answered those before it
    AHEAD         the queue, or its end    it was revoked, or its kernel ended, before it had begun
    IN_KERNEL     the queue, or its end    the same, if that is known only now
    IN_KERNEL     COMPOSING, its end       the kernel has answered or ended; large answers are composed aside
    COMPOSING     its end                  it is composed

    Only IN_KERNEL can it be interrupted.
    """

    TRANSLATING = enum.auto()
    AHEAD = enum.auto()
    IN_KERNEL = enum.auto()
    COMPOSING = enum.auto()


@dataclass(slots=True, eq=False)
class _Run:
    """An operation that was taken out of the queue."""

    operation: Operation
    phase: Phase
    timer: asyncio.TimerHandle | None = None
    """Its timeout, then the next step of its ladder."""
    is_revoked: bool = False
    withdrawal: DeliveryError | None = None
    """How it ends if it was revoked in time; without one it goes back to the queue."""
    stop: tuple[StopCause, float, bool] | None = None
    """How to stop it if it was not: cause, grace, whether by interrupts only."""


class Runner:
    """The operations that were taken out of the queue. Hears what their kernel says (see KernelListener)."""

    def __init__(self, engine: Engine) -> None:
        """Run what is in the queue of `engine`."""
        self._engine = engine
        self._runs: dict[bytes, _Run] = {}
        self._line: deque[_Run] = deque()  # those that the kernel has, the one that runs first
        self._is_translating = False
        self._is_recalling = False  # what is behind the first goes back to the queue, if it does not begin
        self._returned: list[_Run] = []  # and has come so far
        self._asides: set[asyncio.Task[None]] = set()  # translate and compose what is large
        self._late = LateOutput()

    # ---- to the kernel

    def begin_next(self) -> None:
        """Hand over what may run now, or lie ready in the kernel, unless there is none."""
        engine = self._engine
        while len(self._line) < AHEAD and engine.queue:
            if self._is_translating or self._is_recalling or engine.is_stopping or not engine.keeper.is_ready:
                return
            if self._line and not engine.kernel.takes_more:
                return
            operation = engine.queue.begin()
            if operation is None:
                return
            self._begin(operation)

    def _begin(self, operation: Operation) -> None:
        run = self._runs[operation.operation_id] = _Run(operation, Phase.TRANSLATING)
        if operation.method == frame_pb2.METHOD_EXECUTE and not operation.number:
            operation.number = self._engine.records.take_number()
        if operation.fields is None:
            self._start(run)
            self._is_translating = True
            self._set_aside(self._translate(run))
        elif (error := self._send(run)) is not None:
            asyncio.get_running_loop().call_soon(self._finish, run, error)  # not from within itself

    def _start(self, run: _Run) -> None:
        """It runs, or is about to."""
        operation = run.operation
        operation.begin(time.time_ns(), self._engine.kernel.incarnation)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("began", extra=self.about(operation))
        if operation.context.timeout is not None:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later(operation.context.timeout, self._time_out, operation)

    def _set_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _translate(self, run: _Run) -> None:
        operation = run.operation
        try:
            await asyncio.to_thread(operation.translate)
            self._is_translating = False
            error = self._send(run)
        except Exception as raised:
            self._is_translating = False
            error = self._explain(raised, operation)
        if error is not None:
            self._finish(run, error)
        else:
            self.begin_next()

    def _send(self, run: _Run) -> DeliveryError | None:
        """Give the kernel an operation; return why that failed."""
        operation = run.operation
        if operation.stop_cause is not None:
            return endings.not_begun(self._engine, operation)
        assert operation.fields is not None
        run.phase = Phase.AHEAD if self._line else Phase.IN_KERNEL
        if not self._line and operation.state == QUEUED:
            self._start(run)
        try:
            command = Command(
                method=PYTHON_NAMES[operation.method],
                operation_id=operation.operation_id,
                engine_id=self._engine.engine_id,
                number=operation.number,
                inline_limit=operation.context.inline_limit,
                is_task=operation.context.is_task,
                **operation.fields,
            )
            self._engine.kernel.begin(command, functools.partial(self._receive, run))
        except KernelExited as exited:
            asyncio.get_running_loop().call_soon(self._receive, run, exited)  # as from where it is read
        except WireError as error:  # over the bounds of a frame, which are wider than any sensible request
            return DeliveryError("BAD_REQUEST", field=PYTHON_NAMES[operation.method], cause=error)
        except Exception as error:
            return self._explain(error, operation)
        self._line.append(run)
        return None

    # ---- what it says meanwhile

    def output(self, stream: str, data: bytes, operation_id: bytes) -> None:
        """Output of an operation, or of nobody: that goes to the log."""
        run = self._runs.get(operation_id)
        if run is not None:
            run.operation.log.output(stream, data, time.time())
            return
        about = _logs.about(engine=self._engine.engine_id)
        lines, dropped = self._late.take(data, time.monotonic())
        if dropped:
            output_logger.warning("%d bytes of output of no operation were dropped", dropped, extra=about)
        for line in lines:
            output_logger.info("%s: %s", stream, line, extra=about)

    def display(self, display: DisplayData, operation_id: bytes) -> None:
        """An operation displays something."""
        run = self._runs.get(operation_id)
        if run is not None:
            run.operation.log.display(display, time.time())

    def progress(self, fraction: float, text: str, operation_id: bytes) -> None:
        """An operation says how far it is."""
        run = self._runs.get(operation_id)
        if run is not None:
            run.operation.progress = (fraction, text[:1_000])
            run.operation.log.progress(*run.operation.progress, time.time())

    # ---- from the kernel

    def _receive(self, run: _Run, reply: Reply | KernelExited) -> None:
        """Take the kernel's answer; called from where it is read, in the order in which the kernel got them."""
        try:
            self._take_answer(run, reply)
        except Exception as error:
            self._abandon(run, error)

    def _abandon(self, run: _Run, error: Exception) -> None:
        """End what a defect of the host has left half done: nobody else would."""
        answer = self._explain(error, run.operation)
        if run in self._line:
            self._line.remove(run)
        if self._runs.get(run.operation.operation_id) is run:
            self._finish(run, answer)
            return
        if not run.operation.has_ended:
            self._engine.end(run.operation, answer)
        self._engine.idle()

    def _take_answer(self, run: _Run, reply: Reply | KernelExited) -> None:
        operation = run.operation
        self._disarm(run)
        self._line.remove(run)
        has_begun = True
        death: DeliveryError | None = None
        if isinstance(reply, KernelExited):
            has_begun = operation.state == RUNNING
            if has_begun:
                death = endings.died(self._engine, reply, operation)
                reply = endings.last_reply(death, operation)
        else:
            has_begun = not reply.was_revoked
            if self._line:
                self._lead(self._line[0])
        if not has_begun:
            self._return(run)
        else:
            assert isinstance(reply, Reply)
            self._answer(run, reply, death)
        if not self._line:
            self._give_back()

    def _lead(self, run: _Run) -> None:
        """It is the first that the kernel has not answered: so it runs, unless it was revoked in time."""
        run.phase = Phase.IN_KERNEL
        if run.is_revoked and not self._engine.kernel.has_begun(run.operation.operation_id):
            run.timer = asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._lead, run)
            return
        self._start(run)
        if run.stop is not None:
            cause, grace, interrupt_only = run.stop
            self.stop(run.operation, cause, grace, interrupt_only=interrupt_only)

    def _answer(self, run: _Run, reply: Reply, death: DeliveryError | None) -> None:
        operation = run.operation
        if operation.state == QUEUED:  # it was revoked too late, which shows only now
            self._start(run)
            self._disarm(run)
        run.phase = Phase.COMPOSING
        if death is None and reply.failure is not None and operation.stop_cause is not None:
            reply.failure = replace(reply.failure, category=operation.stop_cause.category)
        if (plain := plain_response.compose(operation, reply)) is not None:
            self._finish(run, death or CallReply(frame_pb2.OUTCOME_OK, plain, reply.duration))
            return
        composer = Composer(self._engine.engine_id, operation)
        if operation.log.size + _size(reply) > LARGE:
            self._set_aside(self._compose_aside(run, composer, reply, death))
            return
        try:
            answer: Answer = self._keep(operation, composer, reply, composer.respond(reply))
        except Exception as error:
            answer = self._give_up(error, operation, composer, reply)
        self._finish(run, death or answer)

    async def _compose_aside(
        self, run: _Run, composer: Composer, reply: Reply, death: DeliveryError | None
    ) -> None:
        try:
            response = await asyncio.to_thread(composer.respond, reply)
            answer: Answer = self._keep(run.operation, composer, reply, response)
        except Exception as error:
            answer = self._give_up(error, run.operation, composer, reply)
        self._finish(run, death or answer)

    def _keep(self, operation: Operation, composer: Composer, reply: Reply, response: bytes) -> CallReply:
        """Take over what outlives the operation, and return its answer."""
        engine = self._engine
        if reply.properties is not None:
            engine.change_properties(reply.properties)
        now = time.time()
        for blob_id, stored in composer.blobs:
            engine.blobs.add(stored, now, blob_id)
        failed = reply.failure is not None
        if operation.method == frame_pb2.METHOD_EXECUTE:
            engine.records.add(operation.number, response)
        elif operation.method == frame_pb2.METHOD_RESET and not failed:
            engine.records.clear()
        return CallReply(operation.outcome_of_reply(reply.failure), response, reply.duration)

    def _give_up(self, error: Exception, operation: Operation, composer: Composer, reply: Reply) -> Answer:
        """Drop what could not be composed, and return the error that is the answer then."""
        reply.close()
        for _, stored in composer.blobs:
            stored.close()
        return self._explain(error, operation)

    def _explain(self, error: Exception, operation: Operation) -> DeliveryError:
        if isinstance(error, DeliveryError):
            return error
        logger.error(
            "defect in %s", PYTHON_NAMES[operation.method], exc_info=error, extra=self.about(operation)
        )
        return DeliveryError("INTERNAL", cause=f"{type(error).__name__}: {error}", process="engine host")

    def _finish(self, run: _Run, answer: Answer) -> None:
        self._disarm(run)
        engine, operation = self._engine, run.operation
        del self._runs[operation.operation_id]
        failed = not isinstance(answer, CallReply) or answer.outcome != frame_pb2.OUTCOME_OK
        failed = failed and engine.keeper.is_ready  # who waits for the next kernel does not mind that
        cleared = engine.queue.finish(operation, failed=failed)
        engine.end(operation, answer)
        if cleared:
            method, operation_id = PYTHON_NAMES[operation.method], _ids.show(operation.operation_id)
            cause = f"{method} failed before it in the same session (operation {operation_id})"
            engine.fail_all(cleared, engine.cleared_error(cause))
        if engine.keeper.kill_cause and not engine.is_stopping:  # it answered just before it was killed
            endings.fail_queued(engine, operation, engine.keeper.kill_cause)
        engine.idle()

    def _disarm(self, run: _Run) -> None:
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None

    async def wait_aside(self) -> None:
        """Wait until nothing is translated or composed any more."""
        while self._asides:
            await asyncio.wait(self._asides)

    # ---- those that the kernel has and has not begun

    def withdraw(
        self, operation: Operation, error: DeliveryError, stop: tuple[StopCause, float, bool] | None = None
    ) -> None:
        """End an operation with `error` unless the kernel begins it all the same: then `stop` it, if given."""
        run = self._runs[operation.operation_id]
        run.withdrawal = run.withdrawal or error
        run.stop = run.stop or stop
        self._revoke(run)

    def withdraw_all(self, error: DeliveryError) -> int:
        """The same for all of them; return how many they are."""
        ahead = self._engine.queue.ahead
        for operation in ahead:
            self.withdraw(operation, error)
        return len(ahead)

    def _revoke(self, run: _Run) -> None:
        run.is_revoked = True
        self._engine.kernel.revoke(run.operation.operation_id)

    def _recall(self) -> None:
        """Let what is behind the first go back to the queue, unless it has begun."""
        for run in self._line:
            if run.phase is Phase.AHEAD:
                self._is_recalling = True
                self._revoke(run)

    def _return(self, run: _Run) -> None:
        """Take back what the kernel did not begin, and never will."""
        if run.operation.stop_cause is not None:
            self._finish(run, endings.not_begun(self._engine, run.operation))
        elif run.withdrawal is not None:
            self._finish(run, run.withdrawal)
        else:
            self._returned.append(run)

    def _give_back(self) -> None:
        """Put back what was taken back, all at once, so that it keeps its order."""
        self._is_recalling = False
        if not self._returned:
            return
        returned, self._returned = self._returned, []
        self._engine.queue.give_back(run.operation for run in returned if run.withdrawal is None)
        for run in returned:
            if run.withdrawal is None:
                del self._runs[run.operation.operation_id]
            else:
                self._finish(run, run.withdrawal)
        self._engine.idle()

    # ---- stopping the one that runs

    def interrupt(self, operation_id: bytes) -> bytes:
        """Interrupt that operation, or whichever runs if empty; return its id, empty if it does not run."""
        if not self._line:
            return b""
        running = self._line[0].operation.operation_id
        if operation_id and running != operation_id:
            return b""
        return running if self._engine.kernel.interrupt(running) else b""

    def stop(self, operation: Operation, cause: StopCause, grace: float, *, interrupt_only: bool) -> None:
        """Begin to stop the running operation, or do so more sharply. What has its answer is left alone."""
        run = self._runs.get(operation.operation_id)
        if run is None or operation.state != RUNNING or run.phase is Phase.COMPOSING:
            return
        now = asyncio.get_running_loop().time()
        logger.debug("stop asked: %s", cause.name.lower(), extra=self.about(operation))
        ladder = operation.ladder
        if ladder is None:
            ladder = Ladder(grace, interrupt_only=interrupt_only)
            operation.stop(cause, ladder)
            self._climb(run, ladder.begin(now))
        else:
            self._climb(run, ladder.sharpen(now, grace, interrupt_only=interrupt_only))

    def _time_out(self, operation: Operation) -> None:
        context = operation.context
        self.stop(operation, StopCause.TIMEOUT, context.grace, interrupt_only=context.interrupt_only)

    def _tick(self, run: _Run) -> None:
        assert run.operation.ladder is not None
        self._climb(run, run.operation.ladder.tick(asyncio.get_running_loop().time()))

    def _climb(self, run: _Run, actions: Iterable[Action]) -> None:
        """Take steps of the ladder. One that the kernel does not have yet ends before it begins."""
        operation = run.operation
        for action in actions if run.phase is Phase.IN_KERNEL else ():
            logger.debug(action.name.lower(), extra=self.about(operation))
            if action is Action.INTERRUPT:
                self._engine.kernel.interrupt(operation.operation_id)
            else:
                self._kill_for(run)
        self._disarm(run)
        if operation.ladder is not None and operation.ladder.next_at is not None:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_at(operation.ladder.next_at, self._tick, run)

    def _kill_for(self, run: _Run) -> None:
        """Kill the kernel unless it has just ended the operation: what it would run next must not suffer."""
        self._recall()
        self._engine.kernel.catch_up()
        if run in self._line:
            shown = _ids.show(run.operation.operation_id)
            self._engine.keeper.kill(f"killed, since operation {shown} did not stop when it was interrupted")

    def about(self, operation: Operation) -> dict[str, object]:
        """Return what a line of the log about `operation` is about."""
        return _logs.about(
            engine=self._engine.engine_id, operation=operation.operation_id, client=operation.session_id
        )


def _size(reply: Reply) -> int:
    return sum(value.size for value in reply.values.values()) + sum(
        len(form) for display in reply.displays for form in display.data.values()
    )
