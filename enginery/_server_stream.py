"""A server's end of one long-lived stream: one reader, one writer, any number of senders."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from enginery._reasons import DeliveryError
from enginery._status import grpc_code, to_proto, trailers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import grpc.aio

logger = logging.getLogger(__name__)

MAX_BATCH_FRAGMENTS = 256
MAX_BATCH_BYTES = 512 << 10
_LAST_WRITE = 1.0  # seconds that a write gets to finish when the stream ends by an error


class Stream:
    """Sends serialized fragments of messages, in order and in batches, and ends for everybody at once.

    A write begins as soon as there is something to send; what is sent while it lasts goes out with the next.
    `async with` starts the writer, and at the end waits until everything is written. If more than `limit` bytes
    wait (None: the senders bound it), the stream ends with SLOW_READER. `on_over` is called when it has ended
    otherwise than by its reader. Bound to the running loop.
    """

    def __init__(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        *,
        limit: int | None,
        on_over: Callable[[], None] | None = None,
    ) -> None:
        """Serve the stream of `context`, whose handler takes and gives raw bytes."""
        self._context = context
        self._limit = limit
        self._on_over = on_over
        self._fragments: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._last: DeliveryError | None = None
        self._writer: asyncio.Task[None] | None = None
        self._ender: asyncio.Task[None] | None = None
        self._is_over = False
        self._over = asyncio.Event()

    def __repr__(self) -> str:
        """Show what waits."""
        state = "over" if self.is_over else "open"
        return f"Stream({state}, fragments={len(self._fragments)}, bytes={self._waiting_bytes})"

    @property
    def is_over(self) -> bool:
        """Whether it has ended otherwise than by its reader: nothing can be sent any more."""
        return self._is_over

    def send(self, fragment: bytes) -> None:
        """Queue a serialized message; nothing happens once the stream is over."""
        if self._is_over:
            return
        if not self._fragments:
            self._wake.set()
        self._fragments.append(fragment)
        self._waiting_bytes += len(fragment)
        if self._limit is not None and self._waiting_bytes > self._limit:
            self.end(DeliveryError("SLOW_READER", size=self._waiting_bytes))

    def end(self, error: DeliveryError) -> None:
        """End the stream with the status of `error`, from anywhere; nothing happens if it ends already."""
        if not self.is_over and not self._closing:
            self._stop()
            self._ender = asyncio.create_task(self._abort(error))

    def end_behind(self, error: DeliveryError) -> None:
        """End the stream with the status of `error` when what was sent so far is written."""
        self._last = error
        self._wake.set()

    async def read_all(self, receive: Callable[[bytes], None]) -> None:
        """Pass on every message until the peer sends no more."""
        while isinstance(data := await self._context.read(), bytes):
            receive(data)

    async def until_over(self) -> None:
        """Wait for the end, on a stream that nobody reads."""
        await self._over.wait()

    async def __aenter__(self) -> Self:
        """Start the writer."""
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Write what waits, or after an error drop it, and end the tasks."""
        assert self._writer is not None
        self._closing = True
        if error is not None:
            self._stop()
        self._wake.set()
        if kind is asyncio.CancelledError:  # the rpc is dead: nothing can be written
            self._writer.cancel()
            if self._ender is not None:
                self._ender.cancel()
        elif error is not None:
            await asyncio.wait({self._writer}, timeout=_LAST_WRITE)
            self._writer.cancel()
        tasks = [task for task in (self._writer, self._ender) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop(self) -> None:
        if not self.is_over:
            self._is_over = True
            self._over.set()
            self._fragments.clear()
            self._waiting_bytes = 0
            if self._on_over is not None:
                self._on_over()

    async def _abort(self, error: DeliveryError) -> None:
        # The reader's read() raises grpc's AbortError and so ends the handler.
        await self._context.abort(grpc_code(error), to_proto(error).message, trailers(error))

    async def _write(self) -> None:
        try:
            while True:
                while self._fragments:
                    await self._context.write(self._take())
                if self._closing:
                    return
                if self._last is not None:
                    self.end(self._last)
                    return
                self._wake.clear()
                await self._wake.wait()
        except Exception as error:  # a dead stream shows itself by many types; the reader learns its status
            logger.debug("a stream can no longer be written: %r", error)
            self._stop()

    def _take(self) -> bytes:
        fragments = self._fragments
        batch = [fragments.popleft()]
        size = len(batch[0])
        while fragments and len(batch) < MAX_BATCH_FRAGMENTS and size + len(fragments[0]) <= MAX_BATCH_BYTES:
            batch.append(fragments.popleft())
            size += len(batch[-1])
        self._waiting_bytes -= size
        return batch[0] if len(batch) == 1 else b"".join(batch)
