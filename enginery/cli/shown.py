"""How the commands show times, counts and what others wrote: tables that fit the terminal, and plain text."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

from enginery.cli.common import out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_GAP = 2  # blanks between columns


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    least: width to which a narrow terminal may cut it; by default it is never cut.
    rank: columns of a higher one are left out first, if cutting is not enough; those of 0 stay.
    colours: styles by the first word of a cell.
    """

    name: str
    right: bool = False
    least: int | None = None
    rank: int = 0
    colours: Mapping[str, str] = field(default_factory=dict)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout: all of it if that is no terminal, else what has room in its width.

    A column in which every cell is empty is left out.
    """
    for line in table(columns, rows, out.width if out.is_terminal else None):
        out.print(line, overflow="ignore", crop=False)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[Text]:
    """Return the lines of a table, its head included; `width` in cells, None for any."""
    cells = {column.name: [printable(row[position]) for row in rows] for position, column in enumerate(columns)}
    filled = [column for column in columns if any(cells[column.name])]
    widths = _widths(filled, {name: max(map(_length, [name, *texts])) for name, texts in cells.items()}, width)
    shown = [column for column in filled if column.name in widths]
    lines = [Text().join([_cell(column, column.name, "bold", widths[column.name]) for column in shown])]
    for position in range(len(rows)):
        line = Text()
        for column in shown:
            text = cells[column.name][position]
            style = column.colours.get(text.partition(" ")[0], "")
            line.append_text(_cell(column, text, style, widths[column.name]))
        lines.append(line)
    for line in lines:
        line.rstrip()
    return lines


def _widths(columns: Sequence[Column], natural: Mapping[str, int], width: int | None) -> dict[str, int]:
    """Return the width of each column that has room: some are left out, then some are cut."""
    least = {
        column.name: min(natural[column.name], natural[column.name] if column.least is None else column.least)
        for column in columns
    }
    if width is None:
        return {column.name: natural[column.name] for column in columns}
    for column in sorted(columns, key=lambda column: -column.rank):
        if column.rank and _total(least) > width:
            del least[column.name]
    room = max(0, width - _total(least))
    for name in least:
        more = min(room, natural[name] - least[name])
        least[name] += more
        room -= more
    return least


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _length(text: str) -> int:
    return Text(text).cell_len


def _cell(column: Column, text: str, style: str, width: int) -> Text:
    cell = Text(text, style=style)
    cell.truncate(width, overflow="ellipsis")
    cell.align("right" if column.right else "left", width)
    cell.append(" " * _GAP)
    return cell


def printable(text: str) -> str:
    """Return what others wrote on one line, so that it can neither move the cursor nor pose as ours."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def span(time: dt.timedelta) -> str:
    """Return how long: `0.2 s`, `12 s`, `5 min`, `3 h`, `2 d`."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 2 * 86_400:
        return f"{seconds // 3600:.0f} h"
    return f"{seconds // 86_400:.0f} d"


def since(moment: dt.datetime | None) -> str:
    """Return how long ago; empty if there is no such time. Clocks may differ: the future is now."""
    return "" if moment is None else span(dt.datetime.now(dt.UTC) - moment)


def iso(moment: dt.datetime | None) -> str | None:
    """Return a time as JSON has it."""
    return None if moment is None else moment.isoformat(timespec="milliseconds")
