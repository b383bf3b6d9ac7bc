"""What executes source and shows what comes of it: Python by itself, or IPython's shell (`ipython_shell`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine_service.kernel.display import forms_of, pretty_of
from engine_service.kernel.namespace import plain
from engine_service.kernel.source import Interpreter

if TYPE_CHECKING:
    from engine_service.kernel.awaiting import Awaiting
    from engine_service.kernel.namespace import Namespace
    from engine_service.kernel_messages import DisplayData


_NOT_PYTHON = ("%", "!", "?")


class Shell(Protocol):
    """Everything here runs user code, which may raise anything, but for `render` and `reset`."""

    def start(self, source: str, filename: str) -> None:
        """Run what an engine starts with: it leaves no trace in the history."""

    def execute(self, source: str, number: int) -> object:
        """Run command `number`, remember it, and return the value of its last expression, or None."""

    def ended(self) -> None:
        """A function was called; `execute` ends by itself."""

    def pretty(self, value: object, text: str) -> str:
        """Return `value` laid out for people; `text` is its repr."""

    def forms(self, value: object, text: str) -> DisplayData | None:
        """Return every form that `value` offers, None if only text."""

    def render(self, error: BaseException) -> str | None:
        """Return the traceback of what was raised as the shell shows it, None if as Python does."""

    def reset(self) -> None:
        """Forget the history and all settings of source; the namespace was emptied before."""


class PythonShell:
    """Python as it is. See `Shell`."""

    def __init__(self, namespace: Namespace, awaiting: Awaiting) -> None:
        """Run in that namespace."""
        self._namespace = namespace
        self._interpreter = Interpreter(awaiting)

    def start(self, source: str, filename: str) -> None:
        """Run what an engine starts with."""
        self._interpreter.run(source, filename, self._namespace.variables)

    def execute(self, source: str, number: int) -> object:
        """Run a command; `In`, `Out`, `_`, `__` and `___` are the namespace's."""
        self._namespace.entered(number, source)
        try:
            value = plain(self._interpreter.run(source, f"<execute {number}>", self._namespace.variables))
        except SyntaxError as error:
            line = (error.text or "").strip()
            if line.startswith(_NOT_PYTHON) or line.endswith("?"):
                error.msg = f"engines run Python, which has no `{line}`: those of --shell ipython take it"
            raise
        if value is not None:
            self._namespace.shown(number, value)
        return value

    def ended(self) -> None:
        """Do nothing."""

    def pretty(self, value: object, text: str) -> str:
        """Return it as pprint does."""
        return pretty_of(value, text)

    def forms(self, value: object, text: str) -> DisplayData | None:
        """Ask the methods of `value`."""
        return forms_of(value, text)

    def render(self, _error: BaseException) -> None:
        """Leave it to Python."""
        return

    def reset(self) -> None:
        """Forget what was imported from `__future__`."""
        self._interpreter.reset()
