"""Lists of what engines answered, as people read them: results of execute, and what queues hold."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol, TypeVar

from enginery.errors import remote_of
from enginery.result import ExecuteResult, QueuedCall, QueueStatus, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    class Printer(Protocol):
        """IPython's, as much of it as is used here."""

        def text(self, obj: str) -> None:
            """Add text."""


T = TypeVar("T")

_GREEN, _RED, _BLUE = "32", "31", "34"


class Listing(list[T]):
    """A list that shows itself with a few lines for each engine; otherwise as any list.

    In colours in IPython, in notebooks, and at Python's own prompt in a terminal, unless NO_COLOR is set.
    """

    def __repr__(self) -> str:
        """Show what each engine answered."""
        return self._shown(colours=hasattr(sys, "ps1") and _is_colourful())

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(self._shown(colours=_is_colourful()))

    def _shown(self, *, colours: bool) -> str:
        paint = _painted if colours else _plain
        return "\n".join(_lines(item, paint) for item in self) or "[]"


def listed(answers: list[T]) -> list[T]:
    """Return answers of several engines as a Listing if they are results of execute or what queues hold."""
    return Listing(answers) if answers and isinstance(answers[0], ExecuteResult | QueueStatus) else answers


def _is_colourful() -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return sys.stdout.isatty() or type(sys.stdout).__module__.startswith("ipykernel.")


def _painted(text: str, colour: str) -> str:
    return f"\033[{colour}m{text}\033[0m"


def _plain(text: str, _: str) -> str:
    return text


def _lines(item: object, paint: Callable[[str, str], str]) -> str:
    if isinstance(item, ExecuteResult):
        return "\n".join(_of_result(item, paint))
    if isinstance(item, QueueStatus):
        return "\n".join(_of_queue(item, paint))
    return repr(item)


def _of_result(result: ExecuteResult, paint: Callable[[str, str], str]) -> Iterable[str]:
    engine = paint(f"[{result.engine_id}]", _BLUE)
    yield f"{engine} {paint(f'In [{result.number}]:', _GREEN)} {short(result.input.raw)}"
    if result.stdout:
        yield result.stdout.rstrip("\n")
    if result.stderr:
        yield paint(result.stderr.rstrip("\n"), _RED)
    if result.error is not None:
        remote = remote_of(result.error)
        text = str(result.error if remote is None else remote.args[0])
        yield f"{engine} {paint('raised', _RED)} {short(text)}"
    elif result.pretty is not None:
        yield f"{engine} {paint(f'Out[{result.number}]:', _RED)} {result.pretty}"


def _of_queue(status: QueueStatus, paint: Callable[[str, str], str]) -> Iterable[str]:
    engine = paint(f"[{status.engine_id}]", _BLUE)
    if status.pending is None:
        yield f"{engine} idle"
    else:
        yield f"{engine} {paint('runs', _GREEN)} {_call(status.pending)}"
    for call in status.queue:
        yield f"{engine} {paint('waits', _RED)} {_call(call)}"


def _call(call: QueuedCall) -> str:
    return repr(call).removeprefix("<QueuedCall ").removesuffix(">")
