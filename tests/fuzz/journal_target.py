"""The journal's files: half written, with pages that a disk spoilt, and with rows that say anything.

An input is JSON: `edits` of files, each a name, a place, whether it is cut there, and bytes (in hexadecimal)
that are written there; and `rows`, each a table, a column, a value, and which rows get it. A controller then
starts with the journal, as far as that goes without ports, and the journal must work.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller_service import journal as journal_module
from controller_service.any_engine import AnyEngine
from controller_service.events import Facts, Registration
from controller_service.journal import Journal
from controller_service.journal_records import KeptTask
from controller_service.journal_store import LARGE
from controller_service.lease import Lease
from controller_service.listing import show
from controller_service.operations import Operations
from controller_service.registry import Registry
from controller_service.switchboard import Switchboard
from controller_service.task_call import TaskCall
from enginery import _ids
from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery.engines import from_message
from enginery.v1 import frame_pb2, value_pb2
from tests.fuzz import mutator
from tests.fuzz.loop import Loop
from tests.fuzz.rules import FAST, BrokenRule, Watch, check_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from controller_service.journal_records import Result

_CLUSTER = "a cluster"
_SESSION = b"session8"
_EPOCH = 1 << 41
_NAMES = [_ids.operation_id(_SESSION, number) for number in range(1, 7)]
_ANSWERS = [b"one", b"two", b"x" * (LARGE + 1)]
_FILES = ("journal.db", "journal.db-wal", "answers/" + _NAMES[2].hex())
_PATIENCE = 5.0  # seconds for a record to be written
_TABLES = {
    "engines": "engine_id epoch retired hello ip port registered_ms is_first lease_used",
    "results": "operation_id engine_id method session_id outcome ended_ms kept_ms size is_file is_error answer "
    "attempts label number",
    "calls": "operation_id engine_id epoch kept_ms",
    "tasks": "task_id frame submitted_ns arrival attempts engine_id epoch rejected_by",
    "meta": "name value",
}
_VALUES = (
    *(None, -1, 0, 1, 7, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63), 0.5, 1e300, "", "x", "7", "1,x", "\0"),
)
_COLUMNS = [(table, column) for table, columns in _TABLES.items() for column in columns.split()]


class _Ears(logging.Handler):
    """Hears what people are told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


