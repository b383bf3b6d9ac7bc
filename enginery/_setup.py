"""What an executor's calls run through on their engine: its initializer, once for each kernel; and by value.

Pickled functions name this module, so it imports nothing that an engine does not have.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

from enginery import _codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginery._encoded import Encoded

T = TypeVar("T")

_REMEMBERED = 4096  # executors whose initializer has run here

_set_up: dict[str, None] = {}
"""Executors whose initializer has run in this process, the oldest first."""


class InitializerFailed(BrokenExecutor):
    """The initializer of an executor raised on an engine: the executor takes no more work."""


def run_after_setup(
    executor_id: str,
    initializer: Callable[..., object],
    initargs: tuple[Any, ...],
    function: Callable[..., T],
    /,
    *args: Any,
) -> T:
    """Call `function`, after the initializer if this process has not run it for that executor."""
    if executor_id not in _set_up:
        try:
            initializer(*initargs)
        except Exception as error:
            raise InitializerFailed(f"the initializer failed: {type(error).__name__}: {error}") from error
        _set_up[executor_id] = None
        if len(_set_up) > _REMEMBERED:
            del _set_up[next(iter(_set_up))]
    return function(*args)


def run_chunk(function: Callable[..., T], chunk: list[tuple[Any, ...]], /) -> list[T]:
    """Call `function` with each of some tuples of arguments."""
    return [function(*args) for args in chunk]


def run_sealed(sealed: Encoded, /) -> Any:
    """Call a function with arguments, both pickled: it has the globals that it captured, as in a task, and not
    those of the engine's namespace."""
    function, args = cast("tuple[Callable[..., Any], tuple[Any, ...]]", _codec.decode(sealed))
    return function(*args)
