"""The journal's files: an SQLite database, and one file for each large answer. For the journal's thread alone.

    journal.db      results, engines, and tasks that have not ended
    answers/        answers over 64 KiB, each named by its operation

The file of a large answer is written before the row that speaks of it, and removed after it. Files without a
row are removed when the journal is opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
import sqlite3
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from controller_service import file_system, journal_rows
from controller_service.journal_records import kept
from controller_service.journal_schema import ATTEMPTS, SCHEMA, TASKS, VERSION
from enginery._files import make_private_directory, read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from controller_service.events import Kept
    from controller_service.journal_records import Batch, EngineRow, KeptTask, NamedCall, Result

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_AGE = 24 * 3600.0
DEFAULT_LIMIT = 1 << 30
LARGE = 64 << 10
"""Bytes above which an answer is a file."""
_OVERHEAD = 256  # bytes that a result costs on disk beside its answer
_WAL_BYTES = 16 << 20  # to which the write-ahead log shrinks again after a burst
_CACHE_KIB = 8 << 10
_LOCK_PATIENCE = 2.0  # seconds: nobody else writes, but somebody may look with sqlite3 at the command line
_HIGHEST = (1 << 63) - 1
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_STRANGE = re.compile("no such (table|column)|unsupported file format")  # with the code of all kinds of defects

_INSERT = "INSERT OR IGNORE INTO results VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PUT_TASK = """
INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task_id) DO UPDATE
SET attempts = excluded.attempts, engine_id = excluded.engine_id, epoch = excluded.epoch,
    rejected_by = excluded.rejected_by
"""
_FIND = """
SELECT operation_id, engine_id, method, session_id, outcome, ended_ms, attempts, label, number, is_file,
    is_error, size, answer
FROM results WHERE operation_id = ?
"""
_PAGE = """
SELECT operation_id, engine_id, method, session_id, outcome, ended_ms, attempts, label, number FROM results
WHERE number < :before AND (:engine_id IS NULL OR engine_id = :engine_id)
    AND (:session_id = x'' OR session_id = :session_id) AND (1 << outcome) & :outcomes
ORDER BY number DESC LIMIT :limit
"""
_ENGINES = "SELECT engine_id, epoch, retired, hello, ip, port, registered_ms, is_first, lease_used FROM engines"


@dataclass(frozen=True, slots=True)
class Bounds:
    """For how long, in seconds, and for how many bytes results are kept."""

    age: float = DEFAULT_AGE
    size: int = DEFAULT_LIMIT


class _Clock:
    """Wall time that no jump moves while the process lives: a clock that is set must not make results old."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now_ms(self) -> int:
        return int((self._offset + time.monotonic()) * 1000)


