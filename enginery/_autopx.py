"""%autopx: every cell runs on the engines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginery.magics import EngineryMagics


class AutoPx:
    """Turns every cell into a `%px` of it, while it is on."""

    has_side_effects = True  # so that IPython leaves it out where it only asks whether a cell is complete

    def __init__(self, magics: EngineryMagics) -> None:
        self._magics = magics

    @property
    def _transforms(self) -> list[Callable[[list[str]], list[str]]]:
        return self._magics.ip.input_transformer_manager.line_transforms  # type: ignore[no-any-return]

    def toggle(self) -> bool:
        """Turn it on or off; return whether it is on."""
        if self in self._transforms:
            self.off()
            return False
        self.on()
        return True

    def on(self) -> None:
        """Turn it on. What is put before it still sees the cell first."""
        self._transforms.insert(0, self)

    def off(self) -> None:
        """Turn it off."""
        if self in self._transforms:
            self._transforms.remove(self)

    def __call__(self, lines: list[str]) -> list[str]:
        """Return the cell as the shell is to run it."""
        text = "".join(lines)
        if self._magics.is_local or not text.strip() or _is_for_here(text):
            return lines
        return [f"get_ipython().run_cell_magic({'px' + self._magics.suffix!r}, '', {text!r})\n"]


def _is_for_here(text: str) -> bool:
    """Return whether a cell is one of this shell even with %autopx: our magics, and what ends the shell."""
    first = text.lstrip().split("\n", 1)[0].strip()
    return re.match(r"%%?(px|autopx|load_ext|reload_ext|unload_ext)", first) is not None or (
        text.strip() in ("exit", "quit", "exit()", "quit()")
    )
