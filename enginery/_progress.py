"""How far many calls are, as a bar: on a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginery.group import Group


_TICK = 0.1  # seconds between two pictures of a bar


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
        shown = _NotebookBar(title, total)
        try:
            yield shown
        finally:
            shown.update()
    elif show or (show is None and sys.stderr.isatty()):
        yield from _terminal(title, total)
    else:
        yield _NoBar()


class _NoBar:
    def advance(self) -> None:
        pass


class _NotebookBar:
    """An output that changes in its place a few times a second; it needs no widgets."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._began = self._updated = time.monotonic()
        from IPython.display import display

        self._output: Any = display(self._shown(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def advance(self) -> None:
        self._done += 1
        if time.monotonic() >= self._updated + _TICK:
            self.update()

    def update(self) -> None:
        self._updated = time.monotonic()
        self._output.update(self._shown(), raw=True)

    def _shown(self) -> dict[str, str]:
        seconds = time.monotonic() - self._began
        left = seconds / self._done * ((self._total or 0) - self._done) if self._done else 0
        text = f"{self._done}/{'?' if self._total is None else self._total} {_clock(seconds)}"
        if left > 0:
            text += f", {_clock(left)} left"
        filled = "" if self._total is None else f' value="{self._done}" max="{max(1, self._total)}"'
        title = html.escape(self._title)
        return {
            "text/plain": f"{self._title} {text}",
            "text/html": f"<div>{title} <progress{filled}></progress> {text}</div>",
        }


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


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
