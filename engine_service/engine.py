"""One engine: its kernel, its queue, and what outlives the kernel.

`Engine` is the local implementation of `EngineBase`: bytes in, bytes out. It runs on one event loop. Calls that
touch the namespace are queued and run in the kernel, one at a time; control calls (`engine_service.control`)
are answered at once. A call needs no task: it goes to the kernel from where it is submitted, and its answer
goes out from where the kernel's is read.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from engine_service import chunks, control
from engine_service.blobs import BlobStore
from engine_service.kernel_process import (
    Command,
    Failure,
    KernelExited,
    KernelOptions,
    KernelProcess,
    Reply,
)
from engine_service.queue import OperationQueue, Queued, QueueFullError
from engine_service.recent import Answer, Done, RecentOperations
from engine_service.records import Records
from engine_service.requests import ROWS, Row, parse
from engine_service.responses import Composer, set_time
from enginery import _ids
from enginery._engine import DEFAULT_VALUE_LIMIT, CallContext, CallReply
from enginery._methods import NAMES, PYTHON_NAMES, STREAMING
from enginery._reasons import DeliveryError
from enginery.errors import RaisedError
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from enginery._encoded import Encoded, Stored

logger = logging.getLogger(__name__)
output_logger = logging.getLogger("engine_service.output")

LARGE = 64 << 10
"""Bytes from which requests and replies are translated in a thread: JSON of that size takes milliseconds."""
_STOP_GRACE = 2.0
_RESTART_DELAYS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

StartKernel = Callable[..., Awaitable[KernelProcess]]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of one engine, sizes in bytes, and how its kernels start."""

    kernel: KernelOptions = field(default_factory=KernelOptions)
    queue_calls: int = 10_000
    queue_bytes: int = 256 << 20
    value_limit: int = DEFAULT_VALUE_LIMIT
    store_limit: int | None = None
    """Sum of all blobs; None means twice `value_limit`."""


class EngineListener(Protocol):
    """Who is told of an engine's changes, before the reply of the call that made them."""

    def properties_changed(self, engine: Engine) -> None:
        """Its properties are others now."""

    def kernel_changed(self, engine: Engine, reason: str) -> None:
        """It has a new kernel; `reason` says how the old one ended."""

    def engine_stopped(self, engine: Engine, reason: str) -> None:
        """It is gone for good."""


@dataclass(slots=True)
class Work:
    """What a queued operation is to do: its request, translated unless it is large, and how to answer it."""

    method: int
    row: Row
    message: Any
    inline_limit: int
    blobs: dict[str, Stored]
    fields: dict[str, Any] | None
    progress: tuple[float, str] | None = None

    def close(self) -> None:
        """Give back the blobs that it consumed."""
        for stored in self.blobs.values():
            stored.close()


