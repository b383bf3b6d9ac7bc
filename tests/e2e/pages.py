"""Pages that say how something old is written now: tables whose middle column is code that runs."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
_SPAN = re.compile(r"`([^`]+)`")
ARROW = "→"


@dataclass(frozen=True)
class Row:
    """One row: its section's set-up, and the snippets of its middle cell with what each gives, if it says."""

    page: str
    old: str
    setup: str
    snippets: tuple[tuple[str, str | None], ...]

    def __str__(self) -> str:
        """Name it by what was written before."""
        return f"{self.page}: {self.old}"


def rows(page: str) -> list[Row]:
    """Return every row of the page's tables."""
    found: list[Row] = []
    setup = ""
    for part in re.split(r"^(?=##)", (DOCS / page).read_text(), flags=re.MULTILINE):
        blocks = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
        setup = "\n".join(blocks)
        for line in part.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else []
            if cells and "`" in cells[1]:
                found.append(Row(page, cells[0], setup, _snippets(cells[1])))
    return found


def _snippets(cell: str) -> tuple[tuple[str, str | None], ...]:
    """Return code with what it gives: "`a + b` → `3`"; spans joined by <br> are lines of one."""
    cell = cell.replace("`<br>`", "\n")
    found: list[tuple[str, str | None]] = []
    last = 0
    for match in _SPAN.finditer(cell):
        if ARROW in cell[last : match.start()]:
            found[-1] = found[-1][0], match[1]
        else:
            found.append((match[1], None))
        last = match.end()
    return tuple(found)


def evaluate(code: str, namespace: dict[str, Any]) -> object:
    """Run code; return the value of its last expression."""
    tree = ast.parse(code)
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        exec(compile(tree, "<page>", "exec"), namespace)
        return eval(compile(last, "<page>", "eval"), namespace)
    exec(compile(tree, "<page>", "exec"), namespace)
    return None
