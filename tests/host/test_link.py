"""The link against a controller that does what the test says: registration, calls, breaks and returns."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from google.rpc import status_pb2

from engine_service import link as link_module
from engine_service import stream as stream_module
from engine_service import transfers as transfers_module
from engine_service.kernel_process import Reply
from engine_service.link import Link
from enginery import _status, _values
from enginery._encoded import Codec, Encoded
from enginery._reasons import DeliveryError
from enginery.errors import ConnectionFileError
from enginery.v1 import engine_pb2, frame_pb2, value_pb2
from tests.host.fakes import (
    IDS,
    FakeController,
    FakeStream,
    Kernels,
    running_controller,
    running_engine,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from engine_service.engine import Engine
    from enginery._connection_file import ConnectionInfo


class Linked:
    """A host's engines, their link and the controller at its other end."""

    def __init__(self, controller: FakeController, engines: list[Engine], kernels: list[Kernels]) -> None:
        self.controller = controller
        self.engines = engines
        self.kernels = kernels
        self.link: Link
        self.task: asyncio.Task[None]

    async def registered(self) -> tuple[FakeStream, list[engine_pb2.Hello]]:
        """Take the next stream and welcome all of its engines, in the order of their slots."""
        stream = await self.controller.stream()
        hellos = list((await stream.receive_until(lambda m: len(m.hellos) == len(self.engines))).hellos)
        for hello in hellos:
            stream.welcome(hello.slot, hello.slot, 7)
        await until(lambda: len(self.link.registered) == len(self.engines))
        return stream, hellos


