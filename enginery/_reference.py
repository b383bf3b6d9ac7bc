"""An argument that is the engine's own object: `reference("name")`."""

from __future__ import annotations

import pkgutil
import sys
from typing import NoReturn

from enginery import _current

_resolved = 0


class Reference:
    """Stands for what an expression means on the engine that gets it."""

    __slots__ = ("_expression",)

    def __init__(self, expression: str) -> None:
        """Made by `reference`."""
        self._expression = expression

    @property
    def expression(self) -> str:
        """What is looked up."""
        return self._expression

    def __reduce__(self) -> tuple[object, ...]:
        """Be pickled as the look-up."""
        return resolve, (self._expression,)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: it is nothing here."""
        raise TypeError(
            f"{self!r} is something only on an engine: view.apply({self._expression!r}, ...) calls it"
        )

    def __repr__(self) -> str:
        """Show what it stands for."""
        return f"reference({self._expression!r})"


class Unresolved(Exception):
    """A look-up failed; `cause` is what it raised, which is to be raised in place of this."""

    def __init__(self, cause: Exception) -> None:
        """Take what was raised."""
        super().__init__(cause)
        self.cause = cause


def reference(expression: str) -> Reference:
    """Return an argument that on each engine is the engine's own object of that name.

    `view.apply(len, reference("rows"))` sends no rows. It may stand anywhere in an argument or in a pushed
    value, and be any expression: `reference("model.weights[0]")`; a name as `math.pi` needs no import. It is
    evaluated in the engine's namespace when it arrives; NameError if there is no such thing. SyntaxError here
    if it is no expression.
    """
    if not isinstance(expression, str):
        raise TypeError(f"a reference is the text of a name or an expression, not {type(expression).__name__}")
    compile(expression.strip(), "<reference>", "eval", dont_inherit=True)
    return Reference(expression.strip())


def resolve(expression: str) -> object:
    """Return what `expression` means on this engine. Called where a reference is unpickled."""
    global _resolved
    _current.get_engine()  # RuntimeError if this is none
    _resolved += 1
    try:
        return eval(expression, vars(sys.modules["__main__"]))  # noqa: S307  # what an engine is for
    except NameError as error:
        return _imported(expression, error)
    except Exception as error:
        raise Unresolved(error) from None


def _imported(expression: str, missing: NameError) -> object:
    """Return what a dotted name means if its first part is a module that was not imported yet."""
    names = expression.split(".")
    if len(names) == 1 or not all(name.isidentifier() for name in names):
        raise Unresolved(missing)
    try:
        return pkgutil.resolve_name(expression)
    except ModuleNotFoundError:
        raise Unresolved(missing) from None
    except Exception as error:
        raise Unresolved(error) from None


def resolved_count() -> int:
    """Return how many references this process has resolved: what holds one means something else next time."""
    return _resolved
