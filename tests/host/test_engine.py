"""The engine over fake kernels: what it promises whatever its kernel does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engine_service import blobs, endings, plain_response, responses
from engine_service.engine import Engine, EngineOptions
from engine_service.kernel_frames import MAX_PARTS
from engine_service.kernel_process import (
    Command,
    DisplayData,
    ExitStatus,
    KernelListener,
    KernelOptions,
    KernelProcess,
    Reply,
)
from enginery._encoded import Codec, Encoded, Stored
from enginery._engine import CallContext
from enginery._methods import METHODS
from enginery.v1 import engine_pb2, error_pb2, frame_pb2, value_pb2
from tests.host.fakes import IDS, FakeKernel, Kernels, call, execute, refused, running_engine, until

if TYPE_CHECKING:
    from engine_service.operation import Answer, Operation


async def test_an_operation_never_runs_twice() -> None:
    """The same id again, while it runs and after, gets the answer of the one run."""
    async with running_engine() as (engine, kernels):
        operation = IDS.mint()
        first = asyncio.ensure_future(execute(engine, "wait", operation_id=operation))
        second = asyncio.ensure_future(execute(engine, "wait", operation_id=operation))
        await until(lambda: bool(kernels.started[0].commands))
        kernels.started[0].released.set()
        third = execute(engine, "wait", operation_id=operation)
        assert await first == await second == await third
        assert len(kernels.started[0].commands) == 1
        assert await refused(execute(engine, "other", operation_id=operation)) == "OPERATION_EXISTS"


async def test_who_hangs_up_ends_the_waiting_alone() -> None:
    """A cancelled caller stops nothing: the operation runs to its end and has a record."""
    async with running_engine() as (engine, kernels):
        caller = asyncio.ensure_future(execute(engine, "wait"))
        await until(lambda: bool(kernels.started[0].commands))
        running = engine.queue.running
        assert running is not None
        assert len(running.waiting) == 1
        caller.cancel()
        await until(lambda: not running.waiting)  # else those who come again every second would pile up
        kernels.started[0].released.set()
        await until(lambda: engine.queue.running is None)
        record = await call(engine, engine_pb2.GetResultRequest(), engine_pb2.GetResultResponse)
        assert record.result.input.raw == "wait"


async def test_the_queue_is_bounded_and_says_so() -> None:
    """A full queue is QUEUE_FULL; the same operation may be tried again."""
    async with running_engine(EngineOptions(queue_calls=1)) as (engine, kernels):
        tasks = [asyncio.ensure_future(execute(engine, "wait"))]
        await until(lambda: engine.queue.running is not None)
        tasks.append(asyncio.ensure_future(execute(engine, "2")))
        await until(lambda: len(engine.queue) == 1)
        operation = IDS.mint()
        assert await refused(execute(engine, "3", operation_id=operation)) == "QUEUE_FULL"
        kernels.started[0].released.set()
        await asyncio.gather(*tasks)
        assert (await execute(engine, "3", operation_id=operation)).text == "3"


async def test_death_fails_what_runs_and_waits_and_the_engine_goes_on() -> None:
    """KERNEL_DIED names signal, method and operation; the record has the last output; properties are those of
    the launch again."""
    launch = {"gpu": Encoded(Codec.JSON, (b"true",))}
    options = EngineOptions(kernel=KernelOptions(properties=launch))
    async with running_engine(options) as (engine, kernels):
        await execute(engine, "set stage")
        assert set(engine.properties) == {"gpu", "stage"}
        operation = IDS.mint()
        dying = asyncio.ensure_future(execute(engine, "die", operation_id=operation))
        waiting = asyncio.ensure_future(execute(engine, "1"))
        error = (await asyncio.gather(dying, return_exceptions=True))[0]
        assert "SIGSEGV (signal 11)" in str(error)
        assert "execute, operation " in str(error)
        assert await refused(waiting) == "KERNEL_DIED"
        assert (await execute(engine, "1")).number == 3
        assert set(engine.properties) == {"gpu"}
        assert [kernel.options.engine_id for kernel in kernels.started] == [-1, -1]
        record = await call(engine, engine_pb2.GetResultRequest(number=2), engine_pb2.GetResultResponse)
        assert record.result.error.category == error_pb2.ERROR_CATEGORY_KERNEL_DIED
        assert record.result.stdout == "last words"
        assert engine.status().last_failure == "SIGSEGV (signal 11)"


async def test_a_kernel_that_dies_idle_is_replaced() -> None:
    """Nobody has to call for it."""
    async with running_engine() as (_, kernels):
        kernels.started[0].die(ExitStatus(3))
        await until(lambda: len(kernels.started) == 2)


async def test_a_kernel_that_does_not_start_is_tried_again() -> None:
    """Calls fail with the reason meanwhile; once it starts the engine is back."""
    async with running_engine() as (engine, kernels):
        kernels.refusals = 1
        dying = asyncio.ensure_future(execute(engine, "die"))
        assert await refused(dying) == "KERNEL_DIED"
        await until(lambda: not kernels.refusals)
        assert (await execute(engine, "1")).text == "1"


async def test_a_kernel_for_which_there_is_no_process_is_tried_again() -> None:
    """A machine that is out of processes or memory for a moment costs no engine."""
    async with running_engine() as (engine, kernels):
        kernels.shortages = 1
        assert await refused(asyncio.ensure_future(execute(engine, "die"))) == "KERNEL_DIED"
        await until(lambda: not kernels.shortages)
        assert (await execute(engine, "1")).text == "1"


@pytest.mark.parametrize("leave", ["stop", "drain"])
async def test_stopping_does_not_wait_for_a_kernel_that_starts(leave: str) -> None:
    """Code that runs before a kernel is ready may take half a minute: nobody waits for that."""
    async with running_engine() as (engine, kernels):
        kernels.is_slow = True
        assert await refused(asyncio.ensure_future(execute(engine, "die"))) == "KERNEL_DIED"
        await until(lambda: kernels.starting == 1)
        waiting = asyncio.ensure_future(execute(engine, "1"))
        await until(lambda: len(engine.queue) == 1)
        if leave == "drain":
            engine.drain("the host stops", 60)
        else:
            engine.stop("the host stops")
        assert await refused(waiting) == "ENGINE_STOPPED"
        async with asyncio.timeout(5):
            await engine.wait_stopped()
        assert (len(kernels.started), kernels.starting) == (1, 0)


async def test_a_first_start_that_fails_is_the_callers() -> None:
    """`start` raises with what the kernel wrote."""
    kernels = Kernels(refusals=1)
    engine = Engine(start_kernel=kernels.start)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="exec line raised"):
        await engine.start()


async def test_stop_fails_everything_and_nothing_more_is_taken() -> None:
    """What runs, what waits and what comes later ends with ENGINE_STOPPED."""
    async with running_engine() as (engine, _):
        tasks = [asyncio.ensure_future(execute(engine, "wait")), asyncio.ensure_future(execute(engine, "2"))]
        await until(lambda: len(engine.queue) == 1)
        await call(engine, engine_pb2.KillRequest(), engine_pb2.KillResponse)
        assert [await refused(task) for task in tasks] == ["ENGINE_STOPPED", "ENGINE_STOPPED"]
        await engine.wait_stopped()
        assert await refused(execute(engine, "3")) == "ENGINE_STOPPED"


async def test_listeners_hear_of_properties_before_the_reply() -> None:
    """Whoever sees the result sees the properties that its call set."""
    heard: list[str] = []

    class Listener:
        def properties_changed(self, engine: Engine) -> None:
            heard.append(",".join(engine.properties))

        def kernel_changed(self, engine: Engine, reason: str) -> None:
            heard.append(reason)

        def operation_ended(self, engine: Engine, operation: Operation) -> None:
            heard.append("ended")

        def engine_stopped(self, engine: Engine, reason: str) -> None:
            heard.append("stopped")

    async with running_engine() as (engine, _):
        engine.listener = Listener()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def reply(answer: object) -> None:
            heard.append("reply")
            done.set_result(None)

        request = engine_pb2.ExecuteRequest(code="set a").SerializeToString()
        engine.submit(METHODS["Execute"], request, CallContext(IDS.mint()), reply)
        await done
        assert heard == ["a", "reply", "ended"]
        await refused(execute(engine, "die"))
        await until(lambda: len(heard) == 5)
    assert heard[3:] == ["ended", "SIGSEGV (signal 11)", "stopped"]


async def test_a_defect_is_reported_and_harms_nobody_else() -> None:
    """An unexpected exception is INTERNAL for its call; the next one runs."""
    async with running_engine() as (engine, kernels):
        answering(kernels.started[0], Reply(text=5))  # type: ignore[arg-type]
        assert await refused(execute(engine, "1")) == "INTERNAL"
        kernels.started[0].reply = None
        assert (await execute(engine, "1")).text == "1"


def answering(kernel: FakeKernel, reply: Reply, **output: bytes) -> None:
    def answer(command: Command) -> Reply:
        for stream, data in output.items():
            kernel.write(stream, data)
        return reply

    kernel.reply = answer


async def test_values_over_the_inline_limit_become_blobs() -> None:
    """Encoded or stored, what is too large for the reply waits to be downloaded; the rest rides along."""
    for made in (Encoded(Codec.TEXT, (bytes(100),)), blobs.save(Encoded(Codec.TEXT, (bytes(100),)))):
        async with running_engine() as (engine, kernels):
            answering(kernels.started[0], Reply(values={"value": made}, text="x"))
            result = await execute(engine, "1", inline_limit=99)
            assert result.value.blob.size == 100
            request = engine_pb2.DownloadRequest(blob_id=result.value.blob.blob_id, offset=40)
            messages = [
                engine_pb2.DownloadResponse.FromString(data)
                async for data in engine.download(request.SerializeToString())
            ]
            assert [message.WhichOneof("kind") for message in messages] == ["blob", "chunk"]
            assert (messages[1].chunk.offset, len(messages[1].chunk.data)) == (40, 60)
    async with running_engine() as (engine, kernels):
        answering(kernels.started[0], Reply(values={"value": blobs.save(Encoded(Codec.TEXT, (b"abc",)))}))
        assert (await execute(engine, "1")).value.text == "abc"


async def test_a_reply_stays_below_four_mebibytes() -> None:
    """Output, value, text, displays and source are each at their largest, and the message still fits."""
    large = "ä☃" * (1 << 20)
    reply = Reply(
        values={"value": Encoded(Codec.TEXT, (bytes(3 << 20),))},
        text=large,
        pretty=large,
        displays=[DisplayData({"text/plain": large, "image/png": large.encode()}) for _ in range(9)],
    )
    async with running_engine() as (engine, kernels):
        answering(kernels.started[0], reply, stdout=large.encode(), stderr=b"\xff" * (4 << 20))
        made = CallContext(IDS.mint(), inline_limit=3 << 20)
        request = engine_pb2.ExecuteRequest(code="#" * (3 << 20)).SerializeToString()
        answer = await engine.call(METHODS["Execute"], request, made)
        assert len(answer.response) < 4 << 20
        result = engine_pb2.ExecuteResponse.FromString(answer.response).result
        assert result.stdout_blob.size == len(large.encode())
        assert result.stderr_blob.size == 4 * (4 << 20)
        assert result.stdout_blob.blob_id in result.stdout
        assert "�" not in result.stdout


async def test_long_output_keeps_its_ends() -> None:
    """At most 1 MiB, half from the beginning and half from the end, and a mark between that says how much."""
    output = b"begin" + b"x" * (2 << 20) + b"end"
    async with running_engine() as (engine, kernels):
        answering(kernels.started[0], Reply(), stdout=output)
        result = await execute(engine, "1")
        assert result.stdout.startswith("begin")
        assert result.stdout.endswith("end")
        assert f"{len(output) - (1 << 20)} bytes left out here" in result.stdout
        assert len(result.stdout) < 1.01 * (1 << 20)
        applied = await call(engine, engine_pb2.ApplyRequest(function_name="f"), engine_pb2.ApplyResponse)
        assert "they were dropped" in applied.stdout
        assert applied.dropped_bytes == len(output) - (1 << 20)


@pytest.mark.parametrize(
    ("request_message", "reason"),
    [
        (engine_pb2.ApplyRequest(), "BAD_REQUEST"),
        (engine_pb2.PushRequest(), "BAD_REQUEST"),
        (engine_pb2.PushFunctionRequest(), "BAD_REQUEST"),
        (engine_pb2.PullRequest(), "BAD_REQUEST"),
        (engine_pb2.PullRequest(keys=["a"], accept=[value_pb2.CODEC_TEXT]), "BAD_REQUEST"),
        (engine_pb2.PullSerializedRequest(keys=["a"], accept=[value_pb2.CODEC_UNSPECIFIED]), "UNKNOWN_CODEC"),
        (engine_pb2.PushSerializedRequest(values={"a": value_pb2.Value()}), "BAD_VALUE"),
        (engine_pb2.PushRequest(blob=value_pb2.Blob(blob_id="none")), "BLOB_NOT_FOUND"),
        (engine_pb2.SetPropertiesRequest(properties={"a": value_pb2.Value(text="t")}), "BAD_REQUEST"),
        (engine_pb2.InterruptRequest(operation_id="x"), "BAD_REQUEST"),
        (engine_pb2.SetIdRequest(engine_id=-1), "BAD_REQUEST"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
async def test_bad_requests_are_refused_before_they_are_queued(request_message: object, reason: str) -> None:
    """What is missing or contradictory is named at once, and the kernel never sees it."""
    async with running_engine() as (engine, kernels):
        method = METHODS[type(request_message).__name__.removesuffix("Request")]
        data = request_message.SerializeToString()  # type: ignore[attr-defined]
        assert await refused(engine.call(method, data, CallContext(IDS.mint()))) == reason
        assert not kernels.started[0].commands


@pytest.mark.parametrize("method", [frame_pb2.METHOD_UNSPECIFIED, 99, frame_pb2.METHOD_UPLOAD])
async def test_unknown_and_streaming_methods_are_unimplemented_in_a_frame(method: int) -> None:
    """A later method, or one that goes by transfer, is UNKNOWN_METHOD."""
    async with running_engine() as (engine, _):
        assert await refused(engine.call(method, b"", CallContext(IDS.mint()))) == "UNKNOWN_METHOD"


async def test_large_requests_are_translated_off_the_loop() -> None:
    """JSON of a size that takes milliseconds reaches the kernel whole, and a bad one fails its call."""
    async with running_engine() as (engine, kernels):
        request = engine_pb2.PushRequest()
        request.json["a"] = list(range(20_000))
        await call(engine, request, engine_pb2.PushResponse)
        ((_, value),) = kernels.started[0].commands[0].values
        assert isinstance(value, Encoded)
        assert bytes(value.parts[0]).startswith(b'{"a":[0,1,2,')
        request.json["b"] = float("nan")
        assert await refused(call(engine, request, engine_pb2.PushResponse)) == "BAD_VALUE"


async def test_a_reply_of_too_many_parts_opens_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small displays do not fit a message: they are not made files of, one by one, until none is left."""
    made: list[Encoded] = []

    def save(value: Encoded) -> Stored:
        made.append(value)
        return blobs.save(value)

    monkeypatch.setattr(responses, "save", save)
    async with running_engine() as (engine, kernels):
        shown = [DisplayData({"text/plain": "x" * 1_000})] * 20_000
        kernels.started[0].reply = lambda _: Reply(displays=shown)
        assert await refused(execute(engine, "x")) == "REPLY_TOO_LARGE"
        assert len(made) <= 512
        assert len(engine.blobs) == 0


