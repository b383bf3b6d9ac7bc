"""Following several operations at once, as their events come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from enginery.errors import EngineryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery.operation import Operation
    from enginery.operations import Event, EventStream

TICK = 0.1
"""Seconds that a step waits at most."""


class Following:
    """The events of several operations, from their beginning to their outcomes."""

    def __init__(self, operations: Sequence[Operation[Any]]) -> None:
        """Begin to follow."""
        self._streams: dict[int, EventStream] = {
            position: operation.events() for position, operation in enumerate(operations)
        }

    @property
    def goes_on(self) -> bool:
        """Whether an operation has not ended."""
        return bool(self._streams)

    def step(self) -> list[tuple[int, Event]]:
        """Return what has come, each event with the position of its operation; waits a tick for it.

        What keeps an operation from being followed ends this for it: its result says what is wrong.
        """
        found = self._take()
        if not found and self._streams:
            streams = list(self._streams.values())
            streams[0]._thread.run(_any_filled(streams))
            found = self._take()
        return found

    def _take(self) -> list[tuple[int, Event]]:
        found: list[tuple[int, Event]] = []
        for position, stream in list(self._streams.items()):
            try:
                while (event := stream._next()) is not None:
                    found.append((position, event))
                ended = stream._ended
            except EngineryError:
                ended = True
            if ended:
                del self._streams[position]
        return found

    def close(self) -> None:
        """Stop following; nothing changes for the operations."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


async def _any_filled(streams: list[EventStream]) -> None:
    """Wait until one of the streams has something, a tick at most."""
    waits = [asyncio.ensure_future(stream._feed.filled()) for stream in streams]
    try:
        await asyncio.wait(waits, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
