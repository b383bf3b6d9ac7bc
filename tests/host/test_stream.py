"""The registration stream alone: what goes up in which order, what is counted, and what is bounded."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from engine_service import stream as stream_module
from engine_service.stream import RegistrationStream
from enginery import _status
from enginery._channel import open_channel
from enginery._engine import CallReply
from enginery._outcomes import outcome_of
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2
from tests.host.fakes import FakeStream, running_controller, until
from tests.machines.wire import Channel, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine_service.operation import Answer

OK = CallReply(frame_pb2.OUTCOME_OK, b"fine")
LOST = DeliveryError("KERNEL_DIED", engine_id=3)
REFUSED = DeliveryError("OPERATION_EXISTS", operation_id="x")


@dataclass(eq=False)
class SettlingEngine:
    """All that the stream asks of an engine."""

    engine_id: int = 3
    settled: list[bytes] = field(default_factory=list)

    def settle(self, operation_ids: list[bytes]) -> None:
        self.settled += operation_ids


@dataclass(eq=False)
class EndedOperation:
    """All that the stream asks of an operation."""

    operation_id: bytes
    answer: Answer | None = OK
    session_id: bytes = b"sessions"
    method: int = frame_pb2.METHOD_EXECUTE

    @property
    def outcome(self) -> int:
        assert self.answer is not None
        return self.answer.outcome if isinstance(self.answer, CallReply) else outcome_of(self.answer)


class Opened:
    """An open stream, its two ends."""

    def __init__(self, stream: RegistrationStream, far: FakeStream) -> None:
        self.stream: Any = stream  # takes the fakes above
        self.far = far

    async def receive(self, count: int) -> list[engine_pb2.EngineMessage]:
        """Return messages until so many answers have come in them."""
        messages: list[engine_pb2.EngineMessage] = []
        while sum(len(message.replies) + len(message.ended) for message in messages) < count:
            messages.append(await self.far.receive())
        return messages


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Opened]:
    """Open a stream; acknowledgements that come down go to it."""
    async with running_controller() as (controller, info), open_channel(info) as channel:

        def receive(message: engine_pb2.ControllerMessage) -> None:
            stream.acknowledge(message.journaled_count)

        stream = RegistrationStream(channel, info.metadata, receive)
        task = asyncio.create_task(stream.run())
        far = await controller.stream()
        try:
            yield Opened(stream, far)
        finally:
            far.end()
            await task


async def test_acceptance_is_told_with_what_goes_up_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. No message for it alone. 2. Unless there are many calls, or large ones, that nobody answers soon."""
    monkeypatch.setattr(stream_module, "ACCEPT_CALLS", 10)
    async with opened() as pair:
        stream = pair.stream
        stream.accept(4, 100)
        assert not stream._wake.is_set()
        stream.reply(1, None, b"", OK)
        assert (await pair.far.receive()).accepted_count == 4
        stream.reply(2, None, b"", OK)
        assert (await pair.far.receive()).accepted_count == 0, "no news"
        stream.accept(11, 100)
        assert (await pair.far.receive()).accepted_count == 15
        stream.accept(1, 2 << 20)
        assert (await pair.far.receive()).accepted_count == 16


async def test_acknowledged_answers_are_settled() -> None:
    """Those of operations, in the order of sending, replies before what ended; refusals settle nothing."""
    async with opened() as pair:
        stream, engine = pair.stream, SettlingEngine()
        stream.reply(1, engine, b"one", OK)
        stream.reply(2, engine, b"", OK)  # not an operation's answer
        stream.reply(3, engine, b"in use", REFUSED)
        stream.reply(4, engine, b"two", LOST)
        stream.operation_ended(engine, EndedOperation(b"three"))
        (message,) = await pair.receive(5)
        assert [reply.outcome for reply in message.replies] == [
            frame_pb2.OUTCOME_OK,
            frame_pb2.OUTCOME_OK,
            frame_pb2.OUTCOME_NOT_DELIVERED,
            frame_pb2.OUTCOME_LOST,
        ]
        (ended,) = message.ended
        assert (ended.engine_id, ended.operation_id, ended.session_id) == (3, b"three", b"sessions")
        assert (ended.method, ended.outcome) == (frame_pb2.METHOD_EXECUTE, frame_pb2.OUTCOME_OK)
        assert ended.response == b"fine"
        pair.far.send(journaled_count=3)
        await until(lambda: engine.settled == [b"one"])
        pair.far.send(journaled_count=5)
        await until(lambda: engine.settled == [b"one", b"two", b"three"])
        assert stream.statistics()["unacknowledged"] == 0


