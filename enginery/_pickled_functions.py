"""Functions whose pickle is known: one that is called again and again is pickled once, unless it has changed.

Pickling a function of `__main__` costs more than all else that a call costs its caller. Its pickle holds the
globals that it uses as they were, so it may be used again only if everything in it is as it was. That is looked
at each time; and only functions are remembered of which that can be told: those that use constants, builtins
and installed modules. A function of any other module is pickled by its name, with the module's source if it is
the user's own: that is used again for as long as its files are as they were.
"""

from __future__ import annotations

import operator
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any, cast

from enginery._pickler import is_reference

if TYPE_CHECKING:
    from enginery._called import Called

_LARGEST = 64 << 10  # bytes of a pickle that is remembered
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, types.BuiltinFunctionType)

_Print = tuple[Any, ...]
"""The parts of a function: the same objects mean the same pickle."""

_known: weakref.WeakKeyDictionary[types.FunctionType, tuple[_Print, Called]] = weakref.WeakKeyDictionary()
_names: weakref.WeakKeyDictionary[types.CodeType, tuple[str, ...]] = weakref.WeakKeyDictionary()


def find(function: object) -> Called | None:
    """Return the pickle of a function that is as it was when it was remembered, None if there is none."""
    if type(function) is not types.FunctionType:
        return None
    known = _known.get(function)
    if known is None:
        return None
    before, now = known[0], _print_of(function)
    if len(before) == len(now) and all(map(operator.is_, before, now)):
        return known[1]
    del _known[function]
    return None


def remember(function: object, pickled: Called) -> None:
    """Remember the pickle of a function, if it can be told whether it changes."""
    if type(function) is not types.FunctionType or pickled.size > _LARGEST:
        return
    parts = _print_of(function)
    if parts and (function.__module__ != "__main__" or _is_told_by(function, parts)):
        _known[function] = (parts, pickled)


def _is_told_by(function: types.FunctionType, parts: _Print) -> bool:
    if function.__closure__ is not None or not all(_is_constant(part) for part in parts[1:]):
        return False
    from enginery import _own_modules  # whoever pickled a function has it

    return not _own_modules.imported_within(function)


def _print_of(function: types.FunctionType) -> _Print:
    """Return all that the pickle of a function depends on, nothing if that cannot be told."""
    if function.__module__ != "__main__":
        return _name(function)
    return () if function.__dict__ else _parts(function)


def _name(function: types.FunctionType) -> _Print:
    """Return the name by which a function is pickled, and the source that goes with it."""
    module = sys.modules.get(function.__module__)
    name = function.__qualname__
    if module is None or vars(module).get(name) is not function or not is_reference(function):
        return ()
    from enginery import _own_modules

    reduced = _own_modules.reduction(function)
    return (function.__module__, name) if reduced is None else cast("_Print", reduced[1])


def _parts(function: types.FunctionType) -> _Print:
    """Return what a function that is pickled by value is made of, but for closure and attributes."""
    code = function.__code__
    names = _names.get(code)
    if names is None:
        names = _names[code] = tuple(sorted(_global_names(code)))
    parts: _Print = (
        code,
        function.__name__,
        function.__qualname__,
        function.__doc__,
        function.__module__,
        function.__defaults__,
    )
    if keywords := function.__kwdefaults__:
        parts += ("keywords", *keywords.keys(), *keywords.values())
    if annotations := function.__annotations__:
        parts += ("annotations", *annotations.keys(), *annotations.values())
    if names:
        parts += ("globals", *_used(function.__globals__, names))
    return parts


def _used(variables: dict[str, Any], names: tuple[str, ...]) -> list[object]:
    """Return the globals that are used, with their names, and of packages the submodules that may be meant."""
    used: list[object] = []
    for name in names:
        if name in variables:
            value = variables[name]
            used += (name, value)
            if isinstance(value, types.ModuleType) and hasattr(value, "__path__"):
                used += [sys.modules.get(f"{value.__name__}.{other}") for other in names]
    return used


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_constant(part: object) -> bool:
    if isinstance(part, types.ModuleType):
        return _is_installed(part)
    if type(part) is tuple:
        return all(map(_is_constant, part))
    return type(part) in _CONSTANTS or (type(part) is type and part.__module__ == "builtins")


def _is_installed(module: types.ModuleType) -> bool:
    """Return whether every engine may be expected to have a module as it is here."""
    file = getattr(module, "__file__", None) or ""
    return module.__name__.partition(".")[0] in sys.stdlib_module_names or "site-packages" in file
