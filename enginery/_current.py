"""The engine on which this code runs: `get_engine()`.

The kernel puts its engine here when it starts; anywhere else there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping


class CurrentEngine(Protocol):
    """The engine, as code that runs on it sees it."""

    @property
    def id(self) -> int:
        """Its id; -1 while it is not registered."""

    @property
    def properties(self) -> MutableMapping[str, object]:
        """Its properties: text keys, values copied in and out, InvalidProperty for what cannot be pickled."""

    def progress(self, fraction: float, text: str = "") -> None:
        """Report how much of the running operation is done, from 0 to 1, and a text of at most 200 characters.

        Cheap to call often: only about 20 reports a second are passed on. ValueError if `fraction` is no number
        from 0 to 1.
        """

    def display(self, obj: object, metadata: Mapping[str, object] | None = None) -> None:
        """Show `obj` in every form that it offers (`_repr_html_` and so on, and its text).

        ValueTooLarge once all that one operation displays is over 16 MiB.
        """


_engine: CurrentEngine | None = None


def get_engine() -> CurrentEngine:
    """Return the engine on which the caller runs; RuntimeError anywhere else."""
    if _engine is None:
        raise RuntimeError("get_engine() works in code that runs on an engine, and this is none")
    return _engine


def set_engine(engine: CurrentEngine) -> None:
    """Say which engine this process is. Called once, by the kernel."""
    global _engine  # one engine a process
    _engine = engine
