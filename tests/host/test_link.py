"""The link against a controller that does what the test says: registration, calls, breaks and returns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration

from engine_service import link as link_module
from engine_service import stream as stream_module
from engine_service.engine import EngineOptions
from engine_service.kernel_process import Reply
from engine_service.link import Link
from enginery import _status
from enginery._encoded import Codec, Encoded
from enginery._function_window import Function, digest
from enginery._reasons import DeliveryError
from enginery.errors import ConnectionFileError
from enginery.v1 import engine_pb2, error_pb2, frame_pb2
from tests.host.fakes import IDS, until
from tests.host.linked import code, frame, linked, result

if TYPE_CHECKING:
    import pytest

    from engine_service.operation import Done
    from enginery._connection_file import ConnectionInfo
    from enginery._engine import CallContext


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


async def test_a_task_belongs_to_no_session_and_needs_no_kernel_of_its_own() -> None:
    """Whatever its frame says else; a refusal to run here is an outcome of its own."""
    async with linked() as host:
        stream, _ = await host.registered()
        operation_id = IDS.mint()
        task = frame(operation_id, "reject", session_id=b"sessions", task=frame_pb2.TaskOptions())
        stream.send(calls=[task])
        reply = await stream.reply(task.call_id)
        assert reply.outcome == frame_pb2.OUTCOME_REJECTED
        assert result(reply).error.category == error_pb2.ERROR_CATEGORY_REJECTED
        operation = host.engines[0].operations.find(operation_id)
        assert (operation.session_id, operation.context.any_incarnation) == (b"", True)
        stream.end()


async def test_a_bad_operation_id_is_refused() -> None:
    """A frame's operation id has 16 bytes."""
    async with linked() as host:
        stream, _ = await host.registered()
        reply = await stream.reply(stream.call(code("hi"), operation_id=b"short"))
        assert _status.from_bytes(reply.error).reason == "BAD_REQUEST"
        stream.end()


def by_digest(call_id: int, function: Function) -> frame_pb2.Call:
    """Return a call that names a function."""
    return frame_pb2.Call(
        call_id=call_id,
        method=frame_pb2.METHOD_APPLY,
        operation_id=IDS.mint(),
        function_digest=function.digest,
    )


