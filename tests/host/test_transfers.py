"""Streaming calls that the controller relays: each on a stream of its own, which the host opens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import status_pb2

from engine_service import transfers as transfers_module
from enginery import _ids, _status, _values
from enginery._encoded import Codec, Encoded
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2, value_pb2
from tests.host.fakes import IDS, FakeStream, until
from tests.host.linked import Linked, code, linked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


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


async def test_an_upload_for_several_engines_of_a_host() -> None:
    """Comes once, and the response names the engines that have it."""
    blob = _values.describe("up", Encoded(Codec.TEXT, (b"abc",)))
    uploads = [
        engine_pb2.UploadRequest(blob=blob),
        engine_pb2.UploadRequest(chunk=value_pb2.Chunk(data=b"abc")),
    ]
    async with linked(2) as host:
        stream, _ = await host.registered()
        others = [1, 7]
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_UPLOAD, uploads, others)
        response = engine_pb2.UploadResponse.FromString(messages[0])
        assert (list(response.engine_ids), status) == ([0, 1], None)
        for engine in host.engines:
            assert engine.blobs.find("up", 0.0) == blob
        stream.end()


async def _transfer(
    host: Linked,
    stream: FakeStream,
    method: frame_pb2.Method.ValueType,
    requests: list[Any],
    others: Sequence[int] = (),
) -> tuple[list[bytes], str | None]:
    offer = engine_pb2.TransferOffer(transfer_id="t" * 32, engine_id=0, method=method, other_engine_ids=others)
    stream.send(transfers=[offer])
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


async def test_a_transfer_carries_the_events_of_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the beginning to the outcome; and it takes no turn from the transfers of values, since it lasts."""
    monkeypatch.setattr(transfers_module, "MAX_RUNNING", 0)
    async with linked() as host:
        stream, _ = await host.registered()
        operation_id = IDS.mint()
        await stream.reply(stream.call(code("1"), operation_id=operation_id))
        request = operation_pb2.AttachRequest(operation_id=_ids.show(operation_id))
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_ATTACH, [request])
        events = [event for data in messages for event in operation_pb2.AttachResponse.FromString(data).events]
        assert status is None
        assert [event.WhichOneof("kind") for event in events] == ["started", "outcome"]
        stream.end()


async def test_a_caller_that_is_attached_and_goes_is_noticed_though_nothing_happens() -> None:
    """No event is written that could fail, and still nothing stays behind for it."""
    async with linked() as host:
        stream, _ = await host.registered()
        operation_id = IDS.mint()
        stream.call(code("wait"), operation_id=operation_id)
        offer = engine_pb2.TransferOffer(transfer_id="t" * 32, engine_id=0, method=frame_pb2.METHOD_ATTACH)
        stream.send(transfers=[offer])
        incoming, outgoing = await asyncio.wait_for(host.controller.transfers.get(), 10)
        await anext(incoming)
        request = operation_pb2.AttachRequest(operation_id=_ids.show(operation_id))
        outgoing.put_nowait(engine_pb2.TransferResponse(message=request.SerializeToString()))
        outgoing.put_nowait(engine_pb2.TransferResponse(end=True))
        await anext(incoming)  # it has begun
        transfers = host.link._transfers
        assert transfers is not None
        assert len(transfers) == 1
        outgoing.put_nowait(None)
        await until(lambda: len(transfers) == 0)
        host.kernels[0].started[0].released.set()
        stream.end()


async def test_the_channel_is_connected_before_the_first_transfer() -> None:
    """Over a far link that takes as long as the transfer of a value that is not very large."""
    async with linked() as host:
        stream, _ = await host.registered()
        transfers = host.link._transfers
        assert transfers is not None
        await until(lambda: transfers._channel.get_state() is grpc.ChannelConnectivity.READY)
        stream.end()


async def test_an_upload_whose_caller_has_gone_goes_on() -> None:
    """What came of it before its stream ended is kept, and the link is none the worse."""
    blob = _values.describe("up", Encoded(Codec.TEXT, (b"abc",)))
    async with linked() as host:
        stream, _ = await host.registered()
        offer = engine_pb2.TransferOffer(transfer_id="t" * 32, engine_id=0, method=frame_pb2.METHOD_UPLOAD)
        stream.send(transfers=[offer])
        incoming, outgoing = await asyncio.wait_for(host.controller.transfers.get(), 10)
        await anext(incoming)
        request = engine_pb2.UploadRequest(blob=blob).SerializeToString()
        outgoing.put_nowait(engine_pb2.TransferResponse(message=request))
        part = engine_pb2.UploadRequest(chunk=value_pb2.Chunk(data=b"ab"))
        outgoing.put_nowait(engine_pb2.TransferResponse(message=part.SerializeToString()))
        outgoing.put_nowait(None)
        transfers = host.link._transfers
        assert transfers is not None
        await until(lambda: len(transfers) == 0)
        uploads = [engine_pb2.UploadRequest(blob=blob)]
        assert (await _transfer(host, stream, frame_pb2.METHOD_UPLOAD, uploads))[1] == "UPLOAD_INCOMPLETE"
        uploads += [engine_pb2.UploadRequest(chunk=value_pb2.Chunk(offset=2, data=b"c"))]
        messages, status = await _transfer(host, stream, frame_pb2.METHOD_UPLOAD, uploads)
        assert (engine_pb2.UploadResponse.FromString(messages[0]).blob, status) == (blob, None)
        assert (await stream.reply(stream.call(code("hi")))).outcome == frame_pb2.OUTCOME_OK
        stream.end()
