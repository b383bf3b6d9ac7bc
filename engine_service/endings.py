"""How operations end that their kernel did not answer, and what people read of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine_service.kernel_messages import Failure, Reply
from enginery import _ids
from enginery._methods import PYTHON_NAMES
from enginery._reasons import TABLE, DeliveryError
from enginery.errors import RaisedError

if TYPE_CHECKING:
    from engine_service.engine import Engine
    from engine_service.kernel_exit import KernelExited
    from engine_service.operation import Operation


def died(engine: Engine, exited: KernelExited, operation: Operation) -> DeliveryError:
    """Return how the running operation ends, as its kernel has; what waited for that kernel ends too."""
    if engine.is_stopping:
        return engine.stopped_error(has_run=exited.has_begun)
    error = fail_queued(engine, operation, exited.describe())
    if not exited.has_begun and operation.stop_cause is None:
        return _not_run(error)
    return _death(engine, operation) or error


def fail_queued(engine: Engine, operation: Operation, cause: str) -> DeliveryError:
    """End what was queued for a namespace that is no more, and return the error."""
    error = DeliveryError(
        "KERNEL_DIED",
        engine_id=engine.engine_id,
        cause=cause,
        method=PYTHON_NAMES[operation.method],
        operation_id=_ids.show(operation.operation_id),
        after=_after(engine),
    )
    engine.fail_all(engine.queue.clear(all_incarnations=False), _not_run(error))
    return error


def not_begun(engine: Engine, operation: Operation) -> DeliveryError:
    """Return how an operation ends that was stopped before it had begun."""
    return _stopped(engine, operation, "kept", "it was stopped before it had begun")


def last_reply(death: DeliveryError, operation: Operation) -> Reply:
    """Return what stands in the records for a reply of a kernel that has ended."""
    name = TABLE[death.reason].exception.__name__
    raised = RaisedError("enginery.errors", name, (f"enginery.errors.{name}",), death.text, repr(death.text))
    started_at = operation.started_at / 1e9
    return Reply(
        failure=Failure((raised,), f"{death.text}\n", "KERNEL_DIED"),
        started_at=started_at,
        duration=max(0.0, time.time() - started_at),
    )


def _death(engine: Engine, operation: Operation) -> DeliveryError | None:
    """Return why the host killed the kernel, None if it did not."""
    if engine.keeper.memory_exceeded:
        return DeliveryError(
            "MEMORY_LIMIT_EXCEEDED",
            engine_id=engine.engine_id,
            size=engine.keeper.memory_exceeded,
            limit=engine.options.memory_limit,
            method=PYTHON_NAMES[operation.method],
            operation_id=_ids.show(operation.operation_id),
            after=_after(engine),
        )
    if operation.stop_cause is not None and engine.keeper.kill_cause:
        cause = f"it did not stop when it was interrupted, so its kernel was killed; {_after(engine)}"
        return _stopped(engine, operation, "lost", cause)
    return None


def _after(engine: Engine) -> str:
    """Return what follows the end of its kernel."""
    return "the engine ends" if engine.options.kernel.mpi else "the engine starts anew"


def _stopped(engine: Engine, operation: Operation, namespace: str, cause: str) -> DeliveryError:
    assert operation.stop_cause is not None
    return DeliveryError(
        f"OPERATION_{operation.stop_cause.category}",
        engine_id=engine.engine_id,
        operation_id=_ids.show(operation.operation_id),
        namespace=namespace,
        timeout=f"{operation.context.timeout or 0:g}",
        cause=cause,
    )


def _not_run(error: DeliveryError) -> DeliveryError:
    return DeliveryError(error.reason, **error.metadata, has_run="false")
