"""Top-level `await`: one event loop a kernel, made when it is first needed, running only during operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from engine_service.kernel.interrupts import Interrupts


class Awaiting:
    """Runs coroutines; asyncio is imported with the first."""

    def __init__(self, interrupts: Interrupts) -> None:
        """Begin without a loop."""
        self._interrupts = interrupts
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[object, object, object]) -> object:
        """Return what `coroutine` returns. An interrupt cancels it, and is KeyboardInterrupt if it complies."""
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(coroutine)
        self._interrupts.task = task
        try:
            return self._loop.run_until_complete(task)
        except asyncio.CancelledError as error:
            if self._interrupts.task_cancelled:  # it shows where it struck
                raise KeyboardInterrupt().with_traceback(error.__traceback__) from None
            raise
        finally:
            self._interrupts.task = None
            if not task.done():  # the second interrupt struck between its steps
                task.cancel()
            elif not task.cancelled():
                task.exception()  # seen: else asyncio complains when the task is collected

    @property
    def was_interrupted(self) -> bool:
        """Whether the coroutine that ran last was cancelled by an interrupt."""
        return self._interrupts.task_cancelled

    def close(self) -> None:
        """Drop the loop and whatever still waits in it."""
        if self._loop is None or self._loop.is_closed():
            return
        import asyncio

        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
