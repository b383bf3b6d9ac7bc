"""A stream without a network: what is sent is under way until delivered, and the ends break one by one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_END = object()


class _AbortedError(Exception):
    """As gRPC's: the handler of an rpc that was aborted ends by it."""


class Wire:
    """One stream between a caller and a handler.

    Each direction keeps its order. The end of one side is news to the other, which comes behind what is under
    way: meanwhile the stream is half open.
    """

    def __init__(self, handler: Callable[[None, Any], Awaitable[object]]) -> None:
        """Have `handler` serve the stream; it begins with the next turn of the loop."""
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.is_calling = True
        """Whether the caller's side is open."""
        self.to_handler: asyncio.Queue[Any] = asyncio.Queue()
        self.to_caller: asyncio.Queue[Any] = asyncio.Queue()
        self._handler = asyncio.create_task(self._serve(handler))

    async def _serve(self, handler: Callable[[None, Any], Awaitable[object]]) -> None:
        with contextlib.suppress(DeliveryError, _AbortedError):  # as gRPC makes a status of them
            await handler(None, _Context(self))

    @property
    def is_served(self) -> bool:
        """Whether the handler's side is open."""
        return not self._handler.done()

    def deliver_up(self) -> bool:
        """Let the next message reach the handler, or the news of the end; return whether there was one."""
        if not self.is_served:
            return False
        if self.up:
            self.to_handler.put_nowait(self.up.popleft())
            return True
        if not self.is_calling:
            self._handler.cancel()
            return True
        return False

    def deliver_down(self) -> bool:
        """Let the next message reach the caller, or the news of the end; return whether there was one."""
        if not self.is_calling:
            return False
        if self.down:
            self.to_caller.put_nowait(self.down.popleft())
            return True
        if not self.is_served:
            self.break_caller()
            return True
        return False

    def break_caller(self) -> None:
        """End the caller's side; what is under way to it is lost."""
        if self.is_calling:
            self.is_calling = False
            self.down.clear()
            self.to_caller.put_nowait(_END)

    async def break_handler(self) -> None:
        """End the handler's side; what is under way to it is lost."""
        self.up.clear()
        self._handler.cancel()
        await asyncio.gather(self._handler, return_exceptions=True)


class _Context:
    """The handler's end, as gRPC's context."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    async def read(self) -> Any:
        data = await self._wire.to_handler.get()
        if data is _END:
            raise _AbortedError
        return data

    async def write(self, data: bytes) -> None:
        self._wire.down.append(data)

    async def abort(self, *_: object) -> None:
        self._wire.to_handler.put_nowait(_END)
        raise _AbortedError


class Channel:
    """The caller's end, as far as a registration stream needs gRPC's channel."""

    def __init__(self, wire: Wire) -> None:
        """Call over `wire`, once."""
        self._wire = wire

    def stream_stream(
        self, _: str, request_serializer: Callable[[Any], bytes], response_deserializer: None
    ) -> Callable[..., _Call]:
        """Return what makes the call."""
        return lambda metadata: _Call(self._wire, request_serializer)

    async def close(self) -> None:
        """End the call."""
        self._wire.break_caller()


class _Call:
    def __init__(self, wire: Wire, serialize: Callable[[Any], bytes]) -> None:
        self._wire = wire
        self._serialize = serialize

    async def read(self) -> Any:
        data = await self._wire.to_caller.get()
        if data is _END:
            raise DeliveryError("CONTROLLER_LOST", cause="the wire broke")
        return data

    async def write(self, message: Any) -> None:
        if not self._wire.is_calling:
            raise asyncio.InvalidStateError
        self._wire.up.append(self._serialize(message))

    async def done_writing(self) -> None:
        """Nothing follows, which is no news here."""

    def cancel(self) -> None:
        self._wire.break_caller()
