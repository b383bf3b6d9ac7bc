"""How errors of engines show in IPython and in notebooks: each remote traceback once, with its engines."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginery._own_lines import name_cells
from enginery.errors import CompositeError, OperationError, line, remote_of

if TYPE_CHECKING:
    from types import TracebackType

_MOST = 4  # different tracebacks that are shown in full
_LONGEST = 20  # lines of the summary
_WIDEST = 500  # characters that list engines
_OURS = str(Path(__file__).parent)
_MAGIC = re.compile(r"get_ipython\(\)\.run_(line|cell)_magic\(")
_NUMBER = re.compile(r"<execute \d+>")  # engines count for themselves


def teach_ipython() -> None:
    """Let the IPython in which this runs, if it does, show a CompositeError by `render`.

    By itself it shows groups as Python does: a page for each engine. Handlers that are set already stay.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((CompositeError,), _show)


def _show(
    shell: Any,
    kind: type[CompositeError],
    error: CompositeError,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:
    """Show an error in short; for IPython, as a method of the shell."""
    sys.last_type, sys.last_value, sys.last_traceback = (
        kind,
        error,
        trace,
    )  # as for any that nobody caught
    lines = render(error)
    shell._showtraceback(kind, error, lines)
    return lines


def render(error: CompositeError) -> list[str]:
    """Return the lines to show: where it was raised here, what each engine raised, and the summary last."""
    shown: list[str] = []
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_OURS)
        and "/IPython/" not in frame.filename
        and not _MAGIC.search(frame.line or "")
    ]
    if frames:
        shown += ["Traceback (most recent call last):", *_lines(traceback.format_list(frames))]
    alike: dict[
        str, tuple[str, list[str]]
    ] = {}  # tracebacks that say the same: one of them, and whose they are
    for one in error.exceptions:
        remote = remote_of(one)
        text = "" if remote is None else remote.traceback.rstrip("\n")
        where, separator, rest = line(one).partition("]: ")
        text = text or rest or where
        alike.setdefault(_NUMBER.sub("<execute>", text), (text, []))[1].append(where + separator[:1])
    for text, places in list(alike.values())[:_MOST]:
        shown += ["", _cut(", ".join(places)), *text.split("\n")]
    summary = f"{type(error).__name__}: {error}".split("\n")
    left_out = [
        f"{count} more {what}"
        for count, what in ((len(alike) - _MOST, "tracebacks"), (len(summary) - _LONGEST, "lines"))
        if count > 0
    ]
    end = [f"[... {' and '.join(left_out)}: sys.last_value.print_tracebacks() ...]"] if left_out else []
    if shown[0] == "":
        del shown[0]
    return [*shown, "", *summary[:_LONGEST], *end]


def render_remotely(error: Exception) -> Exception:
    """Return what to raise so that the error of a magic's call shows as the engine tells of it.

    It is the error itself, without the way that it took here.
    """
    if isinstance(error, CompositeError):
        return error  # it does
    remote = remote_of(error)
    if isinstance(error, SyntaxError) and remote is not None:
        error = remote  # IPython shows the others in a way of its own
    text = "" if remote is None else remote.traceback.rstrip("\n")
    if not text:
        text = line(error)
    elif isinstance(error, OperationError):  # the traceback does not end with what it came to
        text += f"\n\n{line(error)}"
    _show_as(error, text)
    return error


def render_interrupt(interrupt: KeyboardInterrupt) -> KeyboardInterrupt:
    """Return a Ctrl-C that says what became of the call, its note, and not where it was waited for."""
    _show_as(interrupt, "\n".join(["KeyboardInterrupt", *getattr(interrupt, "__notes__", ())]))
    return interrupt.with_traceback(None)


def _show_as(error: BaseException, text: str) -> None:
    told = text.split("\n")
    BaseException.__setattr__(error, "_render_traceback_", lambda: told)  # where IPython looks for it


def _lines(texts: list[str]) -> list[str]:
    return [part for text in texts for part in name_cells(text).rstrip("\n").split("\n")]


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}..."
