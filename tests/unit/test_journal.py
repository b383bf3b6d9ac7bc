"""The journal: what it keeps, for how long, and what becomes of it when its disk does not do what it should."""

from __future__ import annotations

import dataclasses
import logging
import os
import sqlite3
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller_service import file_system, journal_store
from controller_service import journal as journal_module
from controller_service.events import Facts, Kept, Registration
from controller_service.journal import Journal
from controller_service.journal_records import Batch, KeptTask, Result
from controller_service.journal_store import LARGE, Bounds, Store
from controller_service.lease import Lease
from controller_service.no_journal import NoJournal
from controller_service.task_call import TaskCall
from enginery import _ids
from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2, value_pb2
from tests.controller.fakes import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SESSION = b"session8"
CLUSTER = "a cluster"
OK, USER_ERROR, LOST = frame_pb2.OUTCOME_OK, frame_pb2.OUTCOME_USER_ERROR, frame_pb2.OUTCOME_LOST


def name(number: int) -> bytes:
    """Return an operation id."""
    return _ids.operation_id(SESSION, number)


def add(
    journal: Journal | NoJournal,
    number: int,
    response: bytes = b"response",
    *,
    error: bytes = b"",
    outcome: int = OK,
    engine_id: int = 3,
    session_id: bytes = SESSION,
) -> None:
    """Add the result of operation `number`."""
    journal.add_result(name(number), engine_id, METHODS["Apply"], session_id, outcome, response, error)


def engine(engine_id: int, *, epoch: int = 7, incarnation: str = "kernel") -> Registration:
    """Return an engine that is registered."""
    properties = {"label": value_pb2.Value(text="a")}
    facts = Facts(9, "machine", "10.0.0.1", 4321, "3.11.7", "0.1.0", ("10.0.0.1:5",), memory_limit=1 << 30)
    return Registration(
        engine_id, epoch, "host", engine_id, incarnation, 1, facts, properties, 5, Lease(60.0, 0.0)
    )


async def safe(journal: Journal) -> None:
    """Wait until everything that was added is on disk."""
    await until(lambda: journal.committed == journal.appended)


async def known(journal: Journal, numbers: int) -> list[int]:
    """Return which operations from 1 to `numbers` are found."""
    return [number for number in range(1, numbers + 1) if await journal.find(name(number)) is not None]


def files(path: Path) -> list[str]:
    """Return the names of the files that hold large answers."""
    return sorted(file.name for file in (path / "answers").iterdir())


def modes(path: Path) -> dict[str, int]:
    """Return the permissions of a directory and of what is in it."""
    return {file.name: file.stat().st_mode & 0o777 for file in (path, *path.iterdir())}


def occupy(path: Path) -> None:
    """Put something in the place of the journal, so that it cannot be opened."""
    path.write_text("in the place of the directory")


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Journal]:
    """Run a journal, and close it at the end."""
    journal = Journal(path, CLUSTER, **options)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """Where a journal may be."""
    return tmp_path / "journal"


