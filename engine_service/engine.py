"""One engine: its kernel, its queue, and what outlives the kernel.

`Engine` is the local implementation of `EngineBase`: bytes in, bytes out. It runs on one event loop. Calls
that touch the namespace are operations: they are queued, and run in the kernel one at a time (`runner`).
Control calls (`control`, `operation_calls`) are answered at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from engine_service import chunks, control, follow, operation_calls
from engine_service.blobs import BlobStore
from engine_service.event_log import EventLog
from engine_service.keeper import KernelKeeper, StartKernel
from engine_service.kernel_process import KernelExited, KernelOptions, KernelProcess
from engine_service.known_functions import KnownFunctions
from engine_service.operation import QUEUED, SMALL_REQUEST, Answer, Done, Operation, StopCause
from engine_service.operations import Operations
from engine_service.queue import OperationQueue, QueueFullError
from engine_service.records import Records
from engine_service.requests import LARGE, ROWS, Row
from engine_service.responses import set_time_ns
from engine_service.runner import Runner
from enginery import _ids
from enginery._engine import DEFAULT_VALUE_LIMIT, CallContext, CallReply
from enginery._methods import NAMES, PYTHON_NAMES, STREAMING
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

    from engine_service.known_functions import KnownFunction
    from enginery._encoded import Buffer, Encoded

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Limits of one engine, sizes in bytes, and how its kernels start."""

    kernel: KernelOptions = field(default_factory=KernelOptions)
    queue_calls: int = 10_000
    queue_bytes: int = 256 << 20
    value_limit: int = DEFAULT_VALUE_LIMIT
    store_limit: int | None = None
    """Sum of all blobs; None means twice `value_limit`."""
    output_limit: int = 64 << 20
    """Output and displays that are kept of one operation."""
    memory_limit: int | None = None
    """Resident memory at which the kernel is killed; None means no limit."""


