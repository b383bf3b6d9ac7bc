"""Options that hold for a while: `with view.options(timeout=5): ...`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_entered: ContextVar[tuple[tuple[Scoped, Scoped], ...]] = ContextVar("enginery_options", default=())
# Pairs of an object and the one whose options it has meanwhile, the innermost last. A context variable, so
# that other threads and coroutines that use the same object do not see it.


class Scoped:
    """An object with options, and what its `options` method returns: the same with other options.

    As a context manager the latter lends its options to the former: within the block both have them.
    """

    _origin: Self | None = None  # the object whose `options` made this one

    def _in_force(self) -> Self:
        """Return the object whose options hold for calls of this one here and now; mostly itself."""
        for origin, other in reversed(_entered.get()):
            if origin is self:
                return other  # type: ignore[return-value]  # made by its `options`
        return self

    def __enter__(self) -> Self:
        """Let the object whose `options` made this one have these options, in this thread or coroutine."""
        if self._origin is None:
            raise TypeError(f"{self!r} has no options of its own to enter: `with ....options(timeout=5):`")
        _entered.set((*_entered.get(), (self._origin, self)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End that."""
        entered = list(_entered.get())
        place = max(index for index, (_, other) in enumerate(entered) if other is self)
        del entered[place]
        _entered.set(tuple(entered))
