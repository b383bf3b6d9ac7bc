"""What people call a function."""

from __future__ import annotations

import functools

LONGEST = 200
_UNSAID = ("__main__", "builtins", None)


def name_of(function: object) -> str:
    """Return a name such as `fit`, `model.fit` or `<lambda>`; of an object that can be called, its type's."""
    if type(function) is functools.partial:
        ours = (getattr(function.func, "__module__", None) or "").startswith("enginery.")
        return name_of(function.args[0] if ours and function.args else function.func)
    try:
        name, module = function.__qualname__, function.__module__  # type: ignore[attr-defined]
    except Exception:  # it has none, or its class computes them
        name, module = None, None
    if not isinstance(name, str):
        name, module = type(function).__qualname__, type(function).__module__
    name = name.rpartition("<locals>.")[2]
    return (name if module in _UNSAID else f"{module}.{name}")[:LONGEST]
