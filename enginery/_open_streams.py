"""All open streams of a server, so that one that stops can end them with a reason."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from enginery._reasons import DeliveryError
    from enginery._server_stream import Stream


class OpenStreams:
    """The streams that are open now."""

    def __init__(self) -> None:
        """Start with none."""
        self._streams: set[Stream] = set()
        self._closed: DeliveryError | None = None

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        """Return those that are open now."""
        return iter(list(self._streams))

    @contextlib.asynccontextmanager
    async def opened(self, stream: Stream) -> AsyncIterator[Stream]:
        """Count `stream` in while it is entered."""
        if self._closed is not None:
            raise self._closed
        self._streams.add(stream)
        try:
            async with stream:
                yield stream
        finally:
            self._streams.discard(stream)

    def end_all(self, error: DeliveryError) -> None:
        """End every stream, and refuse new ones, with `error`."""
        self._closed = error
        for stream in self:
            stream.end(error)