class JournalTarget:
    """Starts with a journal as each input has left it."""

    name = "journal"
    seeds = tuple(
        json.dumps(document).encode()
        for document in (
            {"edits": [], "rows": []},
            *({"edits": [[name, 0, True, ""]]} for name in _FILES),
            {"edits": [["journal.db", 5_000, True, ""]]},
            {"edits": [["journal.db", 5_000, False, "00ff" * 200]]},
            {"edits": [["journal.db-wal", 5_000, False, "ff"]], "wal": True},
            {"edits": [["journal.db-wal", 20_000, True, ""]], "wal": True},
            {"rows": [["engines", "hello", {"hex": "ff"}, 0]]},
            {"rows": [["tasks", "frame", {"hex": "ff"}, 1]]},
            *({"rows": [[table, column, 7, 1]]} for table, column in _COLUMNS),
        )
    )

    def __init__(self, watch: Watch) -> None:
        """Write a journal to begin with, closed and as after a crash."""
        self._watch = watch
        self._loop = Loop(watch)
        self._ears = _Ears()
        logger = logging.getLogger("controller_service")
        self._propagates, logger.propagate = logger.propagate, True
        logger.addHandler(self._ears)
        self._folder = tempfile.TemporaryDirectory(dir=FAST)
        self._place = Path(self._folder.name)
        self._waits = [
            (name, getattr(journal_module, name)) for name in ("_GROUP", "_FIRST_RETRY", "_LONGEST_RETRY")
        ]
        for name, _ in self._waits:
            setattr(journal_module, name, 0.0005)
        self._loop.run(self._write())

    async def _write(self) -> None:
        path = self._place / "closed"
        journal = Journal(path, _CLUSTER)
        await journal.open()
        for engine_id in (0, 1):
            facts = Facts(9, "machine", "10.0.0.1", 4321, "3.11.7", "0.1.0", ("10.0.0.1:5",))
            properties = {"label": value_pb2.Value(text="a")}
            journal.put_engine(
                Registration(engine_id, 7, "host", engine_id, "i", 1, facts, properties, 5, Lease(60.0, 0.0))
            )
        for operation_id, answer in zip(_NAMES, _ANSWERS, strict=False):
            journal.add_result(operation_id, 0, METHODS["Apply"], _SESSION, 1, answer, b"")
        journal.note_call(_NAMES[3], 1, 7)
        options = frame_pb2.TaskOptions(label="x", retries=1, after=[_ids.show(_NAMES[0])])
        for number in (4, 5):
            call = frame_pb2.Call(method=METHODS["Execute"], request=b"\x0a\x011", task=options)  # type: ignore[arg-type]
            own = TaskCall.of(call, "x")
            task = KeptTask(_NAMES[number], _SESSION, own, options, 1, number, 1, number - 5, 7 * (number - 4))
            journal.put_task(task)
        await _written(journal)
        shutil.copytree(path, self._place / "crashed")
        await journal.close()

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil another place, or another row."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return data
        if not isinstance(document, dict) or random.randrange(8) == 0:
            return json.dumps(mutator.spoil_json(random, document)).encode()[: mutator.MAX_INPUT]
        if random.randrange(3) == 0:
            document["wal"] = bool(random.randrange(2))
            file = random.choice(_FILES)
            at, cut = random.choice((random.randrange(70_000), random.randrange(200))), random.randrange(3) == 0
            spoilt = random.choice((b"", random.randbytes(1 << random.randrange(7)), bytes(4096), other[:64]))
            _listed(document, "edits").append([file, at, cut, spoilt.hex()])
        else:
            table, column = random.choice(_COLUMNS)
            value = random.choice((*_VALUES, {"hex": random.randbytes(random.choice((0, 1, 8, 16, 40))).hex()}))
            _listed(document, "rows").append([table, column, value, random.randrange(4)])
        for name in ("edits", "rows"):
            document[name] = _listed(document, name)[-4:]
        return json.dumps(document).encode()[: mutator.MAX_INPUT]

    def run(self, data: bytes) -> str:
        """Start with this."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return "no input"
        path = self._place / "journal"
        for left in (path, self._place / "journal.damaged"):
            shutil.rmtree(left, ignore_errors=True)
        is_crashed = isinstance(document, dict) and document.get("wal") is True
        shutil.copytree(self._place / ("crashed" if is_crashed else "closed"), path)
        only_cut = _edit(path, document)
        self._ears.told.clear()
        with self._watch.in_time():
            outcome, lost = self._loop.run(self._start(path))
        self._watch.check()
        if lost and only_cut and not self._ears.told:
            raise BrokenRule(f"lost without a word: {lost}")
        told = self._ears.told[0] if self._ears.told else ""
        return f"{outcome} {told}".replace(str(self._place), "DIR")

    async def _start(self, path: Path) -> tuple[str, list[str]]:
        """Return what came of it, and what is not there any more of what was."""
        journal = Journal(path, _CLUSTER)
        registry = Registry(lease=60.0)
        registry.begin(_EPOCH)
        try:
            kept = await journal.open()
            registry.restore(kept, now=0.0)
            switchboard = Switchboard(registry, controller_epoch=_EPOCH, journal=journal)
            tasks = await journal.tasks()
            await switchboard.tasks.restore(tasks)
            any_engine = AnyEngine(switchboard, Operations(switchboard))
            switchboard.start()
            try:
                lost = [f"engine {number}" for number in (0, 1) if registry.find(number) is None]
                lost += [
                    f"task {name.hex()}" for name in _NAMES[4:] if name not in {one.task_id for one in tasks}
                ]
                for engine in registry:
                    from_message(show(engine))
                lost += await self._read(journal)
                await self._go_on(journal)
                switchboard.tasks.tick()
            finally:
                await any_engine.stop()
                switchboard.close(DeliveryError("SHUTTING_DOWN", process="controller"))
                await switchboard.stop()
        finally:
            await journal.close()
        return f"{len(kept.engines)} engines, {len(tasks)} tasks", lost

    async def _read(self, journal: Journal) -> list[str]:
        lost = []
        for name, answer in zip(_NAMES, _ANSWERS, strict=False):
            found = await _asked(journal, name)
            if found is None or found.response != answer:
                lost.append(f"result {name.hex()}")
        with contextlib.suppress(DeliveryError):
            for result in await journal.page(10, session_id=_SESSION, outcomes=(1,)):
                repr(result)
        journal.calls_to(1)
        return lost

    async def _go_on(self, journal: Journal) -> None:
        """Whatever there was, what comes is kept."""
        new = _ids.operation_id(_SESSION, 77)
        journal.add_result(new, 0, METHODS["Apply"], _SESSION, 1, b"new", b"")
        if any("readonly" in text for text in self._ears.told):
            return  # a file that says so of itself: that is for people to decide, and calls go on
        await _written(journal)
        found = await _asked(journal, new)
        if found is None or found.response != b"new":
            raise BrokenRule(f"what came afterwards is not kept: {found} {self._ears.told}")

    def close(self) -> None:
        """Take all away."""
        self._loop.close()
        for name, value in self._waits:
            setattr(journal_module, name, value)
        logger = logging.getLogger("controller_service")
        logger.removeHandler(self._ears)
        logger.propagate = self._propagates
        self._folder.cleanup()


async def _asked(journal: Journal, name: bytes) -> Result | None:
    try:
        return await journal.find(name)
    except DeliveryError as error:
        check_error(error)
        return None


async def _written(journal: Journal) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            while journal.committed < journal.appended:  # noqa: ASYNC110 - nobody tells that
                await asyncio.sleep(0.0005)
    except TimeoutError:
        raise BrokenRule(f"nothing is written any more: {journal!r}") from None


def _listed(document: dict[str, Any], name: str) -> list[Any]:
    found = document.setdefault(name, [])
    if not isinstance(found, list):
        found = document[name] = []
    return found


def _edit(path: Path, document: object) -> bool:
    """Do what an input says; return whether files were cut, and nothing else: that must show.

    A log that is cut is what each crash leaves: what was not written whole was not written.
    """
    if not isinstance(document, dict):
        return True
    rows = list(_rows(document))
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(path / "journal.db")) as database,
    ):
        for table, column, value, which in rows:
            with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeEncodeError), database:
                query = f"UPDATE {table} SET {column} = ? WHERE rowid % 2 = ? OR ? > 1"
                if table in ("meta", "calls"):
                    query = f"UPDATE {table} SET {column} = ? WHERE ? < 9 OR ?"
                database.execute(query, (value, which % 2, which))
    only_cut = not rows
    for edit in _listed(document, "edits")[:8]:
        if not (isinstance(edit, list) and len(edit) == 4 and edit[0] in _FILES and type(edit[1]) is int):
            continue
        file = path / edit[0]
        data = _bytes(edit[3])
        only_cut = only_cut and not data and not edit[0].endswith("-wal")
        if file.exists() and 0 <= edit[1] < 1 << 20:
            with file.open("r+b") as opened:
                if edit[2]:
                    opened.truncate(min(edit[1], file.stat().st_size))
                opened.seek(edit[1])
                opened.write(data)
    return only_cut


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, str, Any, int]]:
    for row in itertools.islice(_listed(document, "rows"), 8):
        if not (
            isinstance(row, list) and len(row) == 4 and (row[0], row[1]) in _COLUMNS and type(row[3]) is int
        ):
            continue
        value = _bytes(row[2]["hex"]) if isinstance(row[2], dict) and "hex" in row[2] else row[2]
        if isinstance(value, int | float | str | bytes | None):
            yield row[0], row[1], value, row[3] % 4


def _bytes(text: object) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return b""