@pytest.fixture(autouse=True)
def quick_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit sooner than an idle controller does."""
    monkeypatch.setattr("controller_service.journal._GROUP", 0.005)


# Results


async def test_a_result_is_found_at_once_and_after_a_restart(path: Path) -> None:
    """Before it is on disk, once it is, and by the next controller."""
    async with opened(path) as journal:
        add(journal, 1, b"one")
        add(journal, 2, b"", error=b"two", outcome=LOST)
        early = await journal.find(name(1))
        assert journal.committed == 0
        await safe(journal)
        late = await journal.find(name(1))
        assert early is not None
        assert late is not None
        assert (early.response, early.error, early.outcome, early.number) == (b"one", b"", OK, 0)
        assert late.number == 1
        assert late.ended_ms == early.ended_ms
        assert abs(late.ended_ms - time.time() * 1000) < PATIENCE * 1000
    async with opened(path) as journal:
        assert await journal.find(name(1)) == late
        two = await journal.find(name(2))
        assert two is not None
        two = dataclasses.replace(two, ended_ms=0)
        assert two == Result(name(2), 3, METHODS["Apply"], SESSION, LOST, 0, b"", b"two", number=2)
        assert await journal.find(name(3)) is None


async def test_a_named_call_means_the_engine_of_its_first_time(path: Path) -> None:
    """Over restarts, until its result is known. On another engine it is another; on none it is not kept."""
    async with opened(path) as journal:
        assert journal.note_call(name(1), 3, 7) == 7
        assert journal.note_call(name(1), 3, 8) == 7
        assert journal.note_call(name(1), 4, 6) == 6
        assert journal.note_call(name(2), 3, 0) == 0
        assert journal.note_call(name(3), 3, 7) == 7
        assert journal.calls_to(3) == [name(1), name(3)]
        await safe(journal)
    async with opened(path) as journal:
        assert journal.note_call(name(1), 3, 9) == 7
        assert journal.note_call(name(1), 4, 9) == 6
        assert journal.note_call(name(2), 3, 9) == 9
        add(journal, 3, b"done")
        await safe(journal)
    async with opened(path) as journal:
        assert journal.note_call(name(3), 3, 0) == 0
        assert journal.note_call(name(2), 3, 0) == 9


async def test_named_calls_without_a_result_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused ones never get one: the oldest go, on disk as well."""
    monkeypatch.setattr(journal_module, "MAX_CALLED", 3)
    async with opened(path) as journal:
        for number in range(10):
            journal.note_call(name(number), 3, 7)
            await safe(journal)
    async with opened(path) as journal:
        assert [number for number in range(10) if journal.note_call(name(number), 3, 0)] == [7, 8, 9]


async def test_the_first_result_stays(path: Path) -> None:
    """Somebody was told it: a second one, of an engine that was given up too early, changes nothing."""
    async with opened(path) as journal:
        add(journal, 1, b"first")
        add(journal, 1, b"second")
        await safe(journal)
        add(journal, 1, b"third" * LARGE)
        await safe(journal)
        found = await journal.find(name(1))
        assert found is not None
        assert found.response == b"first"
        assert files(path) == []


async def test_a_loss_hides_no_result_that_came_before_it(path: Path) -> None:
    """What is on disk already stays true while the loss of the operation waits to be written behind it."""
    async with opened(path) as journal:
        add(journal, 1, b"it ended")
        await safe(journal)
        add(journal, 1, b"", error=b"lost", outcome=LOST)
        add(journal, 2, b"", error=b"lost", outcome=LOST)
        first, second = await journal.find(name(1)), await journal.find(name(2))
        assert first is not None
        assert first.response == b"it ended"
        assert second is not None
        assert second.outcome == LOST


async def test_counts_say_what_is_safe(path: Path) -> None:
    """What was added while `appended` was n is on disk once `committed` is n, for another process to read."""
    async with opened(path) as journal:
        for number in range(1, 101):
            add(journal, number)
        noted = journal.appended
        add(journal, 101)
        await until(lambda: journal.committed >= noted)
        database = sqlite3.connect(path / "journal.db")
        try:
            assert database.execute("SELECT count(*) FROM results").fetchone()[0] >= noted
        finally:
            database.close()


async def test_large_answers_are_files(path: Path) -> None:
    """Over 64 KiB: private, whole after a restart, gone with their row; strangers are removed at the start."""
    answer = os.urandom(LARGE + 1)
    async with opened(path, power=True) as journal:
        add(journal, 1, answer)
        add(journal, 2, b"", error=answer, outcome=LOST)
        add(journal, 3, answer[:LARGE])
        await safe(journal)
        assert files(path) == [name(1).hex(), name(2).hex()]
        assert set(modes(path / "answers").values()) == {0o700, 0o600}
    (path / "answers" / "stranger").write_bytes(b"of a controller that died before it wrote the row")
    async with opened(path) as journal:
        results = [await journal.find(name(number)) for number in (1, 2, 3)]
        assert [(result.response or result.error) for result in results if result] == [
            answer,
            answer,
            answer[:LARGE],
        ]
        journal.forget([name(1)])
        await safe(journal)
        assert files(path) == [name(2).hex()]
        (path / "answers" / name(2).hex()).unlink()
        assert await journal.find(name(2)) is None


