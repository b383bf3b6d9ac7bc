"""What a stream of output looks like on a screen: lines that are final, and lines that may still change.

Progress bars go back to the beginning of their line, those that are nested also up a line, and write it again.
So a line is final once the cursor has left it for good.
"""

from __future__ import annotations

import re

MAX_CHANGING = 50
"""Lines that may change at the same time; above them the oldest are final."""

_MOVES = re.compile(r"(\r\n|\n|\r|\x1b\[A)")
_ERASES = re.compile(r"\x1b\[[012]?K")


class Screen:
    """The lines of one stream of one engine. What cannot change any more is taken by `take`."""

    def __init__(self) -> None:
        """Begin empty."""
        self._clear()

    def _clear(self) -> None:
        self._rows: list[str] = [""]
        self._row = 0
        self._fresh = False  # the cursor is at the beginning of a line that is to be written again
        self._changes = False  # a line was gone back to

    def write(self, text: str) -> None:
        """Take a piece of output, which may end anywhere."""
        for part in _MOVES.split(text):
            match part:
                case "":
                    continue
                case "\n" | "\r\n":
                    self._row += 1
                    self._fresh = False
                    if self._row == len(self._rows):
                        self._rows.append("")
                case "\r":
                    self._fresh = self._changes = True
                case "\x1b[A":
                    self._row = max(0, self._row - 1)
                    self._changes = True
                case _:
                    shown = _ERASES.sub("", part)
                    self._rows[self._row] = shown if self._fresh else self._rows[self._row] + shown
                    self._fresh = False

    def take(self, *, rested: bool = True) -> tuple[list[str], bool]:
        """Return the lines that are final now, and whether any line was written again meanwhile.

        `rested`: nothing was written for a moment, so that bars are where they stay, and lines above are done.
        """
        count = self._row if rested or not self._changes else max(0, len(self._rows) - MAX_CHANGING)
        count = min(count, self._row)
        done, changed = self._rows[:count], self._changes
        del self._rows[:count]
        self._row -= count
        if self._rows == [""]:
            self._changes = False
        return _seen(done, changed), changed

    def end(self) -> list[str]:
        """Return what is left, as nothing follows."""
        rows, changed = self._rows, self._changes
        self._clear()
        return _seen(rows if rows[-1] else rows[:-1], changed)

    @property
    def is_changing(self) -> bool:
        """Whether a line that may still change was written again."""
        return self._changes

    @property
    def changing(self) -> list[str]:
        """The lines that may still change; empty if output just ended with a full line."""
        return [row for row in self._rows if row.strip()]


def _seen(rows: list[str], changed: bool) -> list[str]:
    """Leave out the blank lines that bars which clean up after themselves leave."""
    return [row for row in rows if row.strip()] if changed else rows
