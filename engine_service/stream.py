"""One registration stream: a reader, a writer, and between them nothing that waits for a timer.

What piles up while a message is being written goes out together in the next one. A stream is used once; the
link opens another after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from enginery import _status
from enginery._engine import CallReply
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine_service.recent import Answer

logger = logging.getLogger(__name__)

METHOD = "/enginery.v1.ControllerService/RegisterEngine"
MAX_FRAMES = 256
"""Replies in one message."""
MAX_BYTES = 512 << 10
"""Bytes of replies in one message, unless one alone is larger."""
PAUSE_BYTES = 64 << 20
"""Bytes of unsent replies from which no further calls are read."""
BREAK_BYTES = 256 << 20
"""Bytes of unsent replies at which the stream is given up: nobody reads it."""


class RegistrationStream:
    """The open stream and what is to go up on it. Not usable after `run` has returned."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: tuple[tuple[str, str], ...],
        receive: Callable[[engine_pb2.ControllerMessage], None],
    ) -> None:
        """Open the stream; `receive` is called with each message that comes down."""
        open_stream = channel.stream_stream(
            METHOD,
            request_serializer=engine_pb2.EngineMessage.SerializeToString,
            response_deserializer=engine_pb2.ControllerMessage.FromString,
        )
        self._call: grpc.aio.StreamStreamCall[Any, engine_pb2.ControllerMessage]
        self._call = open_stream(metadata=metadata)
        self._receive = receive
        self._pending = [engine_pb2.EngineMessage()]  # all but replies, which go with the last
        self._is_next_empty = True
        self._replies: deque[tuple[int, Answer]] = deque()
        self._reply_bytes = 0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._is_over = False
        self._is_finishing = False
        self._is_cancelled = False

    # ---- what is to be sent

    @property
    def next_message(self) -> engine_pb2.EngineMessage:
        """The message to add to; it goes out next but for full ones. Replies have a way of their own."""
        self._is_next_empty = False
        self._wake.set()
        if self._pending[-1].ByteSize() > MAX_BYTES:
            self._pending.append(engine_pb2.EngineMessage())
        return self._pending[-1]

    def change_properties(self, message: engine_pb2.PropertiesChanged) -> None:
        """Send an engine's properties, in the place of older ones that were not sent yet: the last count."""
        for pending in self._pending:
            changed = pending.properties_changed
            kept = [other for other in changed if other.engine_id != message.engine_id]
            if len(kept) < len(changed):
                del changed[:]
                changed.extend(kept)
        self.next_message.properties_changed.append(message)

    def reply(self, call_id: int, answer: Answer) -> None:
        """Send the answer of a call. On a stream that is over it is dropped: the call will be sent again."""
        if self._is_over:
            return
        self._replies.append((call_id, answer))
        if isinstance(answer, CallReply):
            self._reply_bytes += len(answer.response)
            if self._reply_bytes > PAUSE_BYTES:
                self._drained.clear()
                if self._reply_bytes > BREAK_BYTES:
                    logger.error("the controller does not read its replies: the stream is given up")
                    self.cancel()
        self._wake.set()

    def finish(self) -> None:
        """Send what is left and end the stream."""
        self._is_finishing = True
        self._wake.set()

    def cancel(self) -> None:
        """End the stream at once."""
        self._is_cancelled = True
        self._call.cancel()

    # ---- the two tasks

    async def run(self) -> DeliveryError:
        """Serve the stream until it ends, and return why it did."""
        writer = asyncio.create_task(self._write(), name="registration stream writer")
        try:
            await self._read()
        except grpc.aio.AioRpcError as error:
            return _status.from_rpc(error)
        except asyncio.CancelledError:
            if not self._is_cancelled:
                raise
        except DeliveryError as error:
            return error
        finally:
            self._is_over = True
            self._replies.clear()
            self._call.cancel()
            self._wake.set()
            await asyncio.wait((writer,))
        return DeliveryError("CONTROLLER_LOST", cause="the registration stream ended")

    async def _read(self) -> None:
        while True:
            message = await self._call.read()
            if not isinstance(message, engine_pb2.ControllerMessage):
                return
            self._receive(message)
            if not self._drained.is_set():
                await self._drained.wait()

    async def _write(self) -> None:
        # A failed write says nothing useful; the reader gets the true status.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            while not self._is_over:
                if self._replies or not self._is_next_empty:
                    await self._call.write(self._take())
                elif self._is_finishing:
                    await self._call.done_writing()
                    return
                else:
                    self._wake.clear()
                    await self._wake.wait()
        self._drained.set()  # a reader that paused must learn that the stream is over

    def _take(self) -> engine_pb2.EngineMessage:
        """Return the next message. Fields are handled in order, so properties come before replies."""
        message = self._pending.pop(0)
        if self._pending:
            return message
        self._pending.append(engine_pb2.EngineMessage())
        self._is_next_empty = True
        size = 0
        for _ in range(min(MAX_FRAMES, len(self._replies))):
            call_id, answer = self._replies[0]
            if isinstance(answer, CallReply):
                if size and size + len(answer.response) > MAX_BYTES:
                    break
                size += len(answer.response)
                message.replies.add(call_id=call_id, outcome=answer.outcome, response=answer.response)
            else:
                data = _status.to_bytes(answer)
                message.replies.add(call_id=call_id, outcome=frame_pb2.OUTCOME_NOT_DELIVERED, error=data)
            self._replies.popleft()
        self._reply_bytes -= size
        if not self._drained.is_set() and self._reply_bytes <= PAUSE_BYTES:
            self._drained.set()
        return message
