"""One registration stream: a reader, a writer, and between them nothing on which anybody waits for a timer.

What piles up while a message is being written goes out together in the next one. Operations that have ended
without a reply here, as those do that are called directly, are gathered for a moment: their callers know. A
stream is used once; the link opens another after it. What each side has taken is told by counts over this one
stream: calls that came down, and answers that went up, which engines keep until the controller has them for
good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from enginery import _status
from enginery._engine import CallReply
from enginery._outcomes import STATES, outcome_of
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine_service.engine import Engine
    from engine_service.operation import Answer, Operation

logger = logging.getLogger(__name__)

METHOD = "/enginery.v1.ControllerService/RegisterEngine"
MAX_FRAMES = 256
"""Replies in one message, and operations that ended."""
MAX_BYTES = 512 << 10
"""Bytes of answers in one message, unless one alone is larger."""
PAUSE_BYTES = 64 << 20
PAUSE_REPLIES = 65_536
"""Unsent replies from which no further calls are read."""
BREAK_BYTES = 256 << 20
"""Bytes of unsent replies at which the stream is given up: nobody reads it."""
ACCEPT_CALLS = 1_024
ACCEPT_BYTES = 1 << 20
"""Calls, and bytes of their requests, whose acceptance is told even if nothing else is to be sent."""
MAX_KEPT = 16_384
"""Answers of each engine that wait to be sent, or to be acknowledged, without being replies that wait."""
GATHERING = 0.005
"""Seconds after which the controller is told of operations that ended without a reply here."""
SETTLED_AT_ONCE = 4_096  # acknowledged answers, so that the event loop is not kept

_SETTLING = frozenset(STATES) - {frame_pb2.OUTCOME_NOT_DELIVERED}
"""Outcomes that the controller keeps. Others tell of a call that was refused, perhaps under an id in use."""


class RegistrationStream:
    """The open stream and what is to go up on it. Not usable after `run` has returned."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: tuple[tuple[str, str], ...],
        receive: Callable[[engine_pb2.ControllerMessage], None],
        *,
        engine_count: int = 1,
    ) -> None:
        """Open the stream of so many engines; `receive` is called with each message that comes down."""
        open_stream: Any = channel.stream_stream(
            METHOD,
            request_serializer=engine_pb2.EngineMessage.SerializeToString,
            response_deserializer=None,  # gRPC would keep for itself what cannot be read
        )
        self._call: grpc.aio.StreamStreamCall[Any, bytes]
        self._call = open_stream(metadata=metadata)
        self._receive = receive
        self._pending = [engine_pb2.EngineMessage()]  # all but answers, which go with the last
        self._is_next_empty = True
        self._replies: deque[tuple[int, Engine | None, bytes, Answer] | engine_pb2.Goodbye] = deque()
        self._reply_bytes = 0
        # Those that have no room here are told on the next stream, if the engines still have them then.
        self._ended: deque[tuple[Engine, Operation]] = deque(maxlen=MAX_KEPT * engine_count)
        self._ended_waited = False
        self._is_gathering = False
        self._max_sent = MAX_KEPT * engine_count
        self._sent: deque[tuple[Engine, bytes] | None] = deque()  # what the controller may still acknowledge
        self._forgotten = 0  # how many left `_sent` at its beginning
        self._journaled = 0
        self._accepted = 0
        self._accepted_told = 0
        self._accepted_bytes = 0
        self._owes_acceptance = False
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._is_over = False
        self._is_finishing = False
        self.is_heard = False
        """Whether the controller took all that was sent until `finish`, and ended the stream itself."""
        self._is_cancelled = False

    def statistics(self) -> dict[str, int]:
        """Return how many calls came, and which answers wait: to be sent, or to be acknowledged."""
        return {
            "accepted_calls": self._accepted,
            "unsent_replies": len(self._replies),
            "unsent_reply_bytes": self._reply_bytes,
            "unsent_ended": len(self._ended),
            "unacknowledged": len(self._sent),
        }

    # ---- what is to be sent

    @property
    def next_message(self) -> engine_pb2.EngineMessage:
        """The message to add to; it goes out next but for full ones. Answers and goodbyes have other ways."""
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

    def reply(self, call_id: int, engine: Engine | None, operation_id: bytes, answer: Answer) -> None:
        """Send the answer of a call. On a stream that is over it is dropped: the call will be sent again.

        `operation_id` names the operation whose answer it is; it is empty for calls that are none.
        """
        if self._is_over:
            return
        self._replies.append((call_id, engine, operation_id, answer))
        if isinstance(answer, CallReply):
            self._reply_bytes += len(answer.response)
        if self._is_congested:
            self._drained.clear()
            if self._reply_bytes > BREAK_BYTES:
                logger.error("the controller does not read its replies: the stream is given up")
                self.cancel()
        self._wake.set()

    @property
    def _is_congested(self) -> bool:
        return self._reply_bytes > PAUSE_BYTES or len(self._replies) > PAUSE_REPLIES

    def operation_ended(self, engine: Engine, operation: Operation) -> None:
        """Tell the controller that an operation ended, unless the reply that was made last has told it."""
        if self._replies:
            last = self._replies[-1]
            if isinstance(last, tuple) and last[1] is engine and last[2] == operation.operation_id:
                return
        self.operations_ended(engine, (operation,))

    def operations_ended(self, engine: Engine, operations: Iterable[Operation]) -> None:
        """Tell the controller that operations ended, with their answers: as many in a message as it holds."""
        if not self._is_over:
            self._ended.extend((engine, operation) for operation in operations)
            if not self._is_gathering and self._ended:
                self._is_gathering = True
                asyncio.get_running_loop().call_later(GATHERING, self._gathered)
            if len(self._ended) >= MAX_FRAMES:
                self._wake.set()

    def _gathered(self) -> None:
        self._is_gathering = False
        self._wake.set()

    def goodbye(self, goodbye: engine_pb2.Goodbye) -> None:
        """Take leave of the controller for an engine, behind its replies."""
        if not self._is_over:
            self._replies.append(goodbye)
            self._wake.set()

    def finish(self) -> None:
        """Send what is left and end the stream."""
        self._is_finishing = True
        self._wake.set()

    def cancel(self) -> None:
        """End the stream at once."""
        self._is_cancelled = True
        self._call.cancel()

    # ---- counts

    def accept(self, count: int, size: int) -> None:
        """Note that so many calls, with so many bytes of requests, were accepted or answered.

        It is told with whatever goes up next, since a reply soon does.
        """
        self._accepted += count
        self._accepted_bytes += size
        if self._accepted - self._accepted_told > ACCEPT_CALLS or self._accepted_bytes > ACCEPT_BYTES:
            self._owes_acceptance = True
            self._wake.set()

    def acknowledge(self, count: int) -> None:
        """Settle the answers among the first `count` of this stream; PROTOCOL_ERROR if fewer were sent."""
        if count > self._forgotten + len(self._sent):
            sent = self._forgotten + len(self._sent)
            raise DeliveryError("PROTOCOL_ERROR", cause=f"{count} answers are acknowledged, {sent} were sent")
        is_settling = self._journaled > self._forgotten
        self._journaled = max(self._journaled, count)
        if not is_settling:
            self._settle()

    def _settle(self) -> None:
        settled: dict[Engine, list[bytes]] = {}
        for _ in range(min(SETTLED_AT_ONCE, self._journaled - self._forgotten)):
            entry = self._sent.popleft()
            self._forgotten += 1
            if entry is not None:
                settled.setdefault(entry[0], []).append(entry[1])
        for engine, operation_ids in settled.items():
            engine.settle(operation_ids)
        if self._journaled > self._forgotten:
            asyncio.get_running_loop().call_soon(self._settle)

    def _forget_sent(self) -> None:
        """Keep the bound while the controller's journal is stuck; the engines have bounds of their own."""
        while len(self._sent) > self._max_sent:
            self._sent.popleft()
            self._forgotten += 1

    # ---- the two tasks

    async def run(self) -> DeliveryError:
        """Serve the stream until it ends, and return why it did."""
        writer = asyncio.create_task(self._write(), name="registration stream writer")
        try:
            await self._read()
            self.is_heard = self._is_finishing
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
            self._ended.clear()
            self._call.cancel()
            self._wake.set()
            await asyncio.wait((writer,))
        return DeliveryError("CONTROLLER_LOST", cause="the registration stream ended")

    async def _read(self) -> None:
        while True:
            data = await self._call.read()
            if not isinstance(data, bytes):
                return
            self._receive(parse(engine_pb2.ControllerMessage, data))
            if not self._drained.is_set():
                await self._drained.wait()

    async def _write(self) -> None:
        try:
            # A failed write says nothing useful; the reader gets the true status.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                await self._write_all()
        except Exception:
            logger.exception("defect in what is sent to the controller: the stream is given up")
            self.cancel()
        self._drained.set()  # a reader that paused must learn that the stream is over

    async def _write_all(self) -> None:
        while not self._is_over:
            if self._replies or self._has_gathered or self._owes_acceptance or not self._is_next_empty:
                await self._call.write(self._take())
            elif self._is_finishing:
                await self._call.done_writing()
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    @property
    def _has_gathered(self) -> bool:
        is_due = not self._is_gathering or self._is_finishing or len(self._ended) >= MAX_FRAMES
        return is_due and bool(self._ended)

    def _take(self) -> engine_pb2.EngineMessage:
        """Return the next message. Fields are handled in order, so properties come before replies."""
        message = self._pending.pop(0)
        if not self._pending:
            self._pending.append(engine_pb2.EngineMessage())
            self._is_next_empty = True
            # Operations that ended have what room the replies leave, and after that a message of their own.
            room = MAX_BYTES if self._ended_waited else self._take_replies(message)
            if self._ended:
                self._take_ended(message, room)
            self._ended_waited = bool(self._ended) and not self._ended_waited
            self._forget_sent()
        if self._accepted != self._accepted_told:
            message.accepted_count = self._accepted_told = self._accepted
            self._accepted_bytes = 0
            self._owes_acceptance = False
        return message

    def _take_replies(self, message: engine_pb2.EngineMessage) -> int:
        """Add replies, and goodbyes behind them; return the bytes of room that is left."""
        room = MAX_BYTES
        for _ in range(min(MAX_FRAMES, len(self._replies))):
            entry = self._replies[0]
            if isinstance(entry, engine_pb2.Goodbye):
                message.goodbyes.append(entry)
                self._replies.popleft()
                continue
            call_id, engine, operation_id, answer = entry
            if isinstance(answer, CallReply):
                size, outcome = len(answer.response), answer.outcome
                if size > room and room < MAX_BYTES:
                    break
                room -= size
                self._reply_bytes -= size
                run_us = math.ceil(answer.run_time * 1e6)
                message.replies.add(call_id=call_id, outcome=outcome, run_us=run_us, response=answer.response)
            else:
                outcome = outcome_of(answer)
                message.replies.add(call_id=call_id, outcome=outcome, error=_status.to_bytes(answer))
            self._replies.popleft()
            if engine is not None and operation_id and outcome in _SETTLING:
                self._sent.append((engine, operation_id))
            else:
                self._sent.append(None)
        if not self._drained.is_set() and not self._is_congested:
            self._drained.set()
        return room

    def _take_ended(self, message: engine_pb2.EngineMessage, room: int) -> None:
        for _ in range(min(MAX_FRAMES, len(self._ended))):
            engine, operation = self._ended[0]
            answer = operation.answer
            if answer is not None:  # else it was released meanwhile
                size = len(answer.response) if isinstance(answer, CallReply) else 0
                if size > room and room < MAX_BYTES:
                    return
                room -= size
                ended = message.ended.add(
                    engine_id=engine.engine_id,
                    operation_id=operation.operation_id,
                    method=operation.method,
                    session_id=operation.session_id,
                    outcome=operation.outcome,
                )
                if isinstance(answer, CallReply):
                    ended.response = answer.response
                else:
                    ended.error = _status.to_bytes(answer)
                self._sent.append((engine, operation.operation_id))
            self._ended.popleft()