class Store:
    """The files of one journal. Opens them when they are needed, and anew after an error."""

    def __init__(
        self,
        path: Path,
        cluster_id: str,
        bounds: Bounds,
        *,
        power: bool,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        """Take the directory; touches nothing yet. `free_bytes` says how much its disk can still take."""
        self._path = path
        self._cluster_id = cluster_id
        self._answers = path / "answers"
        self._bounds = bounds
        self._power = power
        self._free_bytes = free_bytes
        self._clock = _Clock()
        self._database: sqlite3.Connection | None = None
        self._engines: dict[int, EngineRow] = {}
        self._knows_engines = False  # the database says the same as `_engines`
        self._is_new = False  # the database was made by this controller

    def load(self) -> Kept:
        """Open the journal and return what is kept of engines. A damaged one is moved aside."""
        try:
            return self._load_engines()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as caught:
            error = _of_sqlite(caught)
            self._close_after(error)
            if not _is_damage(error):
                raise
            self._engines.clear()
            return self._load_engines()

    def apply(self, batch: Batch) -> int:
        """Write a batch whole or not at all, make room, and return how many bytes of results are kept then.

        Raises sqlite3.Error and OSError; a journal that proves to be damaged was moved aside when it does.
        """
        self._engines.update(batch.engines)
        try:
            database = self._open()
            rows, files = self._prepare(database, batch)
            database.execute("BEGIN IMMEDIATE")
            gone = self._delete(database, batch.forgotten) - files
            database.executemany(_INSERT, rows)
            gone |= self._make_room(database, batch.size)
            self._write_engines(database, batch.engines)
            self._write_calls(database, batch)
            self._write_tasks(database, batch)
            kept_bytes = _kept_bytes(database)
            database.execute("COMMIT")
        except (sqlite3.Error, UnicodeDecodeError) as caught:
            error = _of_sqlite(caught)
            self._close_after(error)
            raise error from None
        self._knows_engines = True
        for operation_id in gone:
            with contextlib.suppress(OSError):  # it is removed when the journal is opened the next time
                self._answer(operation_id).unlink()
        return kept_bytes

    def called(self) -> dict[NamedCall, int]:
        """Return the named calls without a result that are not too old, with the epochs of their engines."""
        oldest = self._clock.now_ms() - self._bounds.age * 1000
        self._query("DELETE FROM calls WHERE kept_ms < ?", (oldest,))
        rows = self._query("SELECT operation_id, engine_id, epoch FROM calls ORDER BY kept_ms", ())
        return dict(_sound(rows, journal_rows.named_call, "a call"))

    def tasks(self) -> list[KeptTask]:
        """Return the tasks that have not ended, in the order in which they came."""
        return _sound(self._query("SELECT * FROM tasks ORDER BY arrival", ()), journal_rows.task, "a task")

    def find(self, operation_id: bytes) -> Result | None:
        """Return the result of an operation."""
        rows = self._query(_FIND, (operation_id,))
        if not rows:
            return None
        *shown, is_file, is_error, size, answer = rows[0]
        if is_file:
            try:
                answer = read_private(self._answer(operation_id))
            except FileNotFoundError:
                logger.error("the answer of operation %s is not in the journal any more", operation_id.hex())
                return None
            if len(answer) + _OVERHEAD != size:
                logger.error("the answer of operation %s is damaged in the journal", operation_id.hex())
                return None
        answers = (b"", answer) if is_error else (answer, b"")
        found = _sound([shown], lambda row: journal_rows.result(row, *answers), "a result")
        return found[0] if found else None

    def page(
        self,
        limit: int,
        *,
        before: int,
        engine_id: int | None,
        session_id: bytes,
        outcomes: Collection[int],
    ) -> list[Result]:
        """Return results without their answers, the newest first."""
        values = {
            "before": before or _HIGHEST,
            "engine_id": engine_id,
            "session_id": session_id,
            "outcomes": sum(1 << outcome for outcome in set(outcomes)) or -1,
            "limit": limit,
        }
        return _sound(self._query(_PAGE, values), journal_rows.result, "a result")

    def close(self) -> None:
        """Close the files."""
        if self._database is not None:
            self._database.close()
            self._database = None

    # Opening, and what to do with a journal that is damaged

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            make_private_directory(self._path)
            make_private_directory(self._answers)
            file = self._path / "journal.db"
            self._is_new = self._is_new or not file.exists()
            os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # SQLite would ask the umask
            self._database = sqlite3.connect(file, timeout=_LOCK_PATIENCE, isolation_level=None)
            self._configure(self._database)
        return self._database

    def _configure(self, database: sqlite3.Connection) -> None:
        network = file_system.network_file_system(self._path)
        if network:
            logger.warning(
                "the journal in %s is on a network file system (%s): it is slower", self._path, network
            )
            # A write-ahead log needs memory that processes share, which only a local file system has.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = TRUNCATE")
        else:
            database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {'FULL' if self._power else 'NORMAL'}")
        database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # One text that is none would keep all rows beside it from being read.
        database.text_factory = partial(str, encoding="utf-8", errors="replace")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and (not self._is_new or any(self._answers.iterdir())):
            raise _UnusableError("it is empty")
        if version == 0:
            database.executescript(f"BEGIN; {SCHEMA} {TASKS} {ATTEMPTS} COMMIT;")
            database.execute("INSERT INTO meta VALUES ('cluster_id', ?)", (self._cluster_id,))
            version = VERSION
        if version in (5, 6):
            missing = ATTEMPTS if version == 6 else TASKS + ATTEMPTS
            database.executescript(f"BEGIN; {missing} COMMIT;")
            version = VERSION
        if version != VERSION:
            raise _UnusableError(f"it has format {version}, and this Enginery knows {VERSION}")
        cluster_id = _meta(database, "cluster_id")
        if cluster_id != self._cluster_id:
            raise _UnusableError(f"it is of another cluster, {cluster_id}")

    def _close_after(self, error: sqlite3.Error) -> None:
        """Close the files after an error, so that they are opened anew; move them aside if they are damaged."""
        with contextlib.suppress(sqlite3.Error):  # what is to be said about it was said by the first
            self.close()
        self._database = None
        if _is_damage(error):
            aside = self._path.with_name(f"{self._path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            self._path.rename(aside)
            self._knows_engines = False
            consequence = "results of before are not found any more"
            logger.error(
                "the journal %s cannot be used (%s), moved to %s: %s", self._path, error, aside, consequence
            )

    def _query(self, query: str, values: tuple[object, ...] | Mapping[str, object]) -> list[tuple[Any, ...]]:
        try:
            return self._open().execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as caught:
            error = _of_sqlite(caught)
            self._close_after(error)
            if not _is_damage(error):
                raise
            return []

    # Engines

    def _load_engines(self) -> Kept:
        database = self._open()
        rows = database.execute(_ENGINES).fetchall()
        try:
            self._engines |= {row.engine_id: row for row in map(journal_rows.engine, rows)}
            found = kept(self._engines.values())
        except Exception as error:  # SQLite has no checksums: a row may hold anything
            raise _UnusableError(f"what it says of engines is damaged: {error}") from error
        self._knows_engines = True
        self._sweep(database)
        self._check_sum(database)
        return found

    def _write_engines(self, database: sqlite3.Connection, changed: Collection[int]) -> None:
        if not self._knows_engines:
            database.execute(
                "UPDATE engines SET hello = x''"
            )  # nobody is there of whom this controller does not know
            changed = self._engines
        rows = (self._engines[engine_id] for engine_id in changed)
        database.executemany(
            "INSERT OR REPLACE INTO engines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(dataclasses.astuple, rows)
        )

    def _write_calls(self, database: sqlite3.Connection, batch: Batch) -> None:
        if batch.called:
            now = self._clock.now_ms()
            rows = [(*call, epoch, now) for call, epoch in batch.called.items()]
            database.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?)", rows)
        database.executemany("DELETE FROM calls WHERE operation_id = ? AND engine_id = ?", batch.answered)

    def _write_tasks(self, database: sqlite3.Connection, batch: Batch) -> None:
        tasks = batch.tasks.items()
        rows = (
            (
                task_id,
                one.frame(),
                one.submitted_ns,
                one.arrival,
                one.attempts,
                one.engine_id,
                one.epoch,
                ",".join(map(str, sorted(one.excluded))),
            )
            for task_id, one in tasks
            if one is not None
        )
        database.executemany(_PUT_TASK, rows)
        ended = ((task_id,) for task_id, one in tasks if one is None)
        database.executemany("DELETE FROM tasks WHERE task_id = ?", ended)

    # Results

    def _prepare(
        self, database: sqlite3.Connection, batch: Batch
    ) -> tuple[list[tuple[object, ...]], set[bytes]]:
        """Return the rows of a batch, and the operations whose answers are files, which are written by now."""
        rows: list[tuple[object, ...]] = []
        files = set()
        now = self._clock.now_ms()
        for operation_id, (
            engine_id,
            method,
            session_id,
            outcome,
            ended_ms,
            response,
            error,
            attempts,
            label,
        ) in batch.results.items():
            answer = error or response
            is_file = len(answer) > LARGE
            if is_file:
                if operation_id not in batch.forgotten and _knows(database, operation_id):
                    continue  # the first result stays, and so does its file
                self._write_answer(operation_id, answer)
                files.add(operation_id)
            rows.append(
                (operation_id, engine_id, method, session_id, outcome, ended_ms, now, len(answer) + _OVERHEAD,
                 is_file, bool(error), b"" if is_file else answer, attempts, label)
            )  # fmt: skip
        return rows, files

    def _write_answer(self, operation_id: bytes, answer: bytes) -> None:
        path = self._answer(operation_id)
        write_private(path, answer)
        if self._power:
            for place in (path, self._answers):
                _sync(place)

    def _answer(self, operation_id: bytes) -> Path:
        return self._answers / operation_id.hex()

    def _delete(self, database: sqlite3.Connection, operation_ids: Collection[bytes]) -> set[bytes]:
        """Remove results, and return those whose answers are files."""
        files = {
            operation_id
            for operation_id in operation_ids
            if database.execute(
                "SELECT 1 FROM results WHERE operation_id = ? AND is_file", (operation_id,)
            ).fetchone()
        }
        database.executemany(
            "DELETE FROM results WHERE operation_id = ?", ((operation_id,) for operation_id in operation_ids)
        )
        return files

    def _make_room(self, database: sqlite3.Connection, added: int) -> set[bytes]:
        """Remove the oldest results until the bounds hold, and return those whose answers are files.

        The journal takes no more of its disk than it leaves free. Where others leave too little, what is new
        replaces what is old, and the journal does not empty itself for them.
        """
        kept = _kept_bytes(database)
        excess = max(kept - self._bounds.size, min((kept - self._free_bytes(self._path)) // 2, added))
        oldest = self._clock.now_ms() - self._bounds.age * 1000
        last, files = 0, set()
        cursor = database.execute(
            "SELECT number, CAST(kept_ms AS INTEGER), MAX(CAST(size AS INTEGER), 0), is_file, "
            "CAST(operation_id AS BLOB) FROM results ORDER BY number"
        )
        for number, kept_ms, size, is_file, operation_id in cursor:
            if excess <= 0 and kept_ms >= oldest:
                break
            last = number
            excess -= size
            if is_file:
                files.add(operation_id)
        cursor.close()
        if last:
            database.execute("DELETE FROM results WHERE number <= ?", (last,))
        return files

    def _sweep(self, database: sqlite3.Connection) -> None:
        """Remove files that no row speaks of: their controller died before it wrote the row."""
        rows = database.execute("SELECT CAST(operation_id AS BLOB) FROM results WHERE is_file")
        known = {row[0].hex() for row in rows}
        for path in self._answers.iterdir():
            if path.name not in known:
                path.unlink()

    def _check_sum(self, database: sqlite3.Connection) -> None:
        """Count anew how much is kept, if what is written of it cannot be: by that results are removed."""
        if not 0 <= _kept_bytes(database) <= 2 * self._bounds.size:
            (total,) = database.execute("SELECT total(CAST(size AS INTEGER)) FROM results").fetchone()
            database.execute("UPDATE meta SET value = ? WHERE name = 'kept_bytes'", (max(0, int(total)),))


class _UnusableError(sqlite3.DatabaseError):
    """The database is sound, but not one that can be used here."""


def _of_sqlite(error: sqlite3.Error | UnicodeDecodeError) -> sqlite3.Error:
    """Return what went wrong; where names in the database are no text, SQLite's errors about them are none."""
    return error if isinstance(error, sqlite3.Error) else _UnusableError(f"names in it are damaged: {error}")


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where it was found
    return isinstance(error, _UnusableError) or code in _DAMAGED or _STRANGE.match(str(error)) is not None


def _sound(rows: Iterable[Sequence[Any]], read: Callable[[Sequence[Any]], T], what: str) -> list[T]:
    """Return what `read` makes of rows, but those that are damaged, which are logged."""
    found = []
    for row in rows:
        try:
            found.append(read(row))
        except journal_rows.DamagedRowError as error:
            logger.error("%s in the journal is damaged, and so is not found any more: %s", what, error)
    return found


def _kept_bytes(database: sqlite3.Connection) -> int:
    value = _meta(database, "kept_bytes")
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else -1


def _meta(database: sqlite3.Connection, name: str) -> Any:
    row = database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise _UnusableError(f"it does not say its {name}")
    return row[0]


def _knows(database: sqlite3.Connection, operation_id: bytes) -> bool:
    query = "SELECT 1 FROM results WHERE operation_id = ?"
    return database.execute(query, (operation_id,)).fetchone() is not None


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