async def test_everything_is_private(path: Path) -> None:
    """Directories 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        async with opened(path) as journal:
            add(journal, 1)
            await safe(journal)
            found = modes(path)
    finally:
        os.umask(before)
    assert found.pop("journal") == found.pop("answers") == 0o700
    assert set(found.values()) == {0o600}


async def test_what_is_released_is_forgotten(path: Path) -> None:
    """Whether it is on disk yet or not; unknown ids are ignored."""
    async with opened(path) as journal:
        add(journal, 1)
        await safe(journal)
        add(journal, 2)
        journal.forget([name(1), name(2), name(9)])
        assert await known(journal, 9) == []
        await safe(journal)
        assert await known(journal, 9) == []
        assert journal.statistics().kept_bytes == 0


async def test_pages(path: Path) -> None:
    """The newest first, in pages, by engine, session and outcome; answers are left out."""
    async with opened(path) as journal:
        for number in range(1, 7):
            is_odd = bool(number % 2)
            add(journal, number, outcome=OK if is_odd else USER_ERROR, engine_id=number)
        add(journal, 7, engine_id=7, session_id=b"")
        await safe(journal)

        async def listed(**wanted: Any) -> list[int]:
            return [result.engine_id for result in await journal.page(10, **wanted)]

        first = await journal.page(3)
        assert [result.engine_id for result in first] == [7, 6, 5]
        assert {result.response for result in first} == {b""}
        assert await listed(before=first[-1].number) == [4, 3, 2, 1]
        assert await listed(engine_id=2) == [2]
        assert await listed(session_id=SESSION, outcomes={USER_ERROR}) == [6, 4, 2]
        assert await listed(outcomes=[OK, LOST]) == [7, 5, 3, 1]
        assert await listed(outcomes=[LOST]) == []


# Bounds


async def test_bounded_by_bytes(path: Path) -> None:
    """The oldest results go first, files too; a later start counts what is there."""
    large = b"x" * (LARGE + 1)
    async with opened(path, bounds=Bounds(size=10_000)) as journal:
        add(journal, 1, large)
        await safe(journal)
        assert journal.statistics().kept_bytes == 0, "it is larger than all that may be kept"
        assert files(path) == []
        for number in range(1, 11):
            add(journal, number + 1, b"x" * 1_000)
        await safe(journal)
        assert await known(journal, 11) == list(range(5, 12))
    async with opened(path, bounds=Bounds(size=3_000)) as journal:
        add(journal, 12, b"x" * 1_000)
        await safe(journal)
        assert await known(journal, 12) == [11, 12]


class Clocks:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.steady = 5.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady


def apply(store: Store, *numbers: int) -> int:
    """Write results, and return how many bytes are kept."""
    batch = Batch()
    for number in numbers:
        batch.results[name(number)] = (3, 1, SESSION, OK, 0, b"", b"", 0, "")
    return store.apply(batch)


def test_it_takes_no_more_of_a_disk_than_it_leaves_free(path: Path) -> None:
    """On a small disk old results go long before the bound; where others fill it, only as new ones come."""
    free = 10_000
    store = Store(path, CLUSTER, Bounds(), power=False, free_bytes=lambda _: free)

    def add(number: int) -> int:
        batch = Batch(size=1_000)  # with the overhead
        batch.results[name(number)] = (
            3,
            1,
            SESSION,
            OK,
            0,
            b"x" * 744,
            b"",
            0,
            "",
        )
        return store.apply(batch)

    sizes = [add(number) for number in range(40)]
    assert max(sizes) <= 12_000
    assert sizes[-1] >= 10_000
    free = 0
    assert add(40) == sizes[-1]
    assert store.find(name(40)) is not None
    store.close()


def test_bounded_by_age_and_not_by_jumps_of_the_clock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that is set makes nothing old; time that passes does, that between two controllers too."""
    clocks = Clocks()
    monkeypatch.setattr(journal_store, "time", clocks)
    store = Store(path, CLUSTER, Bounds(age=100.0), power=False)
    store.load()
    apply(store, 1)
    clocks.steady += 60
    clocks.wall += 1e9
    apply(store, 2)
    assert store.find(name(1)) is not None
    clocks.steady += 41
    apply(store)
    assert [store.find(name(number)) is None for number in (1, 2)] == [True, False]
    store.close()
    later = Clocks()
    later.wall += 60 + 101
    monkeypatch.setattr(journal_store, "time", later)
    store = Store(path, CLUSTER, Bounds(age=100.0), power=False)
    store.load()
    assert apply(store) == 0
    store.close()