@contextlib.asynccontextmanager
async def linked(
    count: int = 1,
    *,
    heartbeat: float = 60.0,
    read: Callable[[ConnectionInfo], ConnectionInfo] = lambda info: info,
) -> AsyncIterator[Linked]:
    async with contextlib.AsyncExitStack() as stack:
        controller, info = await stack.enter_async_context(running_controller())
        pairs = [await stack.enter_async_context(running_engine(slot=slot)) for slot in range(count)]
        made = Linked(controller, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        made.link = Link(made.engines, lambda: read(info), heartbeat=heartbeat, first_delay=0.01)
        made.task = asyncio.create_task(made.link.run())
        try:
            yield made
        finally:
            for engine in made.engines:
                engine.stop("the test ends")
            while not made.task.done():
                while not controller.streams.empty():
                    controller.streams.get_nowait().end()
                await asyncio.wait((made.task,), timeout=0.05)
            await made.task


def code(text: str) -> engine_pb2.ExecuteRequest:
    return engine_pb2.ExecuteRequest(code=text)


def result(reply: frame_pb2.Reply) -> engine_pb2.ExecuteResult:
    return engine_pb2.ExecuteResponse.FromString(reply.response).result


async def test_hello_welcome_call_reply() -> None:
    """1. Each engine says hello with the token. 2. Welcomes give ids. 3. Calls go to the engine they name."""
    async with linked(2) as host:
        stream, hellos = await host.registered()
        assert host.controller.tokens == ["Bearer secret"]
        assert [hello.slot for hello in hellos] == [0, 1]
        assert hellos[0].host_id == hellos[1].host_id
        assert hellos[0].incarnation == host.engines[0].kernel.incarnation
        assert not hellos[0].HasField("epoch")
        reply = await stream.reply(stream.call(code("hi"), engine_id=1))
        assert reply.outcome == frame_pb2.OUTCOME_OK
        assert (result(reply).text, result(reply).engine_id) == ("hi", 1)
        failed = await stream.reply(stream.call(code("fail"), engine_id=0))
        assert failed.outcome == frame_pb2.OUTCOME_USER_ERROR
        lost = await stream.reply(stream.call(code("hi"), engine_id=5))
        assert _status.from_bytes(lost.error).reason == "INVALID_ENGINE_ID"
        stream.end()


async def test_a_bad_operation_id_is_refused() -> None:
    """A frame's operation id has 16 bytes."""
    async with linked() as host:
        stream, _ = await host.registered()
        reply = await stream.reply(stream.call(code("hi"), operation_id=b"short"))
        assert _status.from_bytes(reply.error).reason == "BAD_REQUEST"
        stream.end()


async def test_break_and_return_within_the_lease() -> None:
    """1. A call runs and the stream breaks. 2. The hello of the next one is a return. 3. The call comes again
    and is answered once it has run; nothing runs twice. 4. So is one whose reply was lost on the way."""
    async with linked() as host:
        stream, (first,) = await host.registered()
        lost, running = IDS.mint(), IDS.mint()
        await stream.reply(stream.call(code("before"), operation_id=lost))
        stream.call(code("wait"), operation_id=running)
        kernel = host.kernels[0].started[0]
        await until(lambda: len(kernel.commands) == 2)
        stream.end(DeliveryError("SHUTTING_DOWN", process="controller"))
        await until(lambda: not host.link.registered)
        kernel.released.set()
        stream, (second,) = await host.registered()
        assert (second.engine_id, second.epoch, second.incarnation) == (0, 7, first.incarnation)
        assert second.host_id == first.host_id
        again = stream.call(code("wait"), operation_id=running), stream.call(code("before"), operation_id=lost)
        merged = await stream.receive_until(lambda message: len(message.replies) == 2)
        texts = {reply.call_id: result(reply).text for reply in merged.replies}
        assert texts == {again[0]: "wait", again[1]: "before"}
        assert len(kernel.commands) == 2
        stream.end()


async def test_a_superseded_stream_is_opened_again() -> None:
    """A newer stream of the same host took over: this one ends, and the link goes on."""
    async with linked() as host:
        stream, _ = await host.registered()
        stream.end(DeliveryError("SUPERSEDED"))
        stream, (hello,) = await host.registered()
        assert hello.epoch == 7
        stream.end()


async def test_hellos_with_large_properties_come_in_messages_that_are_taken() -> None:
    """Ten engines with nearly 1 MiB of properties each: gRPC would refuse them in one message, for ever."""
    async with linked(10) as host:
        large = Encoded(Codec.TEXT, (b"x" * 900_000,))
        first, _ = await host.registered()
        for engine in host.engines:
            engine.properties = {"large": large}
            host.link.properties_changed(engine)
            host.link.properties_changed(engine)
        sizes = []
        changed: list[int] = []
        while len(changed) < 10:
            message = await first.receive()
            sizes.append(message.ByteSize())
            changed += [one.engine_id for one in message.properties_changed]
        assert changed == list(range(10)), "each once"
        first.end()
        second = await host.controller.stream()
        hellos = 0
        while hellos < 10:
            message = await second.receive()
            sizes.append(message.ByteSize())
            hellos += len(message.hellos)
        assert max(sizes) < 4 << 20
        second.end()


async def test_a_stream_that_is_not_read_is_left_even_while_calls_are_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unsent replies pause the reading of calls; that must not keep the host from learning of the end."""
    monkeypatch.setattr(stream_module, "PAUSE_BYTES", 1 << 20)
    monkeypatch.setattr(stream_module, "BREAK_BYTES", 32 << 20)
    async with linked() as host:
        stream, _ = await host.registered()
        host.kernels[0].started[0].reply = lambda _: Reply(stdout=b"x" * 900_000)
        for _ in range(12):
            stream.call(code("large"))
        opened = host.link._stream
        assert opened is not None
        await until(lambda: not opened._drained.is_set())
        stream.call(code("the one that pauses the reader"))
        await until(lambda: len(host.kernels[0].started[0].commands) == 13)
        stream.end(DeliveryError("SHUTTING_DOWN", process="controller"))
        again, _ = await host.registered()
        again.end()


async def test_a_host_that_is_superseded_does_not_push_back_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process has its host_id, as a copy of a machine does: the two must not take turns in a rush."""
    pauses: list[float] = []
    paused = asyncio.Event()

    async def pause(_link: Link, seconds: float) -> None:
        pauses.append(seconds)
        paused.set()
        await asyncio.sleep(0)

    monkeypatch.setattr(Link, "_pause", pause)
    async with linked() as host:
        stream, _ = await host.registered()
        stream.end(DeliveryError("SUPERSEDED"))
        await asyncio.wait_for(paused.wait(), 10)
        assert pauses[0] >= 4.0
        again, _ = await host.registered()
        again.end()


async def test_a_fenced_engine_stops_and_the_others_stay() -> None:
    """FENCED names one engine; it stops, its neighbour serves on."""
    async with linked(2) as host:
        stream = await host.controller.stream()
        await stream.receive_until(lambda message: len(message.hellos) == 2)
        error = _status.to_bytes(DeliveryError("FENCED", engine_id=0, epoch=9))
        stream.send(refusals=[engine_pb2.Refusal(slot=0, error=error)])
        stream.welcome(1, 1)
        await host.engines[0].wait_stopped()
        assert "another holder" in host.engines[0].stop_reason
        assert (await stream.reply(stream.call(code("hi"), engine_id=1))).outcome == frame_pb2.OUTCOME_OK
        stream.end()


async def test_a_refusal_for_now_is_asked_again_on_the_same_stream() -> None:
    """With the next heartbeat the hello comes once more."""
    async with linked(heartbeat=0.05) as host:
        stream = await host.controller.stream()
        await stream.receive_until(lambda message: bool(message.hellos))
        error = _status.to_bytes(DeliveryError("SHUTTING_DOWN", process="controller"))
        stream.send(refusals=[engine_pb2.Refusal(slot=0, error=error)])
        await stream.receive_until(lambda message: bool(message.hellos))
        stream.welcome()
        await until(lambda: host.link.registered == [0])
        stream.end()


async def test_properties_precede_the_reply_of_the_call_that_set_them() -> None:
    """A message's fields are handled in order, so they come in the same one or an earlier one."""
    async with linked() as host:
        stream, _ = await host.registered()
        stream.call(code("set stage"))
        first = await stream.receive()
        assert [set(changed.properties) for changed in first.properties_changed] == [{"stage"}]
        stream.end()


async def test_a_new_kernel_is_announced() -> None:
    """With incarnation, process id and how the old one ended; the call that killed it says so too."""
    async with linked() as host:
        stream, (hello,) = await host.registered()
        call_id = stream.call(code("die"))
        merged = await stream.receive_until(lambda message: bool(message.kernels_changed and message.replies))
        (changed,) = merged.kernels_changed
        assert changed.incarnation != hello.incarnation
        assert changed.incarnation == host.engines[0].kernel.incarnation
        assert changed.reason == "SIGSEGV (signal 11)"
        (reply,) = merged.replies
        assert (reply.call_id, _status.from_bytes(reply.error).reason) == (call_id, "KERNEL_DIED")
        stream.end()


async def test_a_kernel_that_changed_between_hello_and_welcome_is_announced() -> None:
    """The hello named the old one."""
    async with linked() as host:
        stream = await host.controller.stream()
        await stream.receive()
        old = host.engines[0].kernel
        host.kernels[0].started[0].kill()
        await until(lambda: host.engines[0].kernel is not old)
        stream.welcome()
        merged = await stream.receive_until(lambda message: bool(message.kernels_changed))
        assert merged.kernels_changed[0].incarnation == host.engines[0].kernel.incarnation
        stream.end()


async def test_heartbeats_say_how_engines_are() -> None:
    """They rise by one, and name what runs and what waits."""
    async with linked(heartbeat=0.05) as host:
        stream, _ = await host.registered()
        running = IDS.mint()
        stream.call(code("wait"), operation_id=running)
        stream.call(code("1"))

        def busy(message: engine_pb2.EngineMessage) -> bool:
            return any(engine.queued_count == 1 for engine in message.heartbeat.engines)

        merged = await stream.receive_until(busy)
        assert merged.heartbeat.engines[-1].method == "execute"
        assert merged.heartbeat.engines[-1].resident_bytes == 1 << 20
        sequence = merged.heartbeat.sequence
        while not (message := await stream.receive()).HasField("heartbeat"):
            pass
        assert message.heartbeat.sequence == sequence + 1
        stream.end()


async def test_a_killed_engine_says_goodbye_after_its_reply_and_the_link_ends_with_the_last() -> None:
    """Kill answers, then the engine leaves; without engines the host has nothing to do."""
    async with linked() as host:
        stream, _ = await host.registered()
        call_id = stream.call(engine_pb2.KillRequest())
        merged = await stream.receive_until(lambda message: bool(message.goodbyes))
        assert [reply.call_id for reply in merged.replies] == [call_id]
        assert (merged.goodbyes[0].engine_id, merged.goodbyes[0].reason) == (0, "killed by a client")
        assert await stream.ended()
        stream.end()
        await asyncio.wait_for(host.task, 10)


async def test_a_dismissed_engine_stops() -> None:
    """The controller may ask an engine to leave."""
    async with linked() as host:
        stream, _ = await host.registered()
        stream.send(dismissals=[engine_pb2.Dismissal(engine_id=0, reason="no longer needed")])
        merged = await stream.receive_until(lambda message: bool(message.goodbyes))
        assert merged.goodbyes[0].reason == "no longer needed"
        stream.end()


async def test_a_controller_that_breaks_the_protocol_is_left_and_asked_again() -> None:
    """An answer for a slot that is not here ends the stream, and the next one is good."""
    async with linked() as host:
        stream = await host.controller.stream()
        stream.welcome(slot=9)
        assert not host.link.registered
        stream, _ = await host.registered()
        stream.end()


async def test_engines_start_before_their_controller() -> None:
    """The connection file is read before each attempt, until it is there."""
    reads: list[int] = []

    def read(info: ConnectionInfo) -> ConnectionInfo:
        reads.append(1)
        if len(reads) < 3:
            raise ConnectionFileError("there is no connection file yet")
        return info

    async with linked(read=read) as host:
        stream, _ = await host.registered()
        assert len(reads) == 3
        stream.end()


async def test_a_controller_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait has a deadline: without a welcome the stream is closed and another opened."""
    monkeypatch.setattr(link_module, "WELCOME_PATIENCE", 0.1)
    async with linked() as host:
        await host.controller.stream()
        stream, _ = await host.registered()
        stream.end()


async def test_many_replies_are_coalesced_in_order_and_below_the_limit() -> None:
    """What piles up goes out together, at most 256 at a time and never over 4 MiB."""
    async with linked() as host:
        stream, _ = await host.registered()
        big = Encoded(Codec.TEXT, (b"x" * 400_000,))
        kernel = host.kernels[0].started[0]
        made = [stream.call(code(f"{number}")) for number in range(600)]
        seen: list[int] = []
        while len(seen) < len(made):
            message = await stream.receive()
            assert len(message.replies) <= 256
            seen += [reply.call_id for reply in message.replies]
        assert seen == made
        kernel.reply = lambda command: _reply_with(big)
        made = [stream.call(code(f"{number}")) for number in range(20)]
        seen = []
        while len(seen) < len(made):
            message = await stream.receive()
            assert message.ByteSize() < 1 << 20
            seen += [reply.call_id for reply in message.replies]
        assert seen == made
        stream.end()


def _reply_with(value: Encoded) -> Any:
    from engine_service.kernel_process import Reply

    return Reply(values={"value": value}, text="x")


async def test_a_transfer_carries_an_upload_and_a_download() -> None:
    """The host opens the stream that it was offered; messages go through as they are, and then a status."""
    blob = _values.describe("up", Encoded(Codec.TEXT, (b"abc",)))
    uploads = [
        engine_pb2.UploadRequest(blob=blob),
        engine_pb2.UploadRequest(chunk=value_pb2.Chunk(data=b"abc")),
    ]
    async with linked() as host:
        stream, _ = await host.registered()
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_UPLOAD, uploads)
        assert status is None
        assert engine_pb2.UploadResponse.FromString(messages[0]).blob == blob
        wanted = [engine_pb2.DownloadRequest(blob_id="up", release=True)]
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_DOWNLOAD, wanted)
        assert status is None
        assert engine_pb2.DownloadResponse.FromString(messages[1]).chunk.data == b"abc"
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_DOWNLOAD, wanted)
        assert (messages, status) == ([], "BLOB_NOT_FOUND")
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_EXECUTE, wanted)
        assert (messages, status) == ([], "UNKNOWN_METHOD")
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_UPLOAD, [])
        assert (messages, status) == ([], "PROTOCOL_ERROR")
        stream.end()


async def _transfer(
    host: Linked, stream: FakeStream, method: frame_pb2.Method.ValueType, requests: list[Any]
) -> tuple[list[bytes], str | None]:
    stream.send(transfers=[engine_pb2.TransferOffer(transfer_id="t" * 32, engine_id=0, method=method)])
    async with asyncio.timeout(10):
        incoming, outgoing = await host.controller.transfers.get()
        assert (await anext(incoming)).accept.transfer_id == "t" * 32
        for request in requests:
            outgoing.put_nowait(engine_pb2.TransferResponse(message=request.SerializeToString()))
        outgoing.put_nowait(engine_pb2.TransferResponse(end=True))
        messages: list[bytes] = []
        async for message in incoming:
            if message.WhichOneof("kind") == "status":
                outgoing.put_nowait(None)
                status = status_pb2.Status.FromString(message.status)
                return messages, _status.from_proto(status).reason if status.code else None
            messages.append(message.message)
    raise AssertionError("no status came")


async def test_a_transfer_is_accepted_while_others_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its turn after that, so that the controller does not take the host for gone."""
    monkeypatch.setattr(transfers_module, "MAX_RUNNING", 1)
    async with linked() as host:
        stream, _ = await host.registered()
        for name in "ab":
            stream.send(
                transfers=[
                    engine_pb2.TransferOffer(transfer_id=name * 32, engine_id=0, method=frame_pb2.METHOD_UPLOAD)
                ]
            )
        async with asyncio.timeout(10):
            (first, answer), (second, other) = [await host.controller.transfers.get() for _ in "ab"]
            accepted = {(await anext(incoming)).accept.transfer_id for incoming in (first, second)}
            assert accepted == {"a" * 32, "b" * 32}
            for outgoing in (answer, other):
                outgoing.put_nowait(engine_pb2.TransferResponse(end=True))
            for incoming in (first, second):
                status = status_pb2.Status.FromString((await anext(incoming)).status)
                assert _status.from_proto(status).reason == "PROTOCOL_ERROR"
        answer.put_nowait(None)
        other.put_nowait(None)
        stream.end()


async def test_a_transfer_whose_caller_has_gone_is_forgotten() -> None:
    """The stream ends; the upload's room is free again and the link is none the worse."""
    blob = _values.describe("up", Encoded(Codec.TEXT, (b"abc",)))
    async with linked() as host:
        stream, _ = await host.registered()
        offer = engine_pb2.TransferOffer(transfer_id="t" * 32, engine_id=0, method=frame_pb2.METHOD_UPLOAD)
        stream.send(transfers=[offer])
        incoming, outgoing = await asyncio.wait_for(host.controller.transfers.get(), 10)
        await anext(incoming)
        request = engine_pb2.UploadRequest(blob=blob).SerializeToString()
        outgoing.put_nowait(engine_pb2.TransferResponse(message=request))
        await until(lambda: host.engines[0].blobs.size == 3)
        outgoing.put_nowait(None)
        await until(lambda: host.engines[0].blobs.size == 0)
        assert (await stream.reply(stream.call(code("hi")))).outcome == frame_pb2.OUTCOME_OK
        stream.end()
