"""EngineFromReference: makes a remote engine look like an engine, over the stream that its host opened.

A call that was sent, or could not be yet, waits here until its reply comes. When the stream is lost and the
engine comes back within its lease, all of them are sent again, in order and with the same operation ids; the
host never runs one twice and answers with the reply that it kept. A call whose caller has gone waits all the
same: the end of the waiting is not the end of the operation.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from controller_service import frames
from enginery._channel import MAX_MESSAGE
from enginery._engine import CallContext, CallReply, EngineBase, context_options
from enginery._reasons import DeliveryError
from enginery._status import from_bytes, to_bytes
from enginery.v1 import engine_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CALL_OVERHEAD = 512  # bytes that a waiting call costs beside its frame
_MAX_FRAME = MAX_MESSAGE - (16 << 10)  # a larger message would end the stream for every engine of the host


class Receiver(Protocol):
    """Whoever waits for replies."""

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Take a reply, whose `call_id` is the one that the receiver gave."""


class Link:
    """The controller's end of one registration stream, which several engines share."""

    def __init__(
        self, number: int, send: Callable[[bytes], None], end: Callable[[DeliveryError], None]
    ) -> None:
        """Take the stream's number, and how to send on it and end it."""
        self.number = number
        self.send = send
        self.end = end
        self.owners: dict[int, EngineFromReference] = {}
        """Whose call each call id on this stream is."""

    def answer(self, reply: frame_pb2.Reply) -> None:
        """Take a reply from the host; one that nobody waits for is ignored."""
        owner = self.owners.pop(reply.call_id, None)
        if owner is not None:
            owner.answer(reply)


@dataclass(slots=True)
class _Waiting:
    receiver: Receiver
    call_id: int  # as the receiver knows it
    fragment: bytes

    @property
    def cost(self) -> int:
        return len(self.fragment) + _CALL_OVERHEAD


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of one reference."""

    waiting_calls: int
    waiting_bytes: int
    is_connected: bool


class EngineFromReference(EngineBase):
    """The engine of `engine_id`, wherever it runs. Lives as long as the engine is registered."""

    def __init__(self, engine_id: int, *, call_ids: Iterator[int], waiting_limit: int) -> None:
        """Take where call ids come from, which all references of a controller share, and the bound in bytes."""
        self._engine_id = engine_id
        self._call_ids = call_ids
        self._limit = waiting_limit
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_bytes = 0
        self._link: Link | None = None
        self._lost: DeliveryError | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"EngineFromReference({self.engine_id}, {self.statistics()})"

    @property
    def engine_id(self) -> int:
        """Its id."""
        return self._engine_id

    def statistics(self) -> Statistics:
        """Return counts."""
        return Statistics(len(self._waiting), self._waiting_bytes, self._link is not None)

    # As callers see it

    async def call(self, method: int, request: bytes, context: CallContext) -> CallReply:
        """Call a method; see EngineBase. While the engine is away the call waits."""
        receiver = _Future()
        call = frame_pb2.Call(
            engine_id=self.engine_id,
            method=method,  # type: ignore[arg-type]  # a number that this controller may not know
            operation_id=context.operation_id,
            session_id=context.session_id,
            options=context_options(context),
            request=request,
        )
        self.submit(call, receiver)
        reply = await receiver.future
        if reply.outcome == frame_pb2.OUTCOME_NOT_DELIVERED:
            raise from_bytes(reply.error)
        return CallReply(reply.outcome, reply.response)

    def submit(self, call: frame_pb2.Call, receiver: Receiver) -> None:
        """Send `call`, which is changed, and have its reply delivered. An error is delivered as a reply too."""
        error = self._lost
        given = call.call_id
        call.call_id = number = next(self._call_ids)
        waiting = _Waiting(receiver, given, frames.embed(frames.CALL, call.SerializeToString()))
        if error is None:
            error = self._refuse(waiting)
        if error is not None:
            receiver.deliver(undelivered(given, error))
            return
        self._waiting[number] = waiting
        self._waiting_bytes += waiting.cost
        if self._link is not None:
            self._link.owners[number] = self
            self._link.send(waiting.fragment)

    async def offer(self, transfer_id: str, method: int) -> None:
        """Ask the host to open a transfer, as soon as the engine is connected; DeliveryError if it is lost."""
        while self._link is None:
            if self._lost is not None:
                raise self._lost
            self._changed.clear()
            await self._changed.wait()
        transfer = engine_pb2.TransferOffer(
            transfer_id=transfer_id,
            engine_id=self.engine_id,
            method=method,  # type: ignore[arg-type]
        )
        self._link.send(engine_pb2.ControllerMessage(transfers=(transfer,)).SerializeToString())

    def dismiss(self, reason: str) -> None:
        """Ask the engine to stop; nothing happens while it is away."""
        if self._link is not None:
            dismissal = engine_pb2.Dismissal(engine_id=self.engine_id, reason=reason)
            self._link.send(engine_pb2.ControllerMessage(dismissals=(dismissal,)).SerializeToString())

    # As the registration stream sees it

    def attach(self, link: Link) -> None:
        """Use `link` from now on, and send again what has no reply yet."""
        self._link = link
        for number, waiting in self._waiting.items():
            link.owners[number] = self
            link.send(waiting.fragment)
        self._changed.set()

    def detach(self) -> None:
        """The stream is lost; calls wait."""
        if self._link is not None:
            for number in self._waiting:
                self._link.owners.pop(number, None)
            self._link = None

    def answer(self, reply: frame_pb2.Reply) -> None:
        """Take the reply to a call of this reference."""
        waiting = self._waiting.pop(reply.call_id)
        self._waiting_bytes -= waiting.cost
        reply.call_id = waiting.call_id
        waiting.receiver.deliver(reply)

    def lose(self, error: DeliveryError) -> None:
        """The engine is gone: every call that waits, and every later one, fails with `error`."""
        self.detach()
        self._lost = error
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        for call in waiting.values():
            call.receiver.deliver(undelivered(call.call_id, error))
        self._changed.set()

    def _refuse(self, waiting: _Waiting) -> DeliveryError | None:
        size = len(waiting.fragment)
        if size > _MAX_FRAME:
            option = "the contract for one call: send larger values by Upload"
            return DeliveryError("VALUE_TOO_LARGE", size=size, limit=_MAX_FRAME, option=option)
        if self._waiting_bytes + waiting.cost <= self._limit:
            return None
        if self._link is None:
            return DeliveryError("ENGINE_AWAY", engine_id=self.engine_id)
        queue = f"{len(self._waiting)} calls, {self._waiting_bytes} bytes"
        option = "the controller's --waiting-limit"
        return DeliveryError("QUEUE_FULL", engine_id=self.engine_id, size=queue, option=option)


class _Future:
    """The receiver of one reply, for a caller that waits."""

    def __init__(self) -> None:
        self.future: asyncio.Future[frame_pb2.Reply] = asyncio.get_running_loop().create_future()

    def deliver(self, reply: frame_pb2.Reply) -> None:
        if not self.future.done():  # its caller may have stopped waiting
            self.future.set_result(reply)


def undelivered(call_id: int, error: DeliveryError) -> frame_pb2.Reply:
    """Return the reply to a call that failed with `error`."""
    return frame_pb2.Reply(call_id=call_id, outcome=frame_pb2.OUTCOME_NOT_DELIVERED, error=to_bytes(error))
