"""Queue, interrupt, death and big values, over every way to reach an engine."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import TYPE_CHECKING

import pytest

from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, value_pb2

from .under_test import Caller, EngineUnderTest, decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SPIN = "import time\nopen({path!r}, 'w').close()\nwhile True: time.sleep(0.001)"


@contextlib.asynccontextmanager
async def busy(engine: EngineUnderTest, folder: Path) -> AsyncIterator[asyncio.Task[object]]:
    """Keep the engine busy until it is interrupted."""
    mark = folder / "running"
    running: asyncio.Task[object] = asyncio.ensure_future(engine.execute(SPIN.format(path=str(mark))))
    while not mark.exists():
        assert not running.done()
        await asyncio.sleep(0.005)
    yield running
    if not running.done():
        await engine.call(engine_pb2.InterruptRequest(), engine_pb2.InterruptResponse)
    await running


async def queued(engine: EngineUnderTest, count: int) -> engine_pb2.QueueStatusResponse:
    """Wait until `count` operations wait."""
    while True:
        status = await engine.call(engine_pb2.QueueStatusRequest(), engine_pb2.QueueStatusResponse)
        if len(status.queue) == count:
            return status
        await asyncio.sleep(0.005)


async def test_control_calls_answer_while_code_runs(engine: EngineUnderTest, tmp_path: Path) -> None:
    """GetId, GetResult, GetProperties, HasProperties, QueueStatus and ClearQueue never wait."""
    await engine.execute("1 + 1")
    async with asyncio.timeout(20), busy(engine, tmp_path) as running:
        await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
        record = await engine.call(engine_pb2.GetResultRequest(number=1), engine_pb2.GetResultResponse)
        assert record.result.text == "2"
        await engine.call(engine_pb2.GetPropertiesRequest(), engine_pb2.GetPropertiesResponse)
        await engine.call(engine_pb2.HasPropertiesRequest(keys=["a"]), engine_pb2.HasPropertiesResponse)
        status = await queued(engine, 0)
        assert status.pending.method == "execute"
        assert "while True" in status.pending.arguments
        assert not running.done()


async def test_an_interrupt_keeps_the_namespace(engine: EngineUnderTest, tmp_path: Path) -> None:
    """The running operation ends with KeyboardInterrupt; what was there is there."""
    await engine.push(kept=1)
    async with asyncio.timeout(20), busy(engine, tmp_path) as running:
        answer = await engine.call(engine_pb2.InterruptRequest(), engine_pb2.InterruptResponse)
        result = await running
        assert isinstance(result, engine_pb2.ExecuteResult)
        assert answer.operation_id == result.operation_id
        assert result.error.errors[0].type_name == "KeyboardInterrupt"
        assert result.error.category == 2  # ERROR_CATEGORY_INTERRUPTED
    assert await engine.pull("kept") == {"kept": 1}
    idle = await engine.call(engine_pb2.InterruptRequest(), engine_pb2.InterruptResponse)
    assert not idle.operation_id


async def test_clear_queue_fails_what_waits(engine: EngineUnderTest, tmp_path: Path) -> None:
    """Waiting operations fail with QUEUE_CLEARED; the running one goes on."""
    async with asyncio.timeout(20), busy(engine, tmp_path) as running:
        waiting = [asyncio.ensure_future(engine.execute("cleared = 1")) for _ in range(3)]
        await queued(engine, 3)
        response = await engine.call(engine_pb2.ClearQueueRequest(), engine_pb2.ClearQueueResponse)
        assert response.cleared_count == 3
        for task in waiting:
            with pytest.raises(DeliveryError) as caught:
                await task
            assert caught.value.reason == "QUEUE_CLEARED"
        assert not running.done()


async def test_reset_clears_the_queue(engine: EngineUnderTest, tmp_path: Path) -> None:
    """What waits when a reset is asked for fails with QUEUE_CLEARED; the reset comes after what runs."""
    async with asyncio.timeout(20), busy(engine, tmp_path) as running:
        waiting = asyncio.ensure_future(engine.execute("cleared = 1"))
        await queued(engine, 1)
        reset = asyncio.ensure_future(engine.call(engine_pb2.ResetRequest(), engine_pb2.ResetResponse))
        with pytest.raises(DeliveryError) as caught:
            await waiting
        assert caught.value.reason == "QUEUE_CLEARED"
        assert not running.done()
    await reset


async def test_a_failure_clears_what_its_session_queued_behind_it(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    """Only the same session's operations, and not if it said to keep them; others run."""
    mine, theirs = Caller(session_id=b"mine....", keep_queue=False), Caller(session_id=b"theirs..")
    keeping = Caller(session_id=b"keeping.", keep_queue=True)
    async with asyncio.timeout(20), busy(engine, tmp_path):
        tasks = []
        for number, (code, caller) in enumerate(
            [("1/0", mine), ("2", mine), ("3", theirs), ("1/0", keeping), ("5", keeping)], 1
        ):
            tasks.append(asyncio.ensure_future(engine.execute(code, caller=caller)))
            await queued(engine, number)
        await engine.call(engine_pb2.InterruptRequest(), engine_pb2.InterruptResponse)
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failed, cleared, other, kept_failure, kept = results
    assert isinstance(failed, engine_pb2.ExecuteResult)
    assert failed.HasField("error")
    assert isinstance(cleared, DeliveryError)
    assert cleared.reason == "QUEUE_CLEARED"
    assert isinstance(other, engine_pb2.ExecuteResult)
    assert other.text == "3"
    assert isinstance(kept_failure, engine_pb2.ExecuteResult)
    assert isinstance(kept, engine_pb2.ExecuteResult)
    assert kept.text == "5"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
)
async def test_a_dead_kernel_names_its_end_and_the_engine_is_back(
    engine: EngineUnderTest, code: str, cause: str
) -> None:
    """The call fails with signal or exit code and operation; same id, new incarnation, soon."""
    before = await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
    with pytest.raises(DeliveryError) as caught:
        await engine.execute(code)
    assert caught.value.reason == "KERNEL_DIED"
    assert cause in caught.value.text
    assert caught.value.metadata["operation_id"]
    async with asyncio.timeout(10):
        assert await engine.evaluate("1 + 1") == 2
    after = await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
    assert after.engine_id == before.engine_id
    assert after.incarnation != before.incarnation