# Disks that fail


async def test_a_disk_that_refuses_stops_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; nothing counts as safe, memory is bounded, reading says so, and it is made up for later."""
    monkeypatch.setattr("controller_service.journal._FIRST_RETRY", 0.01)
    caplog.set_level(logging.INFO)
    occupy(path)
    async with opened(path, max_pending=5_000) as journal:
        for number in range(1, 21):
            add(journal, number)
        journal.put_engine(engine(0))
        await until(lambda: journal.statistics().is_broken)
        assert journal.committed == 0
        assert journal.statistics().pending_bytes <= 5_000
        assert await known(journal, 9) == list(range(1, 10)), "what waits is found"
        with pytest.raises(DeliveryError) as error:
            await journal.find(name(99))
        assert error.value.reason == "JOURNAL_UNAVAILABLE"
        os.unlink(path)  # noqa: PTH108 - a path's own would count as blocking
        await safe(journal)
        statistics = journal.statistics()
        assert (statistics.appended, statistics.dropped, statistics.is_broken) == (21, 11, False)
        assert await known(journal, 20) == list(range(1, 10))
    texts = [record.getMessage() for record in caplog.records]
    assert [text.count("cannot be used") for text in texts].count(1) == 1
    assert any("11 results had no room" in text for text in texts)
    assert any("is written again" in text for text in texts)
    journal = Journal(path, CLUSTER)
    assert [kept.engine_id for kept in (await journal.open()).engines] == [0]
    await journal.close()


async def test_a_full_disk_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says that the disk is full: what is added waits, and is written once there is room."""
    monkeypatch.setattr("controller_service.journal._FIRST_RETRY", 0.01)
    full = [True]
    configure = Store._configure

    def limited(self: Store, database: sqlite3.Connection) -> None:
        configure(self, database)
        if full[0]:
            database.execute("PRAGMA max_page_count = 1")  # no page more than there are

    monkeypatch.setattr(Store, "_configure", limited)
    async with opened(path) as journal:
        for number in range(1, 201):
            add(journal, number, b"x" * 1_000)
        await until(lambda: journal.statistics().is_broken)
        assert "full" in repr(journal._broken)
        assert (journal.committed, len(await known(journal, 200))) == (0, 200)
        full[0] = False
        await safe(journal)
        assert len(await known(journal, 200)) == 200


