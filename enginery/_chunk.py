"""What engines run for a chunk of a map: the function on each item. Part of the floor that kernels import."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from enginery import _codec
from enginery.errors import TaskReject

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    Items = Sequence[tuple[Any, ...]]
    """The arguments of each call."""


class Raised(NamedTuple):
    """Stands for the value of an item whose function raised."""

    module: str
    type_name: str
    hierarchy: tuple[str, ...]
    message: str
    traceback: str
    pickled: bytes
    """Empty if it does not survive pickling."""


def run(function: Callable[..., Any], items: Items) -> list[Any]:
    """Return what `function` returns for each item, or Raised in its place.

    TaskReject is raised: then the chunk runs elsewhere, as a whole.
    """
    values = []
    for item in items:
        try:
            values.append(function(*item))
        except (TaskReject, KeyboardInterrupt):
            raise
        except BaseException as error:
            values.append(_raised(error))
    return values


async def run_coroutines(function: Callable[..., Coroutine[Any, Any, Any]], items: Items) -> list[Any]:
    """The same for a coroutine function, one item after the other."""
    values = []
    for item in items:
        try:
            values.append(await function(*item))
        except (TaskReject, KeyboardInterrupt):
            raise
        except Exception as error:
            values.append(_raised(error))
    return values


def run_whole(function: Callable[..., Any], items: Items) -> list[Any]:
    """Return what `function` returns for each item; what it raises ends the chunk, which is tried again."""
    return [function(*item) for item in items]


async def run_coroutines_whole(function: Callable[..., Coroutine[Any, Any, Any]], items: Items) -> list[Any]:
    """The same for a coroutine function."""
    return [await function(*item) for item in items]


def _raised(error: BaseException) -> Raised:
    kind = type(error)
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without our own frame
    try:
        message = str(error)
    except Exception as problem:  # code of the user's
        message = f"<str() raised {type(problem).__name__}>"
    return Raised(
        kind.__module__,
        kind.__qualname__,
        tuple(f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__[:-1]),
        message,
        "".join(traceback.format_exception(kind, error, trace)),
        _pickled(error),
    )


def _pickled(error: BaseException) -> bytes:
    try:
        encoded = _codec.encode(error)
        _codec.decode(encoded)
    except KeyboardInterrupt:
        raise
    except BaseException:  # its own methods ran
        return b""
    return bytes(encoded.parts[0]) if len(encoded.parts) == 1 else b""
