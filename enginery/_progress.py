"""How far many calls are, as a bar: on a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginery.group import Group


class Bar(Protocol):
    """Shows how many are done."""

    def advance(self) -> None:
        """One more is done."""


def wait(group: Group[Any], timeout: float | None, show: bool | None) -> bool:
    """Wait until all of a group is done, behind a bar; return whether it is."""
    total = len(group)
    with bar(repr(group).strip("<>").partition(":")[0], total, show) as shown:
        try:
            for _ in group.as_completed(timeout):
                shown.advance()
        except TimeoutError:
            return False
    return True


@contextlib.contextmanager
def bar(title: str, total: int | None, show: bool | None = None) -> Iterator[Bar]:
    """Show a bar where somebody sees it, unless `show` is False; True shows it in any case."""
    if show is not False and _in_notebook():
        yield _NotebookBar(total or 0)
    elif show or (show is None and sys.stderr.isatty()):
        yield from _terminal(title, total)
    else:
        yield _NoBar()


class _NoBar:
    def advance(self) -> None:
        pass


class _NotebookBar:
    """IPython's own, which needs no widgets."""

    def __init__(self, total: int) -> None:
        from IPython.display import ProgressBar

        self._bar = ProgressBar(total)  # type: ignore[no-untyped-call]
        self._bar.display()  # type: ignore[no-untyped-call]

    def advance(self) -> None:
        self._bar.progress += 1  # which displays it


class _TerminalBar:
    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def advance(self) -> None:
        self._progress.advance(self._task)


def _terminal(title: str, total: int | None) -> Iterator[Bar]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as shown:
        yield _TerminalBar(shown, shown.add_task(title, total=total))


def _in_notebook() -> bool:
    """Return whether this runs in a Jupyter kernel. IPython is not imported for it: there it is already."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