async def test_many_acknowledgements_do_not_keep_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are settled a part at a time, once each, whatever comes meanwhile."""
    monkeypatch.setattr(stream_module, "SETTLED_AT_ONCE", 10)
    async with opened() as pair:
        stream, engine = pair.stream, SettlingEngine()
        ids = [bytes([number]) for number in range(35)]
        for operation_id in ids:
            stream.reply(1, engine, operation_id, OK)
        await pair.receive(35)
        stream.acknowledge(30)
        assert engine.settled == ids[:10]
        stream.acknowledge(35)
        assert engine.settled == ids[:10]
        await until(lambda: len(engine.settled) == 35)
        assert engine.settled == ids


async def test_an_acknowledgement_of_what_was_not_sent_breaks_the_protocol() -> None:
    """The stream ends: counts that differ would settle what nobody has."""
    async with opened() as pair:
        with pytest.raises(DeliveryError, match="2 answers are acknowledged, 0 were sent"):
            pair.stream.acknowledge(2)


async def test_an_operation_is_told_once() -> None:
    """1. Not if its reply has just gone out. 2. But if the last reply is another engine's, or a Submit's."""
    async with opened() as pair:
        stream, engine, other = pair.stream, SettlingEngine(), SettlingEngine(4)
        stream.reply(1, engine, b"one", OK)
        stream.operation_ended(engine, EndedOperation(b"one"))
        stream.operation_ended(other, EndedOperation(b"one"))
        stream.reply(2, engine, b"", OK)
        stream.operation_ended(engine, EndedOperation(b"two"))
        (message,) = await pair.receive(4)
        assert [(ended.engine_id, ended.operation_id) for ended in message.ended] == [(4, b"one"), (3, b"two")]


async def test_what_was_called_directly_is_told_together() -> None:
    """Nobody waits for it: what ends within a moment goes in one message, at once if a reply goes up."""
    async with opened() as pair:
        stream, engine = pair.stream, SettlingEngine()
        stream.operation_ended(engine, EndedOperation(b"one"))
        await asyncio.sleep(0)
        stream.operation_ended(engine, EndedOperation(b"two"))
        (message,) = await pair.receive(2)
        assert [ended.operation_id for ended in message.ended] == [b"one", b"two"]
        stream.operation_ended(engine, EndedOperation(b"three"))
        stream.reply(1, engine, b"four", OK)
        (message,) = await pair.receive(2)
        assert (len(message.ended), len(message.replies)) == (1, 1)


async def test_a_released_operation_is_not_told() -> None:
    """Its answer is gone; what ended with an error tells that."""
    async with opened() as pair:
        operations = [EndedOperation(b"one", None), EndedOperation(b"two", LOST)]
        pair.stream.operations_ended(SettlingEngine(), operations)
        (message,) = await pair.receive(1)
        (ended,) = message.ended
        assert (ended.operation_id, ended.outcome) == (b"two", frame_pb2.OUTCOME_LOST)
        assert _status.from_bytes(ended.error).reason == "KERNEL_DIED"


async def test_replies_and_what_ended_do_not_keep_each_other_waiting() -> None:
    """After a return there may be much of both: they share messages, or take turns, and all are counted."""
    large = CallReply(frame_pb2.OUTCOME_OK, b"x" * 400_000)
    async with opened() as pair:
        stream, engine = pair.stream, SettlingEngine()
        replied = [b"r%d" % number for number in range(8)]
        ended = [b"e%d" % number for number in range(8)]
        stream.operations_ended(engine, [EndedOperation(operation_id, large) for operation_id in ended])
        for operation_id in replied:
            stream.reply(1, engine, operation_id, large)
        messages = await pair.receive(16)
        assert max(message.ByteSize() for message in messages) < 1 << 20
        halfway = messages[: len(messages) // 2]
        assert sum(len(message.replies) for message in halfway) >= 3
        assert sum(len(message.ended) for message in halfway) >= 3
        stream.acknowledge(16)
        assert sorted(engine.settled) == sorted(replied + ended)


async def test_goodbye_comes_behind_all_replies() -> None:
    """However many wait: an engine that is gone has no callers any more."""
    async with opened() as pair:
        stream = pair.stream
        for number in range(600):
            stream.reply(number, SettlingEngine(), b"", DeliveryError("ENGINE_STOPPED", engine_id=3))
        stream.goodbye(engine_pb2.Goodbye(engine_id=3, reason="bye"))
        messages = await pair.receive(600)
        assert [len(message.goodbyes) for message in messages] == [0] * (len(messages) - 1) + [1]


async def test_what_is_never_acknowledged_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller whose journal is stuck costs a bounded number of entries, and counts stay true."""
    monkeypatch.setattr(stream_module, "MAX_KEPT", 10)
    async with opened() as pair:
        stream, engine = pair.stream, SettlingEngine()
        for number in range(25):
            stream.reply(number, engine, bytes([number]), OK)
        await pair.receive(25)
        assert stream.statistics()["unacknowledged"] == 10
        stream.acknowledge(12)
        assert engine.settled == []
        stream.acknowledge(17)
        assert engine.settled == [b"\x0f", b"\x10"]
        stream.operations_ended(engine, [EndedOperation(bytes([number])) for number in range(25)])
        assert stream.statistics()["unsent_ended"] == 10


async def test_many_small_replies_pause_the_reading_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is bounded like their bytes."""
    monkeypatch.setattr(stream_module, "PAUSE_REPLIES", 100)
    async with opened() as pair:
        stream = pair.stream
        for number in range(101):
            stream.reply(number, None, b"", REFUSED)
        assert not stream._drained.is_set()
        await pair.receive(101)
        await until(stream._drained.is_set)
        assert stream.statistics()["unsent_replies"] == 0


async def test_what_cannot_be_read_ends_the_stream_by_its_name() -> None:
    """Bytes that are no message of the contract: the host says so, and connects again."""

    async def silent(_: object, context: Any) -> None:
        await context.read()

    wire = Wire(silent)
    stream = RegistrationStream(Channel(wire), (), lambda message: None)  # type: ignore[arg-type]
    running = asyncio.ensure_future(stream.run())
    await asyncio.sleep(0)
    wire.down.append(b"\xff")
    assert wire.deliver_down()
    assert (await running).reason == "MALFORMED_MESSAGE"
    await wire.break_handler()