async def test_the_end_does_not_wait_for_a_disk_that_refuses(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends at once, and says how much could not be written."""
    occupy(path)
    async with opened(path) as journal:
        add(journal, 1)
        start = time.monotonic()
    assert time.monotonic() - start < 1.8  # less than the database waits for a lock
    assert "1 records could not be written" in caplog.text


def damage_the_header(path: Path) -> None:
    """Make it no database at all."""
    (path / "journal.db").write_bytes(b"not a database" * 1_000)


def damage_the_pages(path: Path) -> None:
    """Leave header and schema, and nothing else."""
    with (path / "journal.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def make_it_newer(path: Path) -> None:
    """Make it that of a later Enginery."""
    database = sqlite3.connect(path / "journal.db")
    database.execute("PRAGMA user_version = 99")
    database.close()


def give_it_away(path: Path) -> None:
    """Make it that of another cluster."""
    database = sqlite3.connect(path / "journal.db", isolation_level=None)
    database.execute("UPDATE meta SET value = 'another' WHERE name = 'cluster_id'")
    database.close()


def empty_it(path: Path) -> None:
    """Leave nothing in it, as after a disk that was full."""
    (path / "journal.db").write_bytes(b"")


def lose_it(path: Path) -> None:
    """Leave the answers alone."""
    (path / "journal.db").unlink()
    (path / "answers" / name(1).hex()).write_bytes(b"answer")


def drop_a_table(path: Path) -> None:
    """Take away what a restored copy may not have."""
    database = sqlite3.connect(path / "journal.db", isolation_level=None)
    database.execute("DROP TABLE engines")
    database.close()


def make_it_strange(path: Path) -> None:
    """Have its header name a format of SQLite that none has."""
    with (path / "journal.db").open("r+b") as file:
        file.seek(47)
        file.write(b"\x09")


def spoil_a_name(path: Path) -> None:
    """Have the definition of a table name a column whose name is no text."""
    data = (path / "journal.db").read_bytes()
    (path / "journal.db").write_bytes(data.replace(b"lease_used REAL", b"lease_\xffsed REAL"))


@pytest.mark.parametrize(
    "harm",
    [
        spoil_a_name, damage_the_header, damage_the_pages, make_it_newer, give_it_away,
        empty_it, lose_it, drop_a_table, make_it_strange,
    ],
)  # fmt: skip
async def test_a_journal_that_cannot_be_used_is_moved_aside(
    path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """An error line says where it went; a new one takes its place, and the controller starts."""
    async with opened(path) as journal:
        add(journal, 1)
        journal.put_engine(engine(0))
    harm(path)
    journal = Journal(path, CLUSTER)
    assert (await journal.open()).engines == ()
    add(journal, 2)
    await safe(journal)
    assert await known(journal, 2) == [2]
    await journal.close()
    assert "journal.damaged: results of before are not found any more" in caplog.text
    assert (path.with_name("journal.damaged") / "journal.db").exists()


async def test_damage_that_shows_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A journal that breaks while it is used is moved aside too, and the engines are in the new one."""
    async with opened(path) as journal:
        for number in range(1, 1_001):
            add(journal, number, b"x" * 500)
        await safe(journal)
    journal = Journal(path, CLUSTER)
    await journal.open()
    with (path / "journal.db").open("r+b") as file:
        file.seek(40 * 4096)
        file.write(b"\xff" * (80 * 4096))
    journal.put_engine(engine(5))
    for number in range(1, 1_001):
        await journal.find(name(number))
    await safe(journal)
    add(journal, 1_001)
    await safe(journal)
    assert await journal.find(name(1_001)) is not None
    await journal.close()
    assert "malformed" in caplog.text
    journal = Journal(path, CLUSTER)
    assert [kept.engine_id for kept in (await journal.open()).engines] == [5]
    await journal.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE engines SET hello = x'ffff'",
        "UPDATE engines SET epoch = 'x'",
        "UPDATE engines SET epoch = -1",
        "UPDATE engines SET port = 0.5",
        "UPDATE engines SET registered_ms = 9223372036854775807",
        "UPDATE engines SET lease_used = 'x'",
        "DELETE FROM meta",
    ],
)
async def test_rows_that_make_no_sense_stop_nothing(path: Path, damage: str) -> None:
    """SQLite has no checksums: what it returns may be anything. The journal is moved aside, and goes on."""
    async with opened(path) as journal:
        add(journal, 1)
        journal.put_engine(engine(0))
        await safe(journal)
    change(path, damage)
    async with opened(path) as journal:
        add(journal, 2)
        await safe(journal)
        assert await known(journal, 2) == [2]
    assert (path.parent / f"{path.name}.damaged").is_dir()


def task(number: int) -> KeptTask:
    """Return a task that waits."""
    options = frame_pb2.TaskOptions(retries=1)
    call = frame_pb2.Call(method=METHODS["Execute"], request=b"x", task=options)  # type: ignore[arg-type]
    return KeptTask(name(number), SESSION, TaskCall.of(call, ""), options, 1, number, 0)


