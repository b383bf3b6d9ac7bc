"""What code of users holds and no pickler takes by value: how it is taken apart, and made anew elsewhere.

Pickles name functions of this module. Nothing here imports gRPC, protobuf or a pickler.
"""

from __future__ import annotations

import copyreg
import functools
import typing
from types import FunctionType, MethodDescriptorType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Reduction = tuple[Any, ...]

CachedFunction = type(functools.lru_cache(len))
_DISPATCHES = functools.singledispatch(len).__code__  # type: ignore[attr-defined]  # it is a function


def reduction_of_function(obj: Any) -> Reduction | None:
    """Return how a function that has no name elsewhere is pickled, if it is a cached or a dispatching one."""
    if type(obj) is CachedFunction:
        settings = obj.cache_parameters()
        return cached, (obj.__wrapped__, settings["maxsize"], settings["typed"])
    if type(obj) is FunctionType and obj.__code__ is _DISPATCHES:
        return dispatching, (tuple(obj.registry.items()),)  # type: ignore[attr-defined]
    return None


def reduction(obj: Any) -> Reduction | None:
    """Return how an object is pickled that its own class does not pickle well; None for all others."""
    kind = type(obj)
    if kind is functools.cached_property:  # has a lock on Python 3.11
        state = {name: value for name, value in vars(obj).items() if name not in ("func", "lock")}
        return functools.cached_property, (obj.func,), state
    if kind is functools.singledispatchmethod:  # has a cache by weak references on Python 3.13
        return functools.singledispatchmethod, (obj.func,), {"dispatcher": obj.dispatcher}
    if kind is typing.NewType and obj.__module__ == "__main__":
        return typing.NewType, (obj.__name__, obj.__supertype__)
    if issubclass(kind, BaseException) and _may_differ(kind):
        _, args, *state = obj.__reduce__()
        return exception, (kind, args), *state
    return None


def _may_differ(kind: type[BaseException]) -> bool:
    """Return whether `args`, with which pickle makes it anew, need not be what its `__init__` takes."""
    return (
        type(kind.__init__) is FunctionType
        and type(kind.__reduce__) is MethodDescriptorType  # it says nothing of its own of how it is pickled
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind not in copyreg.dispatch_table
    )


def slots(kind: type, bases: tuple[object, ...]) -> dict[str, object]:
    """Return what a class that is made anew must have from its beginning, by name.

    Objects of a class without its slots would have a `__dict__`, and not fit where they came from.
    """
    found = vars(kind).get("__slots__")
    return {} if found is None or typing.NamedTuple in bases else {"__slots__": found}


# ---- what pickles name


def cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Callable[..., Any]:
    """Return the function with an empty cache."""
    return functools.lru_cache(maxsize, typed)(function)


def dispatching(registry: tuple[tuple[type, Callable[..., Any]], ...]) -> Callable[..., Any]:
    """Return a function that chooses one of these by the type of its first argument."""
    (_, function), *others = registry  # the first is for `object`
    made = functools.singledispatch(function)
    for kind, implementation in others:
        made.register(kind, implementation)
    return made


def exception(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Return an exception with these `args`, whatever its `__init__` takes, and makes of them."""
    try:
        made = kind(*args)
    except Exception:
        made = kind.__new__(kind, *args)
    set_args: Any = next(base.__init__ for base in kind.__mro__ if type(base.__init__) is not FunctionType)  # type: ignore[misc]
    set_args(made, *args)
    return made
