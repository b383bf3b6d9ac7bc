"""Observers of engines: told of every event, dropped when they raise, so that one harms nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from controller_service.events import EngineEvent, EventKind

logger = logging.getLogger(__name__)

Callback = Callable[..., Any]


class Observers:
    """Whom to tell, in the order in which they came. An observer is known by the callback that was given."""

    def __init__(self) -> None:
        """Start with none."""
        self._observers: dict[Callback, Callable[[EngineEvent], Any]] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._observers)

    def subscribe(self, callback: Callable[[EngineEvent], Any]) -> None:
        """Call `callback` with every event from now on."""
        self._observers[callback] = callback

    def on_register(self, callback: Callback, *, include_id: bool = False) -> None:
        """Call `callback` whenever an engine is registered, with its id if `include_id`."""
        self._observers[callback] = _only(EventKind.REGISTERED, callback, include_id)

    def on_unregister(self, callback: Callback, *, include_id: bool = False) -> None:
        """Call `callback` whenever an engine is unregistered, with its id if `include_id`."""
        self._observers[callback] = _only(EventKind.GONE, callback, include_id)

    def once_registered(self, count: Callable[[], int], n: int, callback: Callable[[], Any]) -> None:
        """Call `callback` once: as soon as `count()` reaches `n`, at once if it has."""
        if count() >= n:
            callback()
            return

        def observe(event: EngineEvent) -> None:
            if event.kind is EventKind.REGISTERED and count() >= n:
                self.remove(callback)
                callback()

        self._observers[callback] = observe

    def remove(self, callback: Callback) -> None:
        """Forget `callback`; one that is unknown, or was dropped, is ignored."""
        self._observers.pop(callback, None)

    def tell(self, event: EngineEvent) -> None:
        """Call everybody who is here now."""
        for callback, observe in list(self._observers.items()):
            try:
                observe(event)
            except Exception:
                logger.exception("an observer of engines raised, and is dropped: %r", callback)
                self.remove(callback)


def _only(kind: EventKind, callback: Callback, include_id: bool) -> Callable[[EngineEvent], Any]:
    def observe(event: EngineEvent) -> None:
        if event.kind is kind:
            callback(event.engine.engine_id) if include_id else callback()

    return observe