async def test_a_call_by_digest_has_the_function_that_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same message or an earlier one; the engine gets it beside the request. Another stream has none."""
    async with linked() as host:
        stream, _ = await host.registered()
        seen: list[Function | None] = []
        submit = host.engines[0].submit

        def spy(method: int, request: bytes, context: CallContext, done: Done) -> None:
            seen.append(context.function)
            submit(frame_pb2.METHOD_EXECUTE, code("hi").SerializeToString(), context, done)

        monkeypatch.setattr(host.engines[0], "submit", spy)
        function = Function(digest(b"pickle"), b"pickle")
        travels = frame_pb2.Function(digest=function.digest, pickle=function.pickle)
        stream.send(functions=[travels], calls=[by_digest(1, function)])
        assert (await stream.reply(1)).outcome == frame_pb2.OUTCOME_OK
        stream.send(calls=[by_digest(2, function)])
        assert (await stream.reply(2)).outcome == frame_pb2.OUTCOME_OK
        assert seen == [function, function]
        stream.end()
        stream, _ = await host.registered()
        stream.send(calls=[by_digest(3, function)])
        error = _status.from_bytes((await stream.reply(3)).error)
        assert (error.reason, error.metadata["field"]) == ("BAD_REQUEST", "function_digest")
        stream.end()


async def test_a_function_that_is_another_than_it_says_ends_the_stream() -> None:
    """Nobody proves it after the host."""
    async with linked() as host:
        stream, _ = await host.registered()
        stream.send(functions=[frame_pb2.Function(digest=digest(b"other"), pickle=b"pickle")])
        again, _ = await host.registered()
        again.end()


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


async def test_the_inventory_lets_a_call_come_again_without_its_request() -> None:
    """1. A hello names what has not ended and what nobody acknowledged, and the memory limit. 2. A call that is
    known joins it. 3. One that is not known after all is answered so that the journal is asked."""
    async with linked(options=EngineOptions(memory_limit=1 << 30)) as host:
        stream, (hello,) = await host.registered()
        assert (list(hello.operation_ids), hello.memory_limit) == ([], 1 << 30)
        settled, ended, running = IDS.mint(), IDS.mint(), IDS.mint()
        await stream.reply(stream.call(code("settled"), operation_id=settled))
        stream.send(journaled_count=1)
        await stream.reply(stream.call(code("ended"), operation_id=ended))
        stream.call(code("wait"), operation_id=running)
        kernel = host.kernels[0].started[0]
        await until(lambda: len(kernel.commands) == 3)
        stream.end(DeliveryError("SHUTTING_DOWN", process="controller"))
        await until(lambda: not host.link.registered)
        stream, (hello,) = await host.registered()
        assert list(hello.operation_ids) == [ended, running]
        stream.send(calls=[frame(running, known=True)])
        kernel.released.set()
        assert result(await stream.reply(1_000)).text == "wait"
        stream.send(calls=[frame(IDS.mint(), known=True)])
        assert (await stream.reply(1_000)).outcome == frame_pb2.OUTCOME_RELEASED
        assert len(kernel.commands) == 3
        stream.end()


async def test_what_ended_while_the_controller_was_away_is_told_after_the_welcome() -> None:
    """With its answer, until that is acknowledged; then never again."""
    async with linked() as host:
        stream, _ = await host.registered()
        operation_id = IDS.mint()
        stream.call(code("wait"), operation_id=operation_id)
        kernel = host.kernels[0].started[0]
        await until(lambda: bool(kernel.commands))
        stream.end()
        await until(lambda: not host.link.registered)
        kernel.released.set()
        await until(lambda: bool(host.engines[0].unsettled()))
        for is_acknowledged in (False, True):
            stream, _ = await host.registered()
            (ended,) = (await stream.receive_until(lambda message: bool(message.ended))).ended
            assert (ended.operation_id, ended.method) == (operation_id, frame_pb2.METHOD_EXECUTE)
            assert engine_pb2.ExecuteResponse.FromString(ended.response).result.text == "wait"
            if is_acknowledged:
                stream.send(journaled_count=1)
                await until(lambda: not host.engines[0].unsettled())
            stream.end()
            await until(lambda: not host.link.registered)
        stream, (hello,) = await host.registered()
        assert not hello.operation_ids
        stream.call(code("1"))
        assert not (await stream.receive_until(lambda message: bool(message.replies))).ended
        stream.end()


async def test_a_reply_says_how_long_its_kernel_was_at_work() -> None:
    """Whether it raised or not; nothing of what no kernel has run."""
    async with linked() as host:
        stream, _ = await host.registered()
        requests = code("1"), code("fail"), engine_pb2.GetIdRequest()
        replies = [await stream.reply(stream.call(request)) for request in requests]
        assert [reply.run_us for reply in replies] == [250_000, 250_000, 0]
        stream.end()


async def test_the_end_of_a_submitted_operation_is_told() -> None:
    """Submit is answered at once; what it began ends later, and has no other reply on this stream."""
    async with linked() as host:
        stream, _ = await host.registered()
        operation_id = IDS.mint()
        request = engine_pb2.SubmitRequest(execute=code("1"))
        call_id = stream.call(request, operation_id=operation_id)
        message = await stream.receive_until(lambda message: bool(message.replies and message.ended))
        assert [reply.call_id for reply in message.replies] == [call_id]
        assert [ended.operation_id for ended in message.ended] == [operation_id]
        stream.send(journaled_count=1)  # the Submit's reply, which settles nothing
        stream.call(code("2"))
        await stream.receive_until(lambda message: bool(message.replies))
        assert [operation.operation_id for operation in host.engines[0].unsettled()][:1] == [operation_id]
        stream.send(journaled_count=2)
        await until(lambda: operation_id not in host.engines[0].inventory())
        stream.end()


async def test_calls_are_counted_and_carry_their_options() -> None:
    """Every call counts, refused ones too; an option that makes no sense refuses the call that has it."""
    async with linked() as host:
        stream, _ = await host.registered()
        bad = frame_pb2.CallOptions(timeout=Duration(seconds=-1))
        stream.send(calls=[frame(IDS.mint(), "1", options=bad)])
        message = await stream.receive_until(lambda message: bool(message.replies))
        assert _status.from_bytes(message.replies[0].error).metadata["field"] == "timeout"
        assert message.accepted_count == 1
        good = frame_pb2.CallOptions(timeout=Duration(seconds=30), interrupt_only=True)
        stream.send(calls=[frame(IDS.mint(), "wait", options=good), frame(IDS.mint(), "2")])
        await until(lambda: len(host.engines[0].queue) == 1)
        running = host.engines[0].queue.running
        assert running is not None
        assert (running.context.timeout, running.context.interrupt_only) == (30.0, True)
        host.kernels[0].started[0].released.set()
        message = await stream.receive_until(lambda message: len(message.replies) == 2)
        assert message.accepted_count == 3
        stream.end()


async def test_an_old_controller_that_lives_again_is_not_obeyed() -> None:
    """Its welcome is refused with the stream, and the engines stay those of the newer one."""
    async with linked() as host:
        stream = await host.controller.stream()
        await stream.receive()
        stream.welcome(controller_epoch=6)
        await until(lambda: host.link.registered == [0])
        stream.end()
        stream = await host.controller.stream()
        await stream.receive()
        stream.welcome(0, 5, controller_epoch=5)
        again = await host.controller.stream()
        (hello,) = (await again.receive()).hellos
        assert (hello.engine_id, hello.epoch) == (0, 1)
        assert host.link.registered == []
        again.welcome(controller_epoch=6)
        await until(lambda: host.link.registered == [0])
        again.end()


async def test_a_superseded_stream_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer stream of the same host took over: this one ends, and the link goes on."""
    monkeypatch.setattr(link_module, "_MAX_DELAY", 0.01)
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
        large = Encoded(Codec.TEXT, (b"x" * 900_000,))
        host.kernels[0].started[0].reply = lambda _: Reply(values={"value": large}, text="x")
        for _ in range(12):
            stream.call(code("large"))
        opened = host.link._stream
        assert opened is not None
        await until(lambda: not opened._drained.is_set())
        stream.call(code("pauses the reader, unless it pauses already"))
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
        call_id = stream.call(code("set stage"))
        while not (first := await stream.receive()).properties_changed:
            assert not first.replies
        assert [set(changed.properties) for changed in first.properties_changed] == [{"stage"}]
        assert [reply.call_id for reply in first.replies] in ([], [call_id])
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


