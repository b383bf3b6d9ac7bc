"""Cancelling operations of a client: calls that were not sent are taken back, others stopped where they run."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from enginery import _calls, _loop
from enginery._reasons import DeliveryError
from enginery.errors import EngineError, EngineryError, OperationNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery._link import Link
    from enginery.operation import Operation

logger = logging.getLogger("enginery")


class Cancelling:
    """Cancels operations of one link."""

    def __init__(self, link: Link) -> None:
        """Use the session of a link."""
        self._link = link
        self._session = link.session

    async def stop(
        self, operations: Sequence[Operation[Any]], grace: float | None, interrupt_only: bool | None
    ) -> list[bool]:
        """Cancel operations; return for each whether it stops, or will not run at all."""
        asked: list[Operation[bool] | None] = []
        self._link.wake()
        for operation in operations:
            operation.is_stopping = True
            asked.append(None if self._withdraw(operation) else self._cancel(operation, grace, interrupt_only))
        self._link.wake()
        return [
            answer is None or await self._is_stopped(operation, answer)
            for operation, answer in zip(operations, asked, strict=True)
        ]

    def stop_soon(self, operations: Sequence[Operation[Any]], interrupt_only: bool | None = None) -> None:
        """Cancel operations without waiting for what comes of it. From any thread, also while one dies."""

        async def stop() -> None:
            try:
                await self.stop(operations, None, interrupt_only)
            except (DeliveryError, EngineryError) as error:
                logger.info("%d operations were not cancelled: %s", len(operations), error)

        if not _loop.is_forked() and not self._link.thread.loop.is_closed():
            self._link.thread.loop.call_soon_threadsafe(lambda: self._link.start_task(stop()))

    def _cancel(
        self, operation: Operation[Any], grace: float | None, interrupt_only: bool | None
    ) -> Operation[bool]:
        """Send a Cancel behind the call that it is about."""
        request = _calls.cancel(operation.operation_id, grace, interrupt_only)
        entry = self._session.entry(request, operation.target, "raise", time.monotonic())
        self._session.submit([entry], may_wait=False, is_urgent=True)
        cancel: Operation[bool] = entry.operation
        return cancel

    def _withdraw(self, operation: Operation[Any], *, arrived: bool = True) -> bool:
        starting = self._session.withdraw(operation, arrived=arrived)
        self._link.uploading.start(starting or [])
        return starting is not None

    async def _is_stopped(self, operation: Operation[Any], answer: Operation[bool]) -> bool:
        try:
            return await answer
        except OperationNotFound:  # its call was refused, or lost with a connection
            return self._withdraw(operation, arrived=False) or operation.is_cancelled
        except EngineError:  # the engine has gone, and the operation with it
            return False