@pytest.mark.parametrize(
    "damage",
    ["frame = x'ff'", "arrival = 'x'", "attempts = x'00'", "rejected_by = '1,x'", "engine_id = 1099511627776"],
)
async def test_a_damaged_task_hides_no_other(path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out, and an error line says so; the others go on, and so do results."""
    async with opened(path) as journal:
        journal.put_task(task(1))
        journal.put_task(task(2))
        add(journal, 3)
        await safe(journal)
    change(path, f"UPDATE tasks SET {damage} WHERE rowid = 1")
    async with opened(path) as journal:
        assert [one.task_id for one in await journal.tasks()] == [name(2)]
        assert await known(journal, 3) == [3]
    assert "a task in the journal is damaged" in caplog.text


@pytest.mark.parametrize(
    "damage", ["outcome = 'x'", "method = 0", "answer = 7", "session_id = 7", "label = x'ff'", "ended_ms = -1"]
)
async def test_a_damaged_result_hides_no_other(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not found any more, and an error line says so; pages show the others."""
    async with opened(path) as journal:
        add(journal, 1)
        add(journal, 2)
        await safe(journal)
    change(path, f"UPDATE results SET {damage} WHERE number = 1")
    async with opened(path) as journal:
        assert await known(journal, 2) == [2]
        assert {one.operation_id for one in await journal.page(10)} >= {name(2)}
    assert "a result in the journal is damaged" in caplog.text


async def test_an_answer_that_was_cut_is_not_handed_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is shorter than what was written is no answer, and an error line says so."""
    async with opened(path) as journal:
        add(journal, 1, b"x" * (LARGE + 1))
        await safe(journal)
    (path / "answers" / name(1).hex()).write_bytes(b"x" * LARGE)
    async with opened(path) as journal:
        assert await journal.find(name(1)) is None
    assert "is damaged in the journal" in caplog.text


@pytest.mark.parametrize("kept_bytes", ["9223372036854775807", "-5", "'x'", "1e300"])
async def test_a_wrong_sum_removes_nothing(path: Path, kept_bytes: str) -> None:
    """What is kept is counted anew if the count cannot be right: by it results are removed."""
    async with opened(path) as journal:
        add(journal, 1)
        await safe(journal)
        right = journal.statistics().kept_bytes
    change(path, f"UPDATE meta SET value = {kept_bytes} WHERE name = 'kept_bytes'")
    async with opened(path) as journal:
        add(journal, 2)
        await safe(journal)
        assert await known(journal, 2) == [1, 2]
        assert journal.statistics().kept_bytes == 2 * right


def change(path: Path, statement: str) -> None:
    """Change rows behind the journal's back."""
    database = sqlite3.connect(path / "journal.db")
    database.execute(statement)
    database.commit()
    database.close()


async def test_a_defect_does_not_end_the_writer(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong is said once, with its traceback, and tried again."""
    monkeypatch.setattr("controller_service.journal._FIRST_RETRY", 0.01)
    async with opened(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(journal_store, "_kept_bytes", lambda _database: len(1))  # type: ignore[arg-type]
            add(journal, 1)
            await until(lambda: journal.statistics().is_broken)
        await safe(journal)
        assert await known(journal, 1) == [1]
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [
        True
    ]


async def test_on_a_network_file_system(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No shared memory is used there, and a warning says that it is slower."""
    monkeypatch.setattr(file_system, "network_file_system", lambda _path: "nfs4")
    async with opened(path) as journal:
        add(journal, 1)
        await safe(journal)
        assert "journal.db-shm" not in modes(path)
        assert await known(journal, 1) == [1]
    assert "network file system (nfs4)" in caplog.text


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("fuse.fuse-overlayfs", False)],
)
def test_file_systems_of_the_network(kind: str, expected: bool) -> None:
    """Those that other machines write too, and those in user space, which mostly are such."""
    assert file_system.is_network(kind) is expected