async def test_a_forked_child_never_answers_for_its_parent(engine: EngineUnderTest) -> None:
    """A child that falls out of user code ends; the parent's answer is the only one."""
    result = await engine.execute(
        "import os\npid = os.fork()\n'child' if pid == 0 else os.waitpid(pid, 0)[0] == pid"
    )
    assert result.text == "True"
    assert await engine.evaluate("2") == 2


async def test_big_values_go_up_and_come_down_in_chunks(engine: EngineUnderTest) -> None:
    """An uploaded blob stands for a value, once; a big result is a blob to be downloaded."""
    value = bytes(range(256)) * (3 << 12)
    blob = pickle_blob({"big": value})
    await engine.transport.upload(upload(blob.blob, blob.data))
    pushed = await engine.call(engine_pb2.PushRequest(blob=blob.blob), engine_pb2.PushResponse)
    assert not pushed.HasField("error"), pushed.error.traceback
    assert await engine.evaluate("len(big)") == len(value)
    with pytest.raises(DeliveryError) as caught:
        await engine.call(engine_pb2.PushRequest(blob=blob.blob), engine_pb2.PushResponse)
    assert caught.value.reason == "BLOB_NOT_FOUND"
    response = await engine.call(
        engine_pb2.PullRequest(keys=["big"], accept=[value_pb2.CODEC_PICKLE]), engine_pb2.PullResponse
    )
    assert response.blob.size > len(value)
    messages = [
        engine_pb2.DownloadResponse.FromString(data)
        async for data in engine.transport.download(
            engine_pb2.DownloadRequest(blob_id=response.blob.blob_id, release=True).SerializeToString()
        )
    ]
    assert messages[0].blob == response.blob
    for message in messages[1:]:
        assert message.chunk.crc32 == zlib.crc32(message.chunk.data)
        assert len(message.chunk.data) <= 1 << 20
    whole = b"".join(message.chunk.data for message in messages[1:])
    first = response.blob.part_sizes[0]
    assert decode_parts(whole, list(response.blob.part_sizes), first)["big"] == value
    with pytest.raises(DeliveryError) as caught:
        async for _ in engine.transport.download(
            engine_pb2.DownloadRequest(blob_id=response.blob.blob_id).SerializeToString()
        ):
            pass
    assert caught.value.reason == "BLOB_NOT_FOUND"


