"""What in an object cannot be pickled: the way to it, for error messages."""

from __future__ import annotations

import functools
import itertools
import time
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_DEEPEST = 10
_MOST = 1000  # parts of one object that are looked at
_SECONDS = 0.5
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def find(obj: object, fails: Callable[[object], bool]) -> tuple[list[str], object]:
    """Return the innermost part of `obj` for which `fails`, and the steps that lead to it.

    It is `obj` itself, without steps, if no part of it is to blame, or if looking took too long.
    """
    until = time.monotonic() + _SECONDS
    steps: list[str] = []
    seen = {id(obj)}
    while len(steps) < _DEEPEST:
        for step, part in _look_into(obj):
            if time.monotonic() > until:
                return steps, obj
            if type(part) in _PLAIN or id(part) in seen:
                continue
            seen.add(id(part))
            if fails(part):
                steps.append(step)
                obj = part
                break
        else:
            break
    return steps, obj


def _look_into(obj: object) -> list[tuple[str, object]]:
    """Return the first parts of an object; none of one whose own code raises when it is looked at."""
    try:
        return list(itertools.islice(_parts(obj), _MOST))
    except Exception:  # what is to be explained is another error, and the object is shown without this
        return []


def _parts(obj: object) -> Iterator[tuple[str, object]]:
    """Go over what is pickled with an object."""
    if isinstance(obj, dict):
        yield from ((f"item {key!r:.50}", value) for key, value in list(obj.items()))
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"item {index}", value) for index, value in enumerate(obj))
    elif isinstance(obj, types.FunctionType):
        yield from _parts_of_function(obj)
    elif isinstance(obj, types.MethodType):
        yield "instance", obj.__self__
    elif isinstance(obj, functools.partial):
        yield "function", obj.func
        yield from ((f"argument {index}", value) for index, value in enumerate(obj.args, 1))
        yield from ((f"argument {name!r}", value) for name, value in obj.keywords.items())
    elif isinstance(obj, type):
        yield from ((f"attribute {name!r}", value) for name, value in list(vars(obj).items()))
    elif type(obj).__reduce_ex__ is object.__reduce_ex__ and type(obj).__reduce__ is object.__reduce__:
        yield from _parts_of_state(obj.__getstate__())
    elif isinstance(obj, BaseException):
        yield from ((f"argument {index}", value) for index, value in enumerate(obj.args, 1))
        yield from ((f"attribute {name!r}", value) for name, value in vars(obj).items())


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    captured = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in captured:
        try:
            yield f"captured variable {name!r}", cell.cell_contents
        except ValueError:  # empty so far
            continue
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f"global {name!r}", function.__globals__[name]
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "default value", value
    yield from ((f"attribute {name!r}", value) for name, value in vars(function).items())


def _global_names(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _parts_of_state(state: object) -> Iterator[tuple[str, object]]:
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            yield from ((f"attribute {name!r}", value) for name, value in list(part.items()))