class Engine:
    """An engine of this host. `slot` is its place there; `engine_id` is -1 until it is registered."""

    def __init__(
        self,
        options: EngineOptions | None = None,
        *,
        slot: int = 0,
        start_kernel: StartKernel = KernelProcess.start,
    ) -> None:
        """Take limits and place; nothing runs before `start`."""
        self.options = options or EngineOptions()
        self.slot = slot
        self.registered = False
        self.listener: EngineListener | None = None
        self.queue: OperationQueue[Work] = OperationQueue(self.options.queue_calls, self.options.queue_bytes)
        self.records = Records()
        self.blobs = BlobStore(value_limit=self.options.value_limit, store_limit=self.options.store_limit)
        self.properties: dict[str, Encoded] = {}
        self.last_failure = ""
        self._engine_id = self.options.kernel.engine_id
        self._start_kernel = start_kernel
        self._kernel: KernelProcess | None = None
        self._recent = RecentOperations()
        self._wake = asyncio.Event()
        self._stop_reason: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._aside: asyncio.Task[None] | None = None  # translates what is large, for the operation that runs

    def __repr__(self) -> str:
        """Show id, kernel and load."""
        state = "stopped" if self.is_stopping else "running" if self.queue.running else "idle"
        return f"<Engine {self.engine_id} slot {self.slot} {state}, {len(self.queue)} queued>"

    # ---- what it is

    @property
    def engine_id(self) -> int:
        """Its id; -1 while it is not registered."""
        return self._engine_id

    @property
    def kernel(self) -> KernelProcess:
        """Its kernel, or the last one while another starts."""
        assert self._kernel is not None, "the engine was not started"
        return self._kernel

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop_reason is not None

    @property
    def stop_reason(self) -> str:
        """Why it stops, empty while it does not."""
        return self._stop_reason or ""

    def set_id(self, engine_id: int, *, registered: bool) -> None:
        """Take the id that was assigned; user code sees it with the next operation."""
        self._engine_id = engine_id
        self.blobs.engine_id = engine_id
        self.registered = registered

    def status(self) -> engine_pb2.EngineStatus:
        """Return how it is, as a heartbeat says it."""
        status = engine_pb2.EngineStatus(
            engine_id=self.engine_id,
            queued_count=len(self.queue),
            resident_bytes=self.kernel.resident_bytes(),
            last_failure=self.last_failure,
        )
        running = self.queue.running
        if running is not None:
            status.operation_id = _ids.show(running.operation_id)
            status.method = PYTHON_NAMES[running.work.method]
            set_time(status.start_time, running.started_at)
        return status

    # ---- life

    async def start(self) -> None:
        """Start the kernel and wait until it is ready; KernelExited if it does not come up."""
        await self._replace_kernel()
        self._task = asyncio.create_task(self._watch(), name=f"engine in slot {self.slot}")

    def stop(self, reason: str) -> None:
        """Begin to stop for good: what waits and what runs fails with ENGINE_STOPPED. See `wait_stopped`."""
        if self.is_stopping:
            return
        self._stop_reason = reason
        self._fail_waiting(self._stopped_error())
        if self.queue.running is not None:
            self.kernel.kill()
        self._wake.set()

    async def wait_stopped(self) -> None:
        """Wait until it has stopped and its kernel is gone."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _replace_kernel(self) -> None:
        options = replace(self.options.kernel, engine_id=self._engine_id)
        kernel = await self._start_kernel(options, on_output=self._log_output, on_progress=self._note_progress)
        kernel.exited.add_done_callback(lambda _: self._wake.set())
        self._kernel = kernel
        self.properties = dict(kernel.properties)

    # ---- calls

    async def call(self, method: int, request: bytes, context: CallContext) -> CallReply:
        """Call a unary method; DeliveryError if it was not delivered. Cancelling ends the waiting alone."""
        future: asyncio.Future[CallReply] = asyncio.get_running_loop().create_future()

        def done(answer: Answer) -> None:
            if future.cancelled():
                return
            if isinstance(answer, CallReply):
                future.set_result(answer)
            else:
                future.set_exception(answer)

        self.submit(method, request, context, done)
        return await future

    def submit(self, method: int, request: bytes, context: CallContext, done: Done) -> None:
        """Call a unary method; `done` gets the answer, at once if it is ready. Needs no task: the fast way.

        An operation id that was seen before gets the answer of the first call, and nothing runs twice.
        """
        try:
            if method in control.READS:
                done(control.READS[method](self, request, context))
            elif not self._recent.join(context.operation_id, method, request, done):
                self._accept(method, request, context)
        except DeliveryError as error:
            done(error)

    def _accept(self, method: int, request: bytes, context: CallContext) -> None:
        try:
            if method in control.ACTIONS:
                answer: Answer = control.ACTIONS[method](self, request, context)
            else:
                self._enqueue(method, request, context)
                return
        except DeliveryError as error:
            if error.reason in ("QUEUE_FULL", "ENGINE_STOPPED"):  # it may be called again under the same id
                self._recent.forget(context.operation_id)
                raise
            answer = error
        self._recent.answer(context.operation_id, answer)

    def _enqueue(self, method: int, request: bytes, context: CallContext) -> None:
        row = ROWS.get(method)
        if row is None:
            streaming = " in a call frame" if method in STREAMING else ""
            raise DeliveryError("UNKNOWN_METHOD", method=f"{NAMES.get(method, method)}{streaming}")
        if self.is_stopping:
            raise self._stopped_error()
        message = parse(row.request, request)
        if method == frame_pb2.METHOD_RESET:
            self.clear_queue("the engine was reset")
        try:
            self.queue.check_room(len(request))
        except QueueFullError as full:
            raise DeliveryError(
                "QUEUE_FULL", engine_id=self.engine_id, size=full.size, option=full.option
            ) from full
        now = time.time()
        work = Work(method, row, message, context.inline_limit, {}, None)
        try:
            for blob in row.blobs(message):
                work.blobs[blob.blob_id] = self.blobs.take(blob.blob_id, now)
            if len(request) <= LARGE:
                work.fields = row.fields(message, work.blobs)
        except DeliveryError:
            work.close()
            raise
        self.queue.submit(
            Queued(context.operation_id, context.session_id, context.keep_queue, len(request), work, now)
        )
        if self.queue.running is None:
            self._begin_next()

    def clear_queue(self, cause: str) -> int:
        """Fail all that wait with QUEUE_CLEARED and return how many they were."""
        return self._fail_all(self.queue.clear(), self._cleared(cause))

    def hold_answers(self, *, hold: bool) -> None:
        """Keep the answers of all operations while nobody can be told them; they will be asked for again."""
        self._recent.is_holding = hold

    def interrupt(self, operation_id: bytes) -> bytes:
        """Interrupt that operation, or whichever runs if empty; return its id, empty if it does not run."""
        running = self.queue.running
        if running is None or (operation_id and running.operation_id != operation_id):
            return b""
        return running.operation_id if self.kernel.interrupt(running.operation_id) else b""

    async def upload(self, requests: AsyncIterator[bytes]) -> bytes:
        """Take in a blob from the messages of an Upload; returns its response."""
        return await chunks.upload(self.blobs, requests)

    def download(self, request: bytes) -> AsyncGenerator[bytes]:
        """Return the messages of a Download; close it if it is not read to its end."""
        return chunks.download(self.blobs, request)

    # ---- the queue at work

    def _begin_next(self) -> None:
        """Hand the next operation to the kernel, unless one runs or there is no kernel."""
        if self.is_stopping or self.kernel.exited.done():
            return
        operation = self.queue.begin(time.time())
        if operation is None:
            return
        work = operation.work
        composer = Composer(self.engine_id, operation.operation_id, work.method, work.inline_limit)
        if work.method == frame_pb2.METHOD_EXECUTE:
            composer.number = self.records.take_number()
            composer.code = work.message.code
        if work.fields is None:
            self._aside = asyncio.create_task(self._translate(operation, composer))
        elif (error := self._send(operation, composer)) is not None:
            asyncio.get_running_loop().call_soon(self._finish, operation, error)  # not from within itself

    async def _translate(self, operation: Queued[Work], composer: Composer) -> None:
        work = operation.work
        try:
            work.fields = await asyncio.to_thread(work.row.fields, work.message, work.blobs)
            error = self._send(operation, composer)
        except Exception as raised:
            error = self._explain(raised, operation)
        if error is not None:
            self._finish(operation, error)

    def _send(self, operation: Queued[Work], composer: Composer) -> DeliveryError | None:
        """Give the kernel an operation; return why that failed."""
        work = operation.work
        assert work.fields is not None
        try:
            command = Command(
                method=PYTHON_NAMES[work.method],
                operation_id=operation.operation_id,
                engine_id=self.engine_id,
                number=composer.number,
                inline_limit=work.inline_limit,
                **work.fields,
            )
            self.kernel.begin(command, functools.partial(self._receive, operation, composer))
        except KernelExited as exited:
            return self._died(exited, operation, composer)
        except Exception as error:
            return self._explain(error, operation)
        return None

    def _receive(self, operation: Queued[Work], composer: Composer, reply: Reply | KernelExited) -> None:
        """Take the kernel's answer; called from where it is read, so nothing may be raised here."""
        try:
            if isinstance(reply, KernelExited):
                self._finish(operation, self._died(reply, operation, composer))
                return
            if reply.failure is not None:
                composer.arguments = operation.work.row.summary(operation.work.message)
            if _size(reply) > LARGE:
                self._aside = asyncio.create_task(self._compose_aside(operation, composer, reply))
            else:
                self._finish(operation, self._compose(operation.work, composer, reply, composer.respond))
        except Exception as error:
            self._finish(operation, self._explain(error, operation))

    async def _compose_aside(self, operation: Queued[Work], composer: Composer, reply: Reply) -> None:
        try:
            response = await asyncio.to_thread(composer.respond, reply)
            answer: Answer = self._compose(operation.work, composer, reply, lambda _: response)
        except Exception as error:
            reply.close()
            answer = self._explain(error, operation)
        self._finish(operation, answer)

    def _compose(
        self, work: Work, composer: Composer, reply: Reply, respond: Callable[[Reply], bytes]
    ) -> CallReply:
        if reply.properties is not None:
            self.properties = reply.properties
            if self.listener is not None:
                self.listener.properties_changed(self)
        try:
            response = respond(reply)
        except BaseException:
            reply.close()
            raise
        now = time.time()
        for blob_id, stored in composer.blobs:
            self.blobs.add(stored, now, blob_id)
        if work.method == frame_pb2.METHOD_EXECUTE:
            self.records.add(composer.number, response)
        elif work.method == frame_pb2.METHOD_RESET and reply.failure is None:
            self.records.clear()
        failed = reply.failure is not None
        return CallReply(frame_pb2.OUTCOME_USER_ERROR if failed else frame_pb2.OUTCOME_OK, response)

    def _explain(self, error: Exception, operation: Queued[Work]) -> DeliveryError:
        if isinstance(error, DeliveryError):
            return error
        logger.error("defect in %s on %r", PYTHON_NAMES[operation.work.method], self, exc_info=error)
        return DeliveryError("INTERNAL", cause=f"{type(error).__name__}: {error}", process="engine host")

    def _finish(self, operation: Queued[Work], answer: Answer) -> None:
        failed = not isinstance(answer, CallReply) or answer.outcome != frame_pb2.OUTCOME_OK
        operation.work.close()
        cleared = self.queue.finish(failed=failed)
        self._recent.answer(operation.operation_id, answer)
        if cleared:
            method, operation_id = PYTHON_NAMES[operation.work.method], _ids.show(operation.operation_id)
            cause = f"{method} failed before it in the same session (operation {operation_id})"
            self._fail_all(cleared, self._cleared(cause))
        self._begin_next()

    # ---- the one task: it watches over the kernel

    async def _watch(self) -> None:
        try:
            while not self.is_stopping:
                if self.kernel.exited.done():
                    await self._recover()
                    self._begin_next()
                else:
                    self._wake.clear()
                    await self._wake.wait()
        except Exception:
            logger.exception("defect in %r, which stops", self)
            self.stop("a defect of its host")
        await self.kernel.stop(_STOP_GRACE)
        if self._aside is not None:
            await asyncio.wait((self._aside,))
        self.blobs.close()
        if self.listener is not None:
            self.listener.engine_stopped(self, self.stop_reason)

    # ---- death of a kernel

    def _died(self, exited: KernelExited, operation: Queued[Work], composer: Composer) -> DeliveryError:
        if self.is_stopping:
            return self._stopped_error()
        error = self._death(exited, operation)
        self._fail_waiting(error)  # it was queued for a namespace that is no more
        if operation.work.method == frame_pb2.METHOD_EXECUTE:
            raised = RaisedError(
                "enginery.errors", "KernelDied", ("enginery.errors.KernelDied",), error.text, repr(error.text)
            )
            reply = _lost_reply(exited, raised, operation.started_at)
            self.records.add(composer.number, composer.respond(reply))
            for _, stored in composer.blobs:
                stored.close()
        return error

    def _death(self, exited: KernelExited, operation: Queued[Work]) -> DeliveryError:
        return DeliveryError(
            "KERNEL_DIED",
            engine_id=self.engine_id,
            cause=exited.describe(),
            method=PYTHON_NAMES[operation.work.method],
            operation_id=_ids.show(operation.operation_id),
        )

    async def _recover(self) -> None:
        """Start another kernel, for as long as it takes; what is submitted meanwhile waits for it."""
        status = await self.kernel.exited
        self.last_failure = status.describe()
        logger.warning("the kernel of engine %d died: %s", self.engine_id, self.last_failure)
        attempt = 0
        while not self.is_stopping:
            try:
                await self._replace_kernel()
            except KernelExited as exited:
                logger.error("the kernel of engine %d does not start: %s", self.engine_id, exited)
                self._fail_waiting(DeliveryError("KERNEL_NOT_STARTING", engine_id=self.engine_id, cause=exited))
                attempt = min(attempt + 1, len(_RESTART_DELAYS) - 1)
                await self._pause(_RESTART_DELAYS[attempt])
            else:
                logger.info(
                    "engine %d has kernel %s, pid %d", self.engine_id, self.kernel.incarnation, self.kernel.pid
                )
                if self.listener is not None:
                    self.listener.kernel_changed(self, self.last_failure)
                return

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                while not self.is_stopping:
                    await self._wake.wait()
                    self._wake.clear()
        except TimeoutError:
            return

    # ---- small parts

    def _fail_waiting(self, error: DeliveryError) -> None:
        self._fail_all(self.queue.clear(), error)

    def _fail_all(self, operations: list[Queued[Work]], error: DeliveryError) -> int:
        for operation in operations:
            operation.work.close()
            self._recent.answer(operation.operation_id, error)
        return len(operations)

    def _cleared(self, cause: str) -> DeliveryError:
        return DeliveryError("QUEUE_CLEARED", engine_id=self.engine_id, cause=cause)

    def _stopped_error(self) -> DeliveryError:
        return DeliveryError("ENGINE_STOPPED", engine_id=self.engine_id, cause=self._stop_reason)

    def _note_progress(self, fraction: float, text: str) -> None:
        if self.queue.running is not None:
            self.queue.running.work.progress = (fraction, text[:1_000])

    def _log_output(self, stream: str, data: bytes) -> None:
        for line in data[:LARGE].decode("utf-8", "backslashreplace").splitlines():
            output_logger.info("engine %d %s: %s", self.engine_id, stream, line)


def _size(reply: Reply) -> int:
    return (
        len(reply.stdout)
        + len(reply.stderr)
        + sum(value.size for value in reply.values.values())
        + sum(len(form) for display in reply.displays for form in display.data.values())
    )


def _lost_reply(exited: KernelExited, raised: RaisedError, started_at: float) -> Reply:
    return Reply(
        failure=Failure((raised,), f"{raised.message}\n", "KERNEL_DIED"),
        stdout=exited.stdout,
        stderr=exited.stderr,
        started_at=started_at,
        duration=max(0.0, time.time() - started_at),
    )
