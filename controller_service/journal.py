"""The journal: what a controller must know again after it was killed, written behind what it does.

It keeps which engines are registered, so that a restarted controller waits for them, the results of finished
operations, so that they outlive their engine, and tasks that have not ended. Nothing waits for it: what is
added goes to disk in groups, by one thread. Whoever must know what is safe compares two counts: everything
that was added while `appended` was at most n is on disk once `committed` has reached n.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from controller_service.events import Kept
from controller_service.journal_records import Batch, EngineRow, KeptTask, NamedCall, Pending, Result
from controller_service.journal_store import Bounds, Store
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from controller_service.events import Registration

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_CALLED = 32_768
"""Named calls without a result that are remembered, the newest."""
MAX_PENDING = 64 << 20
"""Bytes of results that wait for the disk at most; what comes beyond that is kept by its host alone."""
_GROUP = 0.2  # seconds from the first record of a group to its commit: hosts keep the answers until then
_TIDYING = 60.0  # seconds between looks for results that are too old, if nothing is written
_FIRST_RETRY, _LONGEST_RETRY = 0.25, 1.0  # seconds between attempts to write while the disk refuses
_PATIENCE = 10.0  # seconds that a reader waits
_LAST_WRITE = 5.0  # seconds that what is not written yet gets at the end
_OVERHEAD = 512  # bytes that a result costs beside its answer
_OUTCOME = 3  # where it stands in what is pending


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of a journal: records over its life, sizes in bytes as they are now."""

    appended: int
    committed: int
    dropped: int
    pending_bytes: int
    kept_bytes: int
    is_broken: bool


class AnyJournal(Protocol):
    """What the controller needs of a journal."""

    @property
    def appended(self) -> int:
        """Records that were added so far."""

    @property
    def committed(self) -> int:
        """The first so many of them are safe, but for those that were dropped."""

    @property
    def dropped(self) -> int:
        """How many of them had no room while the disk refused, and are not kept."""

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
        """Keep how an operation ended; the first result of an id stays. Costs next to nothing, never raises.

        Of a task also in which attempt, and its label.
        """

    def note_call(self, operation_id: bytes, engine_id: int, epoch: int) -> int:
        """Keep, at once, that a call which its caller named goes to that engine, registered under that epoch.

        Returns the epoch under which the engine was registered the first time, maybe with another controller: a
        call that comes again means that one. An epoch of 0 keeps nothing. Forgotten with the result.
        """

    def calls_to(self, engine_id: int) -> list[bytes]:
        """Return the operations that `note_call` keeps for an engine: named ones without a result."""

    on_commit: Callable[[], None]
    """Called whenever something was written."""

    def put_task(self, task: KeptTask) -> None:
        """Keep a task as it is now."""

    def drop_task(self, task_id: bytes) -> None:
        """Keep a task no more; one that is unknown is ignored."""

    def is_task_written(self, task_id: bytes) -> bool:
        """Return whether the disk may have a task as it was before."""

    def hurry(self) -> None:
        """Write what was added without waiting for a group."""

    async def tasks(self) -> Sequence[KeptTask]:
        """Return the tasks that an earlier controller left, in the order in which they came."""

    def put_engine(self, engine: Registration, *, at_once: bool = True) -> None:
        """Keep who an engine is, and that it is registered; `at_once` does not wait for a group."""

    def drop_engine(self, engine: Registration, *, retired: bool) -> None:
        """Note that an engine is gone; its epoch is kept, and whether its id is given to nobody any more."""

    def forget(self, operation_ids: Collection[bytes]) -> None:
        """Remove results that nobody needs any more; unknown ones are ignored."""

    async def find(self, operation_id: bytes) -> Result | None:
        """Return how an operation ended, None if unknown; JOURNAL_UNAVAILABLE if it cannot be read."""

    async def page(
        self,
        limit: int,
        *,
        before: int = 0,
        engine_id: int | None = None,
        session_id: bytes = b"",
        outcomes: Collection[int] = (),
    ) -> Sequence[Result]:
        """Return up to `limit` results without their answers, the newest first.

        Only those whose `number` is below `before`, of that engine, session and outcome, each if given.
        JOURNAL_UNAVAILABLE if it cannot be read.
        """

    def statistics(self) -> Statistics:
        """Return counts."""

    async def close(self) -> None:
        """Write what waits, and end."""


@dataclass(slots=True)
class _Group:
    """What is being collected, and what is being written."""

    collecting: Batch = field(default_factory=Batch)
    writing: Batch = field(default_factory=Batch)

    def turn(self) -> Batch:
        """Begin to write what was collected."""
        self.writing, self.collecting = self.collecting, Batch()
        return self.writing

    def pending(self, operation_id: bytes) -> Pending | None:
        """Return the result of an operation that is not on disk yet; KeyError if it is to be forgotten."""
        found = self.writing.results.get(operation_id)
        if operation_id in self.collecting.forgotten or (
            found is None and operation_id in self.writing.forgotten
        ):
            return self.collecting.results[operation_id]
        return found or self.collecting.results.get(operation_id)


