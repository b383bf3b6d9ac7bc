"""What a console asks of the namespace, as a call by name: how a name goes on, and what an object is.

Nothing here calls anything of the user's but what looking at an attribute calls.
"""

from __future__ import annotations

import contextlib
import re
import sys

MOST = 500
"""Completions that are told."""
_LONGEST = 20_000  # characters of a doc or of source
_NAME = re.compile(r"[^\W\d][\w.]*$|(?<![\w.])$")


def complete(text: str) -> tuple[int, list[str]]:
    """Return where the name at the end of `text` begins, and the names that it may become, sorted."""
    import rlcompleter  # this and inspect take some milliseconds, and few kernels need them

    match = _NAME.search(text)
    if match is None:
        return len(text), []
    name = match[0]
    if not name:
        return len(text), []
    completer = rlcompleter.Completer(_variables())
    found = completer.attr_matches(name) if "." in name else completer.global_matches(name)
    cleaned = {one.rstrip(" :").rstrip("(").rstrip(")") for one in found}
    return match.start(), sorted(cleaned)[:MOST]


def describe(name: str, detail: bool = False) -> str:
    """Return what a name stands for, for people: its type, signature, doc, and with `detail` its source.

    NameError or AttributeError if there is no such thing.
    """
    import inspect

    obj = _find(name)
    lines = [f"Type:      {type(obj).__module__}.{type(obj).__qualname__}"]
    try:
        lines.append(f"Signature: {name}{inspect.signature(obj)}")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        lines.append(f"Value:     {_short(repr(obj))}")
    with contextlib.suppress(TypeError, OSError):  # not everything is from a file
        lines.append(f"File:      {inspect.getfile(obj)}")  # type: ignore[arg-type]
    if detail:
        try:
            return "\n".join([*lines, "Source:", inspect.getsource(obj)[:_LONGEST]])  # type: ignore[arg-type]
        except (TypeError, OSError):
            lines.append("Source:    (not available)")
    doc = inspect.getdoc(obj)
    return "\n".join([*lines, f"Doc:\n{doc[:_LONGEST]}"] if doc else lines)


def _variables() -> dict[str, object]:
    return sys.modules["__main__"].__dict__


def _find(name: str) -> object:
    import builtins

    first, *rest = name.split(".")
    variables = _variables()
    if first in variables:
        found = variables[first]
    elif hasattr(builtins, first):
        found = getattr(builtins, first)
    else:
        raise NameError(f"name {first!r} is not defined on this engine")
    for attribute in rest:
        found = getattr(found, attribute)
    return found


def _short(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:500]}..."
