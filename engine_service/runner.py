"""Runs the operations of one engine's queue in its kernel, one at a time, and stops the one that runs.

A call needs no task: it goes to the kernel from where it is submitted, and its answer goes out from where the
kernel's is read.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from engine_service.kernel_process import Command, Failure, KernelExited, Reply
from engine_service.ladder import Action, Ladder
from engine_service.late_output import LateOutput
from engine_service.operation import RUNNING, Answer, StopCause
from engine_service.requests import LARGE
from engine_service.responses import Composer
from enginery import _ids, _logs
from enginery._engine import CallReply
from enginery._methods import PYTHON_NAMES
from enginery._reasons import TABLE, DeliveryError
from enginery.errors import RaisedError
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine_service.engine import Engine
    from engine_service.kernel_process import DisplayData
    from engine_service.operation import Operation

logger = logging.getLogger(__name__)
output_logger = logging.getLogger("engine_service.output")


class Phase(enum.Enum):
    """Where the running operation is. Only in the kernel can it be interrupted."""

    NONE = enum.auto()
    TRANSLATING = enum.auto()
    IN_KERNEL = enum.auto()
    COMPOSING = enum.auto()


class Runner:
    """The operation that runs. Hears what its kernel says meanwhile (see KernelListener)."""

    def __init__(self, engine: Engine) -> None:
        """Run what is in the queue of `engine`."""
        self._engine = engine
        self._phase = Phase.NONE
        self._timer: asyncio.TimerHandle | None = None  # its timeout, then the next step of its ladder
        self._aside: asyncio.Task[None] | None = None  # translates what is large
        self._late = LateOutput()

    # ---- to the kernel

    def begin_next(self) -> None:
        """Hand the next operation to the kernel, unless one runs or there is no kernel."""
        engine = self._engine
        if not engine.queue or engine.is_stopping or not engine.keeper.is_ready:
            return
        operation = engine.queue.begin()
        if operation is None:
            return
        operation.begin(time.time_ns(), engine.kernel.incarnation)
        if operation.method == frame_pb2.METHOD_EXECUTE:
            operation.number = engine.records.take_number()
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("began", extra=self.about(operation))
        if operation.context.timeout is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(operation.context.timeout, self._time_out, operation)
        if operation.fields is None:
            self._phase = Phase.TRANSLATING
            self._aside = asyncio.create_task(self._translate(operation))
        elif (error := self._send(operation)) is not None:
            asyncio.get_running_loop().call_soon(self._finish, operation, error)  # not from within itself

    async def _translate(self, operation: Operation) -> None:
        try:
            operation.fields = await asyncio.to_thread(operation.row.fields, operation.message, operation.blobs)
            error = self._send(operation)
        except Exception as raised:
            error = self._explain(raised, operation)
        if error is not None:
            self._finish(operation, error)

    def _send(self, operation: Operation) -> DeliveryError | None:
        """Give the kernel an operation; return why that failed."""
        if operation.stop_cause is not None:
            return self._stopped_error(operation, "kept", "it was stopped before it had begun")
        assert operation.fields is not None
        self._phase = Phase.IN_KERNEL
        try:
            command = Command(
                method=PYTHON_NAMES[operation.method],
                operation_id=operation.operation_id,
                engine_id=self._engine.engine_id,
                number=operation.number,
                inline_limit=operation.context.inline_limit,
                **operation.fields,
            )
            self._engine.kernel.begin(command, functools.partial(self._receive, operation))
        except KernelExited as exited:
            asyncio.get_running_loop().call_soon(self._receive, operation, exited)  # as from where it is read
        except Exception as error:
            return self._explain(error, operation)
        return None

    # ---- what it says meanwhile

    def output(self, stream: str, data: bytes, *, running: bool) -> None:
        """Output of the running operation, or of nobody: that goes to the log."""
        operation = self._engine.queue.running
        if running and operation is not None:
            operation.log.output(stream, data, time.time())
            return
        about = _logs.about(engine=self._engine.engine_id)
        lines, dropped = self._late.take(data, time.monotonic())
        if dropped:
            output_logger.warning("%d bytes of output of no operation were dropped", dropped, extra=about)
        for line in lines:
            output_logger.info("%s: %s", stream, line, extra=about)

    def display(self, display: DisplayData) -> None:
        """The running operation displays something."""
        if self._engine.queue.running is not None:
            self._engine.queue.running.log.display(display, time.time())

    def progress(self, fraction: float, text: str) -> None:
        """The running operation says how far it is."""
        operation = self._engine.queue.running
        if operation is not None:
            operation.progress = (fraction, text[:1_000])
            operation.log.progress(*operation.progress, time.time())

    # ---- from the kernel

    def _receive(self, operation: Operation, reply: Reply | KernelExited) -> None:
        """Take the kernel's answer; called from where it is read."""
        self._disarm()
        self._phase = Phase.COMPOSING
        death: DeliveryError | None = None
        if isinstance(reply, KernelExited):
            death = self._died(reply, operation)
            reply = _last_reply(death, operation)
        elif reply.failure is not None and operation.stop_cause is not None:
            reply.failure = replace(reply.failure, category=operation.stop_cause.category)
        composer = Composer(self._engine.engine_id, operation)
        if operation.log.size + _size(reply) > LARGE:
            self._aside = asyncio.create_task(self._compose_aside(operation, composer, reply, death))
            return
        try:
            answer: Answer = self._keep(operation, composer, reply, composer.respond(reply))
        except Exception as error:
            answer = self._give_up(error, operation, composer, reply)
        self._finish(operation, death or answer)

    async def _compose_aside(
        self, operation: Operation, composer: Composer, reply: Reply, death: DeliveryError | None
    ) -> None:
        try:
            response = await asyncio.to_thread(composer.respond, reply)
            answer: Answer = self._keep(operation, composer, reply, response)
        except Exception as error:
            answer = self._give_up(error, operation, composer, reply)
        self._finish(operation, death or answer)

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
        return CallReply(operation.outcome_of_reply(reply.failure), response)

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

    def _finish(self, operation: Operation, answer: Answer) -> None:
        self._disarm()
        self._phase = Phase.NONE
        engine = self._engine
        failed = not isinstance(answer, CallReply) or answer.outcome != frame_pb2.OUTCOME_OK
        failed = failed and engine.keeper.is_ready  # who waits for the next kernel does not mind that
        cleared = engine.queue.finish(failed=failed)
        engine.end(operation, answer)
        if cleared:
            method, operation_id = PYTHON_NAMES[operation.method], _ids.show(operation.operation_id)
            cause = f"{method} failed before it in the same session (operation {operation_id})"
            engine.fail_all(cleared, engine.cleared_error(cause))
        if engine.keeper.kill_cause and not engine.is_stopping:  # it answered just before it was killed
            self._fail_queued(operation, engine.keeper.kill_cause)
        engine.idle()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def wait_aside(self) -> None:
        """Wait until nothing is translated any more."""
        if self._aside is not None:
            await asyncio.wait((self._aside,))

    # ---- stopping the one that runs

    def interrupt(self, operation_id: bytes) -> bytes:
        """Interrupt that operation, or whichever runs if empty; return its id, empty if it does not run."""
        running = self._engine.queue.running
        if running is None or (operation_id and running.operation_id != operation_id):
            return b""
        return running.operation_id if self._engine.kernel.interrupt(running.operation_id) else b""

    def stop(self, operation: Operation, cause: StopCause, grace: float, *, interrupt_only: bool) -> None:
        """Begin to stop the running operation, or do so more sharply. What has its answer is left alone."""
        if operation.state != RUNNING or self._phase is Phase.COMPOSING:
            return
        now = asyncio.get_running_loop().time()
        logger.debug("stop asked: %s", cause.name.lower(), extra=self.about(operation))
        ladder = operation.ladder
        if ladder is None:
            ladder = Ladder(grace, interrupt_only=interrupt_only)
            operation.stop(cause, ladder)
            self._climb(operation, ladder.begin(now))
        else:
            self._climb(operation, ladder.sharpen(now, grace, interrupt_only=interrupt_only))

    def _time_out(self, operation: Operation) -> None:
        context = operation.context
        self.stop(operation, StopCause.TIMEOUT, context.grace, interrupt_only=context.interrupt_only)

    def _tick(self, operation: Operation) -> None:
        assert operation.ladder is not None
        self._climb(operation, operation.ladder.tick(asyncio.get_running_loop().time()))

    def _climb(self, operation: Operation, actions: Iterable[Action]) -> None:
        """Take steps of the ladder. One that the kernel does not have yet ends before it begins."""
        assert operation.ladder is not None
        for action in actions if self._phase is Phase.IN_KERNEL else ():
            logger.debug(action.name.lower(), extra=self.about(operation))
            if action is Action.INTERRUPT:
                self._engine.kernel.interrupt(operation.operation_id)
            else:
                shown = _ids.show(operation.operation_id)
                self._engine.keeper.kill(
                    f"killed, since operation {shown} did not stop when it was interrupted"
                )
        self._disarm()
        if operation.ladder.next_at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(operation.ladder.next_at, self._tick, operation)

    # ---- death of its kernel

    def _died(self, exited: KernelExited, operation: Operation) -> DeliveryError:
        """Return how the running operation ends, as its kernel has; what waited for that kernel ends too."""
        engine = self._engine
        if engine.is_stopping:
            return engine.stopped_error()
        died = self._fail_queued(operation, exited.describe())
        return self._death(operation) or died

    def _fail_queued(self, operation: Operation, cause: str) -> DeliveryError:
        """End what was queued for a namespace that is no more, and return the error."""
        died = DeliveryError(
            "KERNEL_DIED",
            engine_id=self._engine.engine_id,
            cause=cause,
            method=PYTHON_NAMES[operation.method],
            operation_id=_ids.show(operation.operation_id),
        )
        self._engine.fail_all(self._engine.queue.clear(all_incarnations=False), died)
        return died

    def _death(self, operation: Operation) -> DeliveryError | None:
        """Return why the host killed the kernel, None if it did not."""
        engine = self._engine
        if engine.keeper.memory_exceeded:
            return DeliveryError(
                "MEMORY_LIMIT_EXCEEDED",
                engine_id=engine.engine_id,
                size=engine.keeper.memory_exceeded,
                limit=engine.options.memory_limit,
                method=PYTHON_NAMES[operation.method],
                operation_id=_ids.show(operation.operation_id),
            )
        if operation.stop_cause is not None and engine.keeper.kill_cause:
            return self._stopped_error(
                operation,
                "lost",
                "it did not stop when it was interrupted, so its kernel was killed; the engine has a new one",
            )
        return None

    def _stopped_error(self, operation: Operation, namespace: str, cause: str) -> DeliveryError:
        assert operation.stop_cause is not None
        return DeliveryError(
            f"OPERATION_{operation.stop_cause.category}",
            engine_id=self._engine.engine_id,
            operation_id=_ids.show(operation.operation_id),
            namespace=namespace,
            timeout=f"{operation.context.timeout or 0:g}",
            cause=cause,
        )

    def about(self, operation: Operation) -> dict[str, object]:
        """Return what a line of the log about `operation` is about."""
        return _logs.about(
            engine=self._engine.engine_id, operation=operation.operation_id, client=operation.session_id
        )


def _last_reply(death: DeliveryError, operation: Operation) -> Reply:
    """Return what stands in the records for a reply of a kernel that has ended."""
    name = TABLE[death.reason].exception.__name__
    raised = RaisedError("enginery.errors", name, (f"enginery.errors.{name}",), death.text, repr(death.text))
    started_at = operation.started_at / 1e9
    return Reply(
        failure=Failure((raised,), f"{death.text}\n", "KERNEL_DIED"),
        started_at=started_at,
        duration=max(0.0, time.time() - started_at),
    )


def _size(reply: Reply) -> int:
    return sum(value.size for value in reply.values.values()) + sum(
        len(form) for display in reply.displays for form in display.data.values()
    )