async def test_a_welcome_is_answered_with_how_the_engines_are() -> None:
    """Once all are answered, and not five seconds later: a controller that restarted knows nothing of them."""
    async with linked(2) as host:
        stream, _ = await host.registered()
        merged = await stream.receive_until(lambda message: message.HasField("heartbeat"))
        assert [engine.engine_id for engine in merged.heartbeat.engines] == [0, 1]
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


async def test_a_dismissed_engine_finishes_what_it_runs_within_the_grace() -> None:
    """What waits is handed back at once, a heartbeat tells, what runs is answered, and then it says goodbye."""
    async with linked() as host:
        stream, _ = await host.registered()
        running, waiting = stream.call(code("wait")), stream.call(code("1"))
        await until(lambda: len(host.engines[0].queue) == 1)
        dismissal = engine_pb2.Dismissal(engine_id=0, reason="enough", grace=Duration(seconds=60))
        stream.send(dismissals=[dismissal])

        def drains(message: engine_pb2.EngineMessage) -> bool:
            return any(engine.draining for engine in message.heartbeat.engines)

        first = await stream.receive_until(lambda message: bool(message.replies and drains(message)))
        assert [reply.call_id for reply in first.replies] == [waiting]
        assert _status.from_bytes(first.replies[0].error).reason == "ENGINE_STOPPED"
        host.kernels[0].started[0].released.set()
        last = await stream.receive_until(lambda message: bool(message.goodbyes))
        assert [(reply.call_id, reply.outcome) for reply in last.replies] == [(running, frame_pb2.OUTCOME_OK)]
        assert last.goodbyes[0].reason == "enough"
        stream.end()


async def test_engines_without_a_controller_leave_after_the_orphan_timeout() -> None:
    """It counts while no engine is registered, so anew from the loss of a controller."""
    async with linked(orphan_timeout=60.0) as host:

        def is_orphan() -> bool:
            return host.link._orphan_timer is not None

        await until(is_orphan)
        stream, _ = await host.registered()
        assert not is_orphan()
        host.link._orphan_timeout = 0.05
        stream.end()
        await host.engines[0].wait_stopped()
        assert host.engines[0].stop_reason == "no controller for 0.05 s, its --orphan-timeout"
        while not host.controller.streams.empty():
            (await host.controller.stream()).end()
        await asyncio.wait_for(host.task, 10)


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