def test_the_deepest_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is on the file system that is mounted nearest above it, the last one if several are."""

    class Mount:
        def __init__(self, mountpoint: Path | str, fstype: str) -> None:
            self.mountpoint, self.fstype = str(mountpoint), fstype

    mounts = [
        Mount(tmp_path, "ext4"),
        Mount(tmp_path, "NFS"),
        Mount("/", "btrfs"),
        Mount(tmp_path / "b", "cifs"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    assert file_system.network_file_system(tmp_path / "a") == "nfs"
    assert file_system.network_file_system(tmp_path.parent) == ""


# Engines


async def test_engines_are_known_again(path: Path) -> None:
    """Who is registered comes back with all that it said; of those that left only epoch and retirement do."""

    async def kept() -> Kept:
        journal = Journal(path, CLUSTER)
        kept = await journal.open()
        await journal.close()
        return kept

    async with opened(path) as journal:
        journal.put_engine(engine(0, incarnation="old"))
        first = engine(0, incarnation="new")
        first.is_first = True
        journal.put_engine(first)
        journal.put_engine(engine(1, epoch=8))
        journal.drop_engine(engine(1, epoch=8), retired=True)
        journal.put_engine(engine(2, epoch=9))
        await safe(journal)
        journal.drop_engine(engine(2, epoch=9), retired=False)
    found = await kept()
    assert found.epochs == {0: 7, 1: 8, 2: 9}
    assert found.retired == {1}
    (one,) = found.engines
    assert (one.engine_id, one.epoch, one.host_id, one.slot, one.incarnation) == (0, 7, "host", 0, "new")
    assert (one.facts, one.properties, one.registered_ms) == (engine(0).facts, engine(0).properties, 5)
    assert one.is_first is True
    async with opened(path) as journal:
        large = engine(1, epoch=10)
        large.properties = {"large": value_pb2.Value(text="x" * (64 << 10))}
        journal.put_engine(large)
    found = await kept()
    assert (found.epochs[1], found.retired, len(found.engines)) == (10, frozenset(), 2)
    assert found.engines[1].is_first is False
    assert found.engines[1].properties == {}, "it brings them along when it comes back"


async def test_engines_wait_for_no_group(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever saw an engine must find it after a crash, so a registration is written at once."""
    monkeypatch.setattr("controller_service.journal._GROUP", 60.0)
    async with opened(path) as journal:
        add(journal, 1)
        journal.put_engine(engine(0))
        await safe(journal)


async def test_no_journal() -> None:
    """Everything counts as safe, and nothing is found."""
    journal = NoJournal()
    add(journal, 1)
    journal.put_engine(engine(0))
    journal.drop_engine(engine(0), retired=True)
    journal.forget([name(1)])
    assert journal.committed == journal.appended
    assert await journal.find(name(1)) is None
    assert list(await journal.page(10)) == []
    assert not journal.statistics().is_broken
    await journal.close()


# Against a model


class StoreMachine(RuleBasedStateMachine):
    """Batches of anything, and restarts at any moment; a dict knows what must be found."""

    numbers = st.integers(1, 12)

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "journal"
        self.store = self.start()
        self.model: dict[int, bytes] = {}

    def start(self) -> Store:
        store = Store(self.path, CLUSTER, Bounds(), power=False)
        store.load()
        return store

    @rule(added=st.dictionaries(numbers, st.booleans(), max_size=6), forgotten=st.sets(numbers, max_size=4))
    def writes(self, added: dict[int, bool], forgotten: set[int]) -> None:
        batch = Batch(forgotten={name(number) for number in forgotten})
        for number in forgotten:
            self.model.pop(number, None)
        for number, is_large in added.items():
            answer = os.urandom(4) * (LARGE if is_large else 1)
            batch.results[name(number)] = (3, 1, SESSION, OK, 0, answer, b"", 0, "")
            self.model.setdefault(number, answer)
        kept_bytes = self.store.apply(batch)
        assert (kept_bytes == 0) is (not self.model)

    @rule()
    def restarts(self) -> None:
        self.store.close()
        self.store = self.start()

    @rule()
    def dies_with_a_file_half_done(self) -> None:
        (self.path / "answers" / name(99).hex()).write_bytes(b"x")
        self.restarts()

    @invariant()
    def finds_what_it_should(self) -> None:
        for number in range(1, 13):
            found = self.store.find(name(number))
            assert (found.response if found else None) == self.model.get(number)
        large = (name(number).hex() for number, answer in self.model.items() if len(answer) > LARGE)
        assert files(self.path) == sorted(large)

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
