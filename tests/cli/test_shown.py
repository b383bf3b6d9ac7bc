"""What the commands show, and where: tables and times, pipes and poor locales."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from enginery.cli import ops, status
from enginery.cli.shown import Column, printable, span, table
from enginery.engines import EngineInfo

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Shell

COLUMNS = (
    Column("operation"),
    Column("engine", right=True, rank=1),
    Column("state", colours={"running": "yellow"}),
    Column("progress", rank=2),
    Column("arguments", least=10),
)
ROWS = [
    ["0193f3c2-0000-8000-8000-000000000007", "0", "running 40%", "", "import time; time.sleep(60)"],
    ["0193f3c2-0000-8000-8000-000000000008", "10", "queued", "", "日本語" * 10],
]


def lines(width: int | None) -> list[str]:
    return [line.plain for line in table(COLUMNS, ROWS, width)]


def test_without_a_terminal_nothing_is_cut() -> None:
    """Columns are aligned, no line ends in blanks, and a column without any content is not there."""
    head, first, second = lines(None)
    assert head.split() == ["operation", "engine", "state", "arguments"]
    assert first.endswith("import time; time.sleep(60)")
    assert second.endswith("日本語" * 10)
    assert first.index("running") == second.index("queued") == head.index("state")
    assert head.index("engine") + len("engine") == first.index("0  running") + 1


def test_it_fits_the_terminal() -> None:
    """What may be cut is cut, wide characters counted; the id never is."""
    for width in range(61, 120):
        for line, row in zip(table(COLUMNS, ROWS, width)[1:], ROWS, strict=True):
            assert line.cell_len <= width
            assert line.plain.startswith(row[0])


def test_in_a_narrow_one_columns_give_way_by_rank() -> None:
    """What matters most stays, even if the terminal wraps it."""
    assert lines(69)[0].split() == ["operation", "engine", "state", "arguments"]
    assert lines(60)[0].split() == lines(20)[0].split() == ["operation", "state", "arguments"]


def test_operations_keep_their_names_in_a_narrow_terminal() -> None:
    """What was called says more than by which method, and how long it ran."""
    values = ["0193f3c2-0000-8000-8000-000000000007", "0", "succeeded", "5.4 s", "0.1 s", "apply"]
    row = [*values, "package.model.fit", "sweep"]
    heads = [str(table(ops.COLUMNS, [row], width)[0]).split() for width in (80, 85, 120)]
    assert heads[0] == ["operation", "engine", "state", "age", "arguments"]
    assert heads[1] == ["operation", "engine", "state", "age", "arguments", "label"]
    assert heads[2] == [column.name for column in ops.COLUMNS]


def test_what_others_wrote_stays_in_its_cell() -> None:
    """No line ends, no escapes, no markup: an engine cannot write into the terminal of who looks at it."""
    (_, line) = table([Column("text")], [["a\x1b[31m\nb\u202e[red]c[/red]"]], None)
    assert line.plain == r"a\x1b[31m\nb\u202e[red]c[/red]"
    assert not line.spans
    assert printable("日本 ü") == "日本 ü"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0.0 s"),
        (0.23, "0.2 s"),
        (9.97, "10 s"),
        (119, "119 s"),
        (300, "5 min"),
        (7200, "2 h"),
        (40 * 3600, "40 h"),
        (86_400 * 3, "3 d"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    """Two digits or so; a clock that is behind counts as now."""
    assert span(dt.timedelta(seconds=seconds)) == text


@pytest.mark.parametrize("lines", [3, 20_000])
def test_a_reader_that_has_seen_enough(shell: Shell, tmp_path: Path, lines: int) -> None:
    """`enginery logs | head`: no traceback, however much was left to print."""
    logs = tmp_path / "state" / "logs"
    logs.mkdir(parents=True)
    (logs / "host-1.log").write_text("2026-01-01 12:00:00,100 INFO    host: said\n" * lines)
    with shell.start("logs", "--state-dir", str(tmp_path / "state")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_locale_that_lacks_letters(shell: Shell, tmp_path: Path) -> None:
    """What cannot be written is escaped."""
    logs = tmp_path / "state" / "logs"
    logs.mkdir(parents=True)
    (logs / "host-1.log").write_text("2026-01-01 12:00:00,100 INFO    host: für\n")
    said = shell.run("logs", "--state-dir", str(tmp_path / "state"), PYTHONIOENCODING="ascii").stdout
    assert said.endswith("f\\xfcr\n")


def test_status_says_why() -> None:
    """Who is away or lost says since when and why; who works, for how long and in how much memory."""
    began = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5, seconds=30)
    ready = EngineInfo(
        engine_id=0, incarnation="0193f3c2-0000", state="ready", hostname="here", ip="", port=0, pid=7,
        registered_at=began, python_version="3.11",
    )  # fmt: skip
    away = replace(ready, state="away", reason="its connection was lost", state_since=began)
    busy = replace(
        ready, state="busy", operation_method="execute", operation_started_at=began, resident_bytes=48 << 20,
        memory_limit=2 << 30, last_failure="SIGSEGV",
    )  # fmt: skip
    rows = [status.row(away), status.row(busy)]
    head, first, second = [line.plain for line in table(status.COLUMNS, rows, None)]
    assert "why" in head
    assert "last failure" in head
    assert "away for 5 min" in first
    assert "its connection was lost" in first
    assert "execute for 5 min" in second
    assert "48 MiB of 2 GiB" in second
    assert "SIGSEGV" in second