async def test_what_no_frame_can_hold_is_refused() -> None:
    """A request of more values than go to a kernel at once is the caller's to correct, and no defect."""
    kernels: list[KernelProcess] = []

    async def start(options: KernelOptions, listener: KernelListener) -> KernelProcess:
        kernels.append(await KernelProcess.start(options, listener))
        return kernels[-1]

    engine = Engine(start_kernel=start)
    await engine.start()
    try:
        request = engine_pb2.PushSerializedRequest()
        for number in range(MAX_PARTS + 1):
            request.values[str(number)].text = "x"
        assert await refused(call(engine, request, engine_pb2.PushSerializedResponse)) == "BAD_REQUEST"
        assert (await execute(engine, "1 + 1")).text == "2"
        assert len(kernels) == 1
    finally:
        engine.stop("the test ends")
        await engine.wait_stopped()


async def test_an_upload_must_begin_with_its_blob() -> None:
    """No message, a chunk first, or a second blob: PROTOCOL_ERROR."""
    blob = engine_pb2.UploadRequest(
        blob=value_pb2.Blob(blob_id="a", codec=value_pb2.CODEC_TEXT, size=1, part_sizes=[1])
    ).SerializeToString()
    chunk = engine_pb2.UploadRequest(chunk=value_pb2.Chunk(data=b"x")).SerializeToString()

    async def messages(*items: bytes) -> object:
        for item in items:
            yield item

    async with running_engine() as (engine, _):
        for items in ((), (chunk,), (blob, blob)):
            assert await refused(engine.upload(messages(*items))) == "PROTOCOL_ERROR"  # type: ignore[arg-type]
        assert engine.blobs.size == 0


@pytest.mark.parametrize("code", ["1", "die"])
async def test_a_defect_in_taking_an_answer_ends_its_operation_alone(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller is told, whether the kernel answered or died, and what waits behind it runs."""

    def defect(*_: object) -> None:
        raise RuntimeError("a defect")

    async with running_engine() as (engine, _):
        with monkeypatch.context() as patch:
            patch.setattr(plain_response, "compose", defect)
            patch.setattr(endings, "died", defect)
            assert await refused(execute(engine, code)) == "INTERNAL"
        await until(lambda: engine.keeper.is_ready)
        assert (await execute(engine, "next")).text == "next"


async def test_who_raises_when_it_is_answered_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """Others who wait for the same operation, and those behind it, have their answers."""
    async with running_engine() as (engine, _):
        answers: list[Answer] = []

        def defect(answer: Answer) -> None:
            raise RuntimeError("a defect")

        context = CallContext(IDS.mint())
        request = engine_pb2.ExecuteRequest(code="1").SerializeToString()
        for done in (defect, answers.append):
            engine.submit(METHODS["Execute"], request, context, done)
        assert (await execute(engine, "next")).text == "next"
        assert len(answers) == 1
    assert "a defect" in caplog.text
