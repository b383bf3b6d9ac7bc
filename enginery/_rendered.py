"""How errors of engines show in IPython and in notebooks: each remote traceback once, with its engines."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from enginery.errors import CompositeError, OperationError, line, remote_of

_MOST = 4  # different tracebacks that are shown in full
_OURS = str(Path(__file__).parent)
_MAGIC = re.compile(r"get_ipython\(\)\.run_(line|cell)_magic\(")
_NUMBER = re.compile(r"<execute \d+>")  # engines count for themselves


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
    for position, (text, places) in enumerate(alike.values()):
        if position == _MOST:
            shown.append(f"[... {len(alike) - _MOST} more: print_tracebacks() has them ...]")
            break
        shown += ["", ", ".join(places), *text.split("\n")]
    return [*shown, "", *f"{type(error).__name__}: {error}".split("\n")]


def render_remotely(error: Exception) -> None:
    """Let the error of a magic's call show as the engine tells of it, without the way that it took here."""
    if isinstance(error, CompositeError):
        return  # it does
    remote = remote_of(error)
    text = "" if remote is None else remote.traceback.rstrip("\n")
    if not text:
        text = line(error)
    elif isinstance(error, OperationError):  # the traceback does not end with what it came to
        text += f"\n\n{line(error)}"
    told = text.split("\n")
    BaseException.__setattr__(error, "_render_traceback_", lambda: told)  # where IPython looks for it


def _lines(texts: list[str]) -> list[str]:
    return [part for text in texts for part in text.rstrip("\n").split("\n")]