class Journal:
    """A journal in a directory of its own. `open` first; used from one event loop."""

    def __init__(
        self,
        path: Path,
        cluster_id: str,
        *,
        bounds: Bounds | None = None,
        power: bool = False,
        max_pending: int = MAX_PENDING,
    ) -> None:
        """Keep that of a cluster in `path`. With `power` it survives the loss of power too."""
        self.appended = 0
        self.committed = 0
        self.dropped = 0
        self._path = path
        self._store = Store(path, cluster_id, bounds or Bounds(), power=power)
        self._max_pending = max_pending
        self._group = _Group()
        self._called: dict[NamedCall, int] = {}
        self._written_tasks: set[bytes] = set()
        self.on_commit: Callable[[], None] = lambda: None
        self._reported_dropped = 0
        self._kept_bytes = 0
        self._broken: BaseException | None = None
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closing = asyncio.Event()
        # One thread for all: SQLite never waits for itself, and what is read comes after what was written.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._writer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show the place and the counts."""
        return f"Journal({str(self._path)!r}, {self.statistics()})"

    async def open(self) -> Kept:
        """Return what is kept of engines, and begin to write.

        A journal that is damaged is moved aside; one that cannot be opened now is tried again. Both are logged.
        """
        try:
            kept = await self._run(self._store.load)
            self._called = await self._run(self._store.called)
        except Exception as error:
            self._note_failure(error)
            kept = Kept()
        self._writer = asyncio.create_task(self._write_all())
        return kept

    def statistics(self) -> Statistics:
        """Return counts."""
        pending = self._group.collecting.size + self._group.writing.size
        return Statistics(
            self.appended, self.committed, self.dropped, pending, self._kept_bytes, self._broken is not None
        )

    # Adding: on the path of every reply

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
        """Keep how an operation ended; see AnyJournal."""
        self.appended += 1
        batch = self._group.collecting
        batch.count += 1
        if operation_id not in batch.results:
            size = len(response) + len(error) + _OVERHEAD
            if batch.size + self._group.writing.size + size > self._max_pending:
                self.dropped += 1
            else:
                batch.size += size
                batch.results[operation_id] = (
                    engine_id, method, session_id, outcome, time.time_ns() // 1_000_000, response, error,
                    attempts, label,
                )  # fmt: skip
                if self._called and self._called.pop((operation_id, engine_id), None) is not None:
                    batch.answered.append((operation_id, engine_id))
        if not self._wake.is_set():
            self._wake.set()

    def note_call(self, operation_id: bytes, engine_id: int, epoch: int) -> int:
        """Keep which engine a named call goes to; see AnyJournal."""
        call = operation_id, engine_id
        known = self._called.get(call)
        if known is not None or not epoch:
            return known or 0
        batch = self._group.collecting
        if len(batch.called) < MAX_CALLED:  # else the disk refuses
            self._called[call] = batch.called[call] = epoch
            if len(self._called) > MAX_CALLED:
                oldest = next(iter(self._called))
                del self._called[oldest]
                batch.answered.append(oldest)
            self._added(batch)
            self._hurry.set()
        return epoch

    def calls_to(self, engine_id: int) -> list[bytes]:
        """Return the named operations of an engine that have no result; see AnyJournal."""
        return [operation_id for operation_id, called in self._called if called == engine_id]

    def put_task(self, task: KeptTask) -> None:
        """Keep a task; see AnyJournal."""
        batch = self._group.collecting
        batch.tasks[task.task_id] = task
        self._added(batch)

    def drop_task(self, task_id: bytes) -> None:
        """Keep a task no more; see AnyJournal."""
        batch = self._group.collecting
        if task_id in self._written_tasks:
            self._written_tasks.discard(task_id)
            batch.tasks[task_id] = None
            self._added(batch)
        else:
            batch.tasks.pop(task_id, None)

    def is_task_written(self, task_id: bytes) -> bool:
        """Return whether the disk may have a task; see AnyJournal."""
        return task_id in self._written_tasks

    def hurry(self) -> None:
        """Write soon; see AnyJournal."""
        self._hurry.set()

    async def tasks(self) -> Sequence[KeptTask]:
        """Return the tasks that are left; see AnyJournal. None if they cannot be read, which is logged."""
        try:
            tasks = await self._run(self._store.tasks)
        except Exception as error:
            self._note_failure(error)
            return ()
        self._written_tasks.update(task.task_id for task in tasks)
        return tasks

    def put_engine(self, engine: Registration, *, at_once: bool = True) -> None:
        """Keep who an engine is; see AnyJournal."""
        self._add_engine(EngineRow.of(engine, time.monotonic()))
        if at_once:
            self._hurry.set()

    def drop_engine(self, engine: Registration, *, retired: bool) -> None:
        """Note that an engine is gone; see AnyJournal."""
        self._add_engine(EngineRow.gone(engine, retired=retired))

    def forget(self, operation_ids: Collection[bytes]) -> None:
        """Remove results; see AnyJournal."""
        batch = self._group.collecting
        for operation_id in operation_ids:
            batch.results.pop(operation_id, None)
        size = _OVERHEAD * len(operation_ids)
        if batch.size + self._group.writing.size + size > self._max_pending:
            return  # they stay until they are too old
        batch.size += size
        batch.forgotten.update(operation_ids)
        self._added(batch)

    def _add_engine(self, row: EngineRow) -> None:
        batch = self._group.collecting
        batch.engines[row.engine_id] = row
        self._added(batch)

    def _added(self, batch: Batch) -> None:
        self.appended += 1
        batch.count += 1
        self._wake.set()

    # Reading

    async def find(self, operation_id: bytes) -> Result | None:
        """Return how an operation ended; see AnyJournal."""
        try:
            pending = self._group.pending(operation_id)
        except KeyError:
            return None
        if pending is not None and pending[_OUTCOME] != frame_pb2.OUTCOME_LOST:
            return Result(operation_id, *pending)
        # A loss may be told behind a result that is on disk, and that one stays.
        written = await self._read(lambda: self._store.find(operation_id))
        return Result(operation_id, *pending) if written is None and pending is not None else written

    async def page(
        self,
        limit: int,
        *,
        before: int = 0,
        engine_id: int | None = None,
        session_id: bytes = b"",
        outcomes: Collection[int] = (),
    ) -> Sequence[Result]:
        """Return results, the newest first; see AnyJournal. What was added just now may be missing."""
        return await self._read(
            lambda: self._store.page(
                limit, before=before, engine_id=engine_id, session_id=session_id, outcomes=outcomes
            )
        )

    async def _read(self, query: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._run(query)
        except TimeoutError:
            raise DeliveryError("JOURNAL_UNAVAILABLE", cause=f"no answer within {_PATIENCE:g} s") from None
        except Exception as error:
            self._note_failure(error)
            raise DeliveryError("JOURNAL_UNAVAILABLE", cause=error) from error

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # Writing

    async def _write_all(self) -> None:
        """Write groups until the end. Only one is under way: while the disk is slow the next one grows."""
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TIDYING):
                    await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GROUP):
                    await self._hurry.wait()
            self._wake.clear()
            self._hurry.clear()
            await self._commit(self._turn())
        if self._wake.is_set():  # something was added while the last group was written
            await self._commit(self._turn())

    def _turn(self) -> Batch:
        batch = self._group.turn()
        self._written_tasks.update(task_id for task_id, task in batch.tasks.items() if task is not None)
        return batch

    async def _commit(self, batch: Batch) -> None:
        """Write one group; while that fails, try again until the end."""
        pause = _FIRST_RETRY
        while not await self._try_to_write(batch):
            if self._closing.is_set():
                logger.error("the journal ends, and %d records could not be written", batch.count)
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            pause = min(pause * 2, _LONGEST_RETRY)
        self.committed += batch.count
        self._group.writing = Batch()
        self.on_commit()

    async def _try_to_write(self, batch: Batch) -> bool:
        try:
            self._kept_bytes = await self._run(lambda: self._store.apply(batch))
        except Exception as error:  # whatever it is, the writer must not end
            self._note_failure(error)
            return False
        if self._broken is not None:
            logger.info("the journal in %s is written again", self._path)
            self._broken = None
        if self.dropped > self._reported_dropped:
            count = self.dropped - self._reported_dropped
            logger.warning(
                "the disk was too slow for the journal: %d results had no room; their hosts tell them again",
                count,
            )
            self._reported_dropped = self.dropped
        return True

    def _note_failure(self, error: BaseException) -> None:
        if self._broken is None:
            logger.error(
                "the journal in %s cannot be used (%s): calls go on, and it is tried again; "
                "make room, or mend the disk, or use --no-journal", self._path, error,
                exc_info=None if isinstance(error, sqlite3.Error | OSError) else error,
            )  # fmt: skip
        self._broken = error

    async def close(self) -> None:
        """Write what waits, within a few seconds, and close the files."""
        self._closing.set()
        self._wake.set()
        self._hurry.set()
        if self._writer is not None:
            try:
                await asyncio.wait_for(self._writer, _LAST_WRITE)
            except TimeoutError:
                logger.error("the journal in %s does not end: its disk hangs", self._path)
                self._thread.shutdown(wait=False, cancel_futures=True)
                return
        await self._run(self._store.close)
        self._thread.shutdown()