async def test_a_damaged_chunk_is_refused(engine: EngineUnderTest) -> None:
    """A wrong checksum is DATA_LOSS; nothing is stored."""
    blob = pickle_blob({"a": 1})

    async def messages() -> AsyncIterator[bytes]:
        yield engine_pb2.UploadRequest(blob=blob.blob).SerializeToString()
        chunk = value_pb2.Chunk(offset=0, crc32=1, data=blob.data)
        yield engine_pb2.UploadRequest(chunk=chunk).SerializeToString()

    with pytest.raises(DeliveryError) as caught:
        await engine.transport.upload(messages())
    assert caught.value.reason == "CHECKSUM_MISMATCH"


async def test_a_value_over_the_limit_is_refused_naming_limit_and_option(engine: EngineUnderTest) -> None:
    """Before a byte is sent, the limit and the option that sets it are named."""
    blob = pickle_blob({"a": 1}).blob
    blob.size = 1 << 50
    blob.part_sizes[:] = [1 << 50]

    async def messages() -> AsyncIterator[bytes]:
        yield engine_pb2.UploadRequest(blob=blob).SerializeToString()

    with pytest.raises(DeliveryError) as caught:
        await engine.transport.upload(messages())
    assert caught.value.reason == "VALUE_TOO_LARGE"
    assert "--value-limit" in caught.value.text


@pytest.mark.parametrize("method", ["Execute", "Push", "Apply", "GetResult"])
async def test_bytes_that_are_no_message_are_refused(engine: EngineUnderTest, method: str) -> None:
    """Garbage is INVALID_ARGUMENT, and the engine goes on."""
    with pytest.raises(DeliveryError) as caught:
        await engine.transport.call(method, b"\xff\xff\xff", Caller())
    assert caught.value.reason == "MALFORMED_MESSAGE"
    assert await engine.evaluate("1") == 1


async def test_an_unknown_codec_is_refused(engine: EngineUnderTest) -> None:
    """A number that is no codec is INVALID_ARGUMENT, naming those there are."""
    request = engine_pb2.ExecuteRequest(code="1")
    request.accept.append(77)  # type: ignore[arg-type]
    with pytest.raises(DeliveryError) as caught:
        await engine.call(request, engine_pb2.ExecuteResponse)
    assert caught.value.reason == "UNKNOWN_CODEC"


class PickledBlob:
    """A blob and its bytes."""

    def __init__(self, blob: value_pb2.Blob, data: bytes) -> None:
        self.blob = blob
        self.data = data


_counter = iter(range(10**9))


def pickle_blob(obj: object) -> PickledBlob:
    """Describe `obj` as an uploaded pickle."""
    import os
    import pickle
    import platform

    data = pickle.dumps(obj, protocol=5)
    blob = value_pb2.Blob(
        blob_id=f"test-{os.getpid()}-{next(_counter)}",
        codec=value_pb2.CODEC_PICKLE,
        size=len(data),
        part_sizes=[len(data)],
        python_version=platform.python_version(),
    )
    return PickledBlob(blob, data)


async def upload(blob: value_pb2.Blob, data: bytes) -> AsyncIterator[bytes]:
    """Yield the messages of an upload in chunks of 1 MiB."""
    yield engine_pb2.UploadRequest(blob=blob).SerializeToString()
    for offset in range(0, len(data), 1 << 20):
        piece = data[offset : offset + (1 << 20)]
        chunk = value_pb2.Chunk(offset=offset, crc32=zlib.crc32(piece), data=piece)
        yield engine_pb2.UploadRequest(chunk=chunk).SerializeToString()


def decode_parts(whole: bytes, sizes: list[int], first: int) -> dict[str, object]:
    """Decode a downloaded pickle with its buffers."""
    import platform

    buffers = []
    position = first
    for size in sizes[1:]:
        buffers.append(whole[position : position + size])
        position += size
    pickle = value_pb2.Pickle(python_version=platform.python_version(), data=whole[:first], buffers=buffers)
    value = decode(value_pb2.Value(pickle=pickle))
    assert isinstance(value, dict)
    return value
