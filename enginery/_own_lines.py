"""Sources of functions that were sent: the engine that ran them may have no such file, and no such cell."""

from __future__ import annotations

import linecache
import re
import sys

_FRAME = re.compile(
    r'^(?P<indent>[ |+]*  )File "(?P<file>[^"\n]+)", line (?P<line>\d{1,9})(?:, in [^\n]*)?\n'
    r"(?!(?P=indent)  )",  # its line is not there
    re.MULTILINE,
)

_FILE = re.compile(r'(?<=  )File "([^"\n]+)"(?=, line )')


def fill_in(traceback: str) -> str:
    """Return a remote traceback with the lines of our own sources where it has none, and names of our cells."""
    return name_cells(_FRAME.sub(_with_line, traceback))


def name_cells(traceback: str) -> str:
    """Return a traceback in which cells of the notebook that this is have their names: `Cell In[3]`."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None:
        return traceback

    def named(file: re.Match[str]) -> str:
        name: tuple[str, str] | None = shell.compile.format_code_name(file[1])
        return file[0] if name is None else " ".join(name)

    return _FILE.sub(named, traceback)


def line_of(file: str, number: int) -> str:
    """Return a line of the program, or of what was typed into it; empty if the file is neither.

    Other files may be others here than they are there.
    """
    if file != getattr(sys.modules.get("__main__"), "__file__", None):
        known = linecache.cache.get(file)
        if known is None or len(known) < 2 or known[1] is not None:  # typed: it was never modified
            return ""
    return linecache.getline(file, number).strip()


def _with_line(frame: re.Match[str]) -> str:
    line = line_of(frame["file"], int(frame["line"]))
    return f"{frame[0]}{frame['indent']}  {line}\n" if line else frame[0]
