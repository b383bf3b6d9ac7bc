"""What clients ask engines to call for them, pickled by name: so nothing here imports gRPC or protobuf."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence


class Each:
    """Calls a function for every item of a part of a sequence. It is the same, and pickled once, for all."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        """Take the function, of as many arguments as there are sequences."""
        self._function = function

    def __call__(
        self, first: int, *parts: Sequence[object]
    ) -> list[object] | Coroutine[Any, Any, list[object]]:
        """Return what the function returns for each item; `first` is the place of the first in the whole."""
        return call_each(self._function, first, *parts)

    def __reduce__(self) -> tuple[object, ...]:
        """Be pickled as its function."""
        return Each, (self._function,)


def call_each(
    function: Callable[..., object], first: int, *parts: Sequence[object]
) -> list[object] | Coroutine[Any, Any, list[object]]:
    """Call `function` for each item of the parts; what it raises says for which. Coroutines run in turn."""
    if inspect.iscoroutinefunction(function):
        return _await_each(function, first, parts)
    results: list[object] = []
    try:
        for items in zip(*parts, strict=True):
            results.append(function(*items))  # noqa: PERF401 - how many there are is told if it raises
    except Exception as error:
        _say_which(error, first + len(results))
        raise
    return results


async def _await_each(
    function: Callable[..., Coroutine[Any, Any, object]], first: int, parts: Sequence[Sequence[object]]
) -> list[object]:
    results: list[object] = []
    try:
        for items in zip(*parts, strict=True):
            results.append(await function(*items))  # noqa: PERF401 - as above
    except Exception as error:
        _say_which(error, first + len(results))
        raise
    return results


def _say_which(error: Exception, place: int) -> None:
    error.add_note(f"It was raised for item {place} of the sequence.")