class EngineListener(Protocol):
    """Who is told of an engine's changes, before the reply of the call that made them."""

    def properties_changed(self, engine: Engine) -> None:
        """Its properties are others now."""

    def kernel_changed(self, engine: Engine, reason: str) -> None:
        """It has a new kernel; `reason` says how the old one ended."""

    def operation_ended(self, engine: Engine, operation: Operation) -> None:
        """An operation has ended, and those who waited for it have its answer."""

    def engine_stopped(self, engine: Engine, reason: str) -> None:
        """It is gone for good."""


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
        self.epoch = 0
        """Its registration; 0 while it has none."""
        self.listener: EngineListener | None = None
        self.queue = OperationQueue(self.options.queue_calls, self.options.queue_bytes)
        self.operations = Operations()
        self.records = Records()
        self.blobs = BlobStore(value_limit=self.options.value_limit, store_limit=self.options.store_limit)
        self.properties: dict[str, Encoded] = {}
        self.actions = control.Actions()
        self._functions = KnownFunctions()
        self.reading = asyncio.Lock()
        """Held by the one of those that are attached whose next message is made."""
        self._engine_id = self.options.kernel.engine_id
        self._runner = Runner(self)
        self.keeper = KernelKeeper(
            self.options.kernel,
            self,
            self._runner,
            start_kernel=start_kernel,
            memory_limit=self.options.memory_limit,
        )
        self._drain_reason = ""
        self._stop_reason: str | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

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
        return self.keeper.kernel

    @property
    def last_failure(self) -> str:
        """How its last kernel died, empty if none did."""
        return self.keeper.last_failure

    @property
    def is_draining(self) -> bool:
        """Whether it was told to stop: it takes no more."""
        return bool(self._drain_reason) or self.is_stopping

    @property
    def is_stopping(self) -> bool:
        """Whether it stops now, whatever runs."""
        return self._stop_reason is not None

    @property
    def stop_reason(self) -> str:
        """Why it stops or drains, empty while it does not."""
        return self._stop_reason or self._drain_reason

    def set_id(self, engine_id: int, *, registered: bool, epoch: int = 0) -> None:
        """Take the id that was assigned, and the registration; user code sees it with the next operation."""
        self._engine_id = engine_id
        self.epoch = epoch
        self.blobs.engine_id = engine_id
        self.registered = registered

    def change_properties(self, properties: dict[str, Encoded]) -> None:
        """Take the properties that the kernel has now, and tell of them."""
        self.properties = properties
        if self.listener is not None:
            self.listener.properties_changed(self)

    def status(self) -> engine_pb2.EngineStatus:
        """Return how it is, as a heartbeat says it."""
        self.operations.expire(time.time_ns())
        status = engine_pb2.EngineStatus(
            engine_id=self.engine_id,
            queued_count=len(self.queue) + len(self.queue.ahead),
            resident_bytes=self.kernel.resident_bytes(),
            last_failure=self.last_failure,
            draining=self.is_draining,
        )
        running = self.queue.running
        if running is not None:
            status.operation_id = _ids.show(running.operation_id)
            status.method = PYTHON_NAMES[running.method]
            set_time_ns(status.start_time, running.started_at)
        return status

    def statistics(self) -> dict[str, int]:
        """Return counts and sizes of what it holds."""
        return {
            "queued": len(self.queue),
            "records": len(self.records),
            "blobs": len(self.blobs),
            "blob_bytes": self.blobs.size,
            **self.operations.statistics(),
        }

    # ---- life

    async def start(self) -> None:
        """Start the kernel and wait until it is ready; KernelExited if it does not come up."""
        await self.keeper.start()
        self._task = asyncio.create_task(self._live(), name=f"engine in slot {self.slot}")

    def drain(self, reason: str, grace: float) -> None:
        """Begin to stop: it takes no more, fails what waits, and gives what runs `grace` seconds to finish."""
        if self.is_draining:
            return
        self._drain_reason = reason
        error = self.stopped_error(has_run=False)
        self.fail_all(self.queue.clear(), error)
        self._runner.withdraw_all(error)
        if self.queue.running is None:
            self.stop(reason)
        else:
            self._drain_timer = asyncio.get_running_loop().call_later(grace, self.stop, reason)

    def stop(self, reason: str) -> None:
        """Begin to stop for good: what waits and what runs fails with ENGINE_STOPPED. See `wait_stopped`."""
        if self.is_stopping:
            return
        self._stop_reason = reason
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        error = self.stopped_error(has_run=False)
        self.fail_all(self.queue.clear(), error)
        self._runner.withdraw_all(error)
        if self.queue.running is not None:
            self.kernel.kill()
        self.keeper.stop()

    async def wait_stopped(self) -> None:
        """Wait until it has stopped and its kernel is gone."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _live(self) -> None:
        try:
            await self.keeper.run()
        except Exception:
            logger.exception("defect in %r, which stops", self)
            self.stop("a defect of its host")
        await self.keeper.close()
        await self._runner.wait_aside()
        self.blobs.close()
        if self.listener is not None:
            self.listener.engine_stopped(self, self.stop_reason)

    def kernel_started(self) -> None:
        """Take over from a kernel that is ready, and let it run what waits."""
        self.properties = dict(self.kernel.properties)
        if self.kernel.rank >= 0 and not self.registered:
            self.set_id(self.kernel.rank, registered=False)
        if self.listener is not None and self.last_failure:
            self.listener.kernel_changed(self, self.last_failure)
        self._runner.begin_next()

    def kernel_lost(self) -> None:
        """Leave: nothing can take the place of a process of an MPI job."""
        self.stop(f"its process of the MPI job ended: {self.last_failure}")

    def kernel_not_starting(self, cause: KernelExited | OSError) -> None:
        """Fail what waits: nobody knows for how long it would have to."""
        error = DeliveryError("KERNEL_NOT_STARTING", engine_id=self.engine_id, cause=cause)
        self.fail_all(self.queue.clear(), error)

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
                future.set_exception(answer.again())

        self.submit(method, request, context, done)
        try:
            return await future
        except asyncio.CancelledError:
            self.operations.desert(context.operation_id, done)
            raise

    def submit(self, method: int, request: bytes, context: CallContext, done: Done) -> None:
        """Call a unary method; `done` gets the answer, at once if it is ready. Needs no task: the fast way.

        An operation id that was seen before gets the answer of the first call, and nothing runs twice.
        """
        try:
            row = ROWS.get(method)
            if row is not None:
                self._operate(method, row, request, context, done)
            elif method in control.READS:
                done(control.READS[method](self, request, context))
            elif method in control.ACTIONS:
                done(self.actions.once(self, method, request, context))
            elif method in operation_calls.CALLS:
                operation_calls.CALLS[method](self, request, context, done)
            else:
                streaming = " in a call frame" if method in STREAMING else ""
                raise DeliveryError("UNKNOWN_METHOD", method=f"{NAMES.get(method, method)}{streaming}")
        except DeliveryError as error:
            done(error)

    def _operate(self, method: int, row: Row, request: bytes, context: CallContext, done: Done) -> None:
        if context.known:
            operation = self.operations.join(context.operation_id, known=True)
            assert operation is not None
        else:
            operation = self.enter(method, row, parse(row.request, request), request, context)
        if operation.answer is not None:
            done(operation.answer)
        else:
            operation.waiting.append(done)
        self.begin_next()

    def enter(self, method: int, row: Row, message: Any, request: bytes, context: CallContext) -> Operation:
        """Return the operation that a call names; a new one is queued, to be begun by `begin_next`."""
        operation = self.operations.join(context.operation_id, known=False, is_task=context.is_task)
        if operation is not None:
            if not operation.is_same(method, message, request, context.function):
                raise DeliveryError("OPERATION_EXISTS", operation_id=_ids.show(context.operation_id))
            return operation
        if self.is_draining:
            raise self.stopped_error(has_run=False)
        if method == frame_pb2.METHOD_RESET:
            self.clear_queue("the engine was reset")
        now = time.time_ns()
        size = len(request)
        function: KnownFunction | None = None
        if context.function is not None and method == frame_pb2.METHOD_APPLY:
            function = self._functions.find(context.function)
            size += len(context.function.pickle)
        try:
            self.queue.admit(context.operation_id, context.session_id, size, time.monotonic())
        except QueueFullError as full:
            raise DeliveryError(
                "QUEUE_FULL", engine_id=self.engine_id, size=full.size, option=full.option
            ) from full
        operation = Operation(
            context.operation_id,
            context.session_id,
            method,
            row,
            message,
            context,
            size,
            hash(request),
            request if len(request) <= SMALL_REQUEST else None,
            EventLog(self.options.output_limit),
            self.operations.submission_time(now),
            function,
        )
        try:
            for blob in row.blobs(message):
                operation.blobs[blob.blob_id] = self.blobs.take(blob.blob_id, now / 1e9)
            if len(request) <= LARGE:
                operation.translate()
        except DeliveryError:
            operation.close()
            raise
        self.operations.add(operation)
        self.queue.submit(operation)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("accepted: %s", PYTHON_NAMES[method], extra=self._runner.about(operation))
        return operation

    def begin_next(self) -> None:
        """Hand the next operations to the kernel, as far as it takes them now."""
        self._runner.begin_next()

    def idle(self) -> None:
        """An operation has finished: run the next, or stop if that is what it was told and was the last."""
        if not self.is_draining:
            self._runner.begin_next()
        elif self.queue.running is None:
            self.stop(self._drain_reason)

    def end(self, operation: Operation, answer: Answer) -> None:
        """Give an operation its answer, and everybody who waits for it."""
        if isinstance(answer, DeliveryError):
            answer.forget_frames()
        waiting = operation.end(answer, time.time_ns())
        self.operations.ended(operation)
        if logger.isEnabledFor(logging.DEBUG):
            name = operation_pb2.OperationState.Name(operation.state).removeprefix("OPERATION_STATE_").lower()
            logger.debug("ended: %s", name, extra=self._runner.about(operation))
        for done in waiting:
            try:
                done(answer)
            except Exception:  # a defect of the host: nobody else must wait for ever for it
                logger.exception("defect in what hears of an answer", extra=self._runner.about(operation))
        if self.listener is not None and not operation.is_unbegun_task:
            self.listener.operation_ended(self, operation)

    def fail_all(self, operations: Iterable[Operation], error: DeliveryError) -> None:
        """End operations that were taken out of the queue."""
        for operation in operations:
            self.end(operation, error)

    def clear_queue(self, cause: str) -> int:
        """Fail all that wait with QUEUE_CLEARED and return how many they were."""
        error = self.cleared_error(cause)
        ahead = self._runner.withdraw_all(error)
        cleared = self.queue.clear()
        self.fail_all(cleared, error)
        return ahead + len(cleared)

    def interrupt(self, operation_id: bytes) -> bytes:
        """Interrupt that operation, or whichever runs if empty; return its id, empty if it does not run."""
        return self._runner.interrupt(operation_id)

    def cancel(
        self, operation: Operation, grace: float | None = None, interrupt_only: bool | None = None
    ) -> None:
        """Take an operation out of the queue, or begin to stop it if it runs; by default as its call said."""
        context = operation.context
        grace = context.grace if grace is None else grace
        interrupt_only = context.interrupt_only if interrupt_only is None else interrupt_only
        if operation.state != QUEUED:
            self._runner.stop(operation, StopCause.CANCEL, grace, interrupt_only=interrupt_only)
            return
        error = DeliveryError(
            "OPERATION_CANCELLED",
            engine_id=self.engine_id,
            operation_id=_ids.show(operation.operation_id),
            namespace="kept",
            cause="it was taken out of the queue",
        )
        if self.queue.remove(operation):
            self.end(operation, error)
        else:
            self._runner.withdraw(operation, error, (StopCause.CANCEL, grace, interrupt_only))

    def recall(self, operation_ids: Iterable[bytes]) -> None:
        """Give back tasks that have not begun: they end with QUEUE_CLEARED, and are placed elsewhere."""
        error = self.cleared_error("another engine is free")
        for operation_id in operation_ids:
            operation = self.operations.get(operation_id)
            if operation is None or not operation.context.is_task or operation.state != QUEUED:
                continue
            if self.queue.remove(operation):
                self.end(operation, error)
            else:
                self._runner.withdraw(operation, error)

    # ---- streams

    async def upload(self, requests: AsyncIterator[Buffer], others: Sequence[Engine] = ()) -> bytes:
        """Take in a blob from the messages of an Upload, for other engines too; returns its response."""
        return await chunks.upload(self.blobs, requests, [other.blobs for other in others])

    def download(self, request: bytes) -> AsyncGenerator[bytes]:
        """Return the messages of a Download; close it if it is not read to its end."""
        return chunks.download(self.blobs, request)

    def attach(self, request: bytes) -> AsyncGenerator[bytes]:
        """Return the messages of an Attach; close it if it is not read to its end."""
        return follow.attach(self, request)

    # ---- what the controller has

    def inventory(self) -> list[bytes]:
        """Return ids of operations that have not ended or whose answers are not settled; see Hello."""
        return self.operations.inventory()

    def unsettled(self) -> list[Operation]:
        """Return operations that have ended and whose answers nobody has taken for good, the oldest first."""
        return self.operations.unsettled()

    def settle(self, operation_ids: Iterable[bytes]) -> None:
        """The controller has taken the answers of these for good. Ids that are not known are ignored."""
        settled = self.operations.settle(operation_ids)
        if logger.isEnabledFor(logging.DEBUG):
            for operation in settled:
                logger.debug("journaled", extra=self._runner.about(operation))
        self.operations.expire(time.time_ns())

    # ---- errors

    def cleared_error(self, cause: str) -> DeliveryError:
        """Return the error of what was taken out of the queue."""
        return DeliveryError("QUEUE_CLEARED", engine_id=self.engine_id, cause=cause)

    def stopped_error(self, *, has_run: bool = True) -> DeliveryError:
        """Return the error of what it does not run any more, and may have."""
        metadata = {} if has_run else {"has_run": "false"}
        return DeliveryError("ENGINE_STOPPED", engine_id=self.engine_id, cause=self.stop_reason, **metadata)
