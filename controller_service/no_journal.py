"""The journal of a controller that keeps none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller_service.journal import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from controller_service.events import Registration
    from controller_service.journal_records import KeptTask, Result


class NoJournal:
    """An AnyJournal to which everything counts as safe, and which finds nothing."""

    appended = 0
    committed = 0
    dropped = 0

    def __init__(self) -> None:
        """Keep nothing."""
        self.on_commit: Callable[[], None] = lambda: None

    def add_result(
        self,
        operation_id: bytes,
        engine_id: int,
        method: int,
        session_id: bytes,
        outcome: int,
        response: bytes,
        error: bytes,
        attempts: int = 0,
        label: str = "",
    ) -> None:
        """Keep nothing."""

    def note_call(self, operation_id: bytes, engine_id: int, epoch: int) -> int:
        """Keep nothing."""
        return epoch

    def calls_to(self, engine_id: int) -> list[bytes]:
        """Return nothing."""
        return []

    def put_task(self, task: KeptTask) -> None:
        """Keep nothing."""

    def drop_task(self, task_id: bytes) -> None:
        """There is nothing to drop."""

    def is_task_written(self, task_id: bytes) -> bool:
        """There is no disk."""
        return False

    def hurry(self) -> None:
        """There is nothing to write."""

    async def tasks(self) -> Sequence[KeptTask]:
        """Return nothing."""
        return ()

    def put_engine(self, engine: Registration, *, at_once: bool = True) -> None:
        """Keep nothing."""

    def drop_engine(self, engine: Registration, *, retired: bool) -> None:
        """Keep nothing."""

    def forget(self, operation_ids: Collection[bytes]) -> None:
        """There is nothing to forget."""

    async def find(self, operation_id: bytes) -> Result | None:
        """Find nothing."""
        return None

    async def page(
        self,
        limit: int,
        *,
        before: int = 0,
        engine_id: int | None = None,
        session_id: bytes = b"",
        outcomes: Collection[int] = (),
    ) -> Sequence[Result]:
        """Return nothing."""
        return ()

    def statistics(self) -> Statistics:
        """Return zeros."""
        return Statistics(0, 0, 0, 0, 0, is_broken=False)

    async def close(self) -> None:
        """Nothing is open."""
