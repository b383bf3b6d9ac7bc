"""Functions that run on engines when they are called here: `@view.remote` and `@view.parallel`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from enginery import _calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enginery._parts import Kind
    from enginery._spreading import Spreading
    from enginery.view import EngineView
    from enginery.views import EnginesView

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class RemoteFunction(Generic[P, R]):
    """A function that is called on the engines of a view: `@view.remote`.

    Every argument is passed on. Whether it waits is the view's `block`; if it does not, a call returns an
    Operation or a Group. On an engine, where it may call itself, it is the function again.
    """

    __wrapped__: Callable[P, Any]

    def __init__(self, view: EngineView | EnginesView, function: Callable[P, Any]) -> None:
        """Made by `view.remote`."""
        functools.update_wrapper(self, function)
        self._view = view

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function there, as `view.apply`."""
        request: _calls.Request[Any] = _calls.apply(self.__wrapped__, args, kwargs)
        return cast("R", self._view._do(request, None))

    def __reduce__(self) -> tuple[object, ...]:
        """Be pickled as the function."""
        return _itself, (self.__wrapped__,)

    def __repr__(self) -> str:
        """Show the function and where it runs."""
        return f"<RemoteFunction {_name(self.__wrapped__)} on engines {self._view.targets}>"


class ParallelFunction(Generic[T]):
    """A function of sequences that runs on all engines of a view, each with its part: `@view.parallel`."""

    __wrapped__: Callable[..., T]

    def __init__(self, view: Spreading, function: Callable[..., T], kind: Kind) -> None:
        """Made by `view.parallel`."""
        functools.update_wrapper(self, function)
        self._view = view
        self._kind = kind

    def __call__(self, *sequences: Iterable[Any]) -> Any:
        """Call the function on each engine with its part of each sequence, and put together what it returns.

        Engines for which nothing is left are not called. ValueError if the sequences are not of one length.
        """
        if not sequences:
            raise TypeError(f"{_name(self.__wrapped__)}() runs in parallel over sequences, and got none")
        return self._view._call_parts(self.__wrapped__, sequences, self._kind)

    def map(self, *sequences: Iterable[Any]) -> list[T]:
        """Call the function for every item, as `view.map`."""
        return self._view.map(self.__wrapped__, *sequences)

    def __reduce__(self) -> tuple[object, ...]:
        """Be pickled as the function."""
        return _itself, (self.__wrapped__,)

    def __repr__(self) -> str:
        """Show the function and where it runs."""
        return f"<ParallelFunction {_name(self.__wrapped__)} on engines {self._view.targets}>"


def _itself(function: Callable[..., T]) -> Callable[..., T]:
    return function


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", repr(function))
