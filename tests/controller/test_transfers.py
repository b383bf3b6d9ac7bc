"""Upload and Download through the controller, message by message."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import psutil
import pytest
from google.rpc import status_pb2

from controller_service import frames, spread_upload, transfers
from enginery import _status
from enginery._channel import open_channel
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, engine_pb2_grpc, value_pb2
from tests.controller.fakes import FakeCluster, FakeHost, running, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

OK = engine_pb2.TransferRequest(status=status_pb2.Status(code=0).SerializeToString())


class HostSide:
    """A host's end of one transfer, on a channel of its own."""

    def __init__(self, cluster: FakeCluster, offer: engine_pb2.TransferOffer) -> None:
        self.channel = open_channel(cluster.engine_info)
        stub = engine_pb2_grpc.ControllerServiceStub(self.channel)
        self.call: Any = stub.Transfer(metadata=cluster.engine_info.metadata)
        self.offer = offer

    async def accept(self) -> None:
        accept = engine_pb2.TransferAccept(transfer_id=self.offer.transfer_id)
        await self.call.write(engine_pb2.TransferRequest(accept=accept))

    async def read(self) -> engine_pb2.TransferResponse:
        message = await self.call.read()
        assert isinstance(message, engine_pb2.TransferResponse)
        return message

    async def send(self, message: Any) -> None:
        await self.call.write(engine_pb2.TransferRequest(message=message.SerializeToString()))

    async def finish(self, status: engine_pb2.TransferRequest = OK) -> None:
        await self.call.write(status)
        await self.call.done_writing()
        while await self.call.read() is not grpc.aio.EOF:  # what was on its way
            pass

    async def close(self) -> None:
        await self.channel.close()


async def serve(cluster: FakeCluster, host: FakeHost, behave: Callable[[HostSide], Awaitable[None]]) -> None:
    """Take the next offer and behave."""
    await until(lambda: host.transfers)
    side = HostSide(cluster, host.transfers.pop(0))
    try:
        await side.accept()
        await behave(side)
    finally:
        await side.close()


async def uploads(*chunks: bytes) -> AsyncIterator[engine_pb2.UploadRequest]:
    yield engine_pb2.UploadRequest(blob=value_pb2.Blob(blob_id="b"))
    for chunk in chunks:
        yield engine_pb2.UploadRequest(chunk=value_pb2.Chunk(data=chunk))


async def take_all(side: HostSide) -> None:
    """Take an upload and answer with the length of it."""
    size = 0
    while (message := await side.read()).WhichOneof("kind") == "message":
        size += len(engine_pb2.UploadRequest.FromString(message.message).chunk.data)
    assert message.end
    await side.send(engine_pb2.UploadResponse(blob=value_pb2.Blob(blob_id="b", size=size)))
    await side.finish()


async def test_upload(cluster: FakeCluster) -> None:
    """Every message of the caller reaches the host, then `end`; the host's response and status come back."""
    host = cluster.host()
    await host.hello()
    hosting = asyncio.create_task(serve(cluster, host, take_all))
    response = await cluster.engines.Upload(uploads(b"abc", b"", b"x" * (1 << 20)), metadata=cluster.to(0))
    assert response.blob.size == 3 + (1 << 20)
    await hosting


async def test_one_upload_for_several_engines(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has all of it; the response leaves out those that refused it, have gone, or take nothing."""
    monkeypatch.setattr(spread_upload, "_PATIENCE", 0.2)
    refusal = _status.to_bytes(DeliveryError("BLOB_EXISTS", blob_id="b"))

    async def refuse(side: HostSide) -> None:
        await side.read()
        await side.finish(engine_pb2.TransferRequest(status=refusal))

    async def die(side: HostSide) -> None:
        await side.read()
        side.call.cancel()

    async def stall(side: HostSide) -> None:
        await side.read()
        await until(lambda: not cluster.controller._transfers.running)

    hostings = []
    for behave in (refuse, take_all, die, take_all, stall):
        host = cluster.host()
        await host.hello()
        hostings.append(asyncio.create_task(serve(cluster, host, behave)))
    several = (*cluster.to(None), ("enginery-engine-ids", "0,1,2,3,4,77"))
    response = await cluster.engines.Upload(uploads(*[b"x" * (1 << 20)] * 20), metadata=several)
    assert (response.blob.size, list(response.engine_ids)) == (20 << 20, [1, 3])
    await asyncio.gather(*hostings)
    await until(lambda: not len(cluster.controller._transfers))


async def test_an_upload_that_none_of_several_engines_takes(cluster: FakeCluster) -> None:
    """Ends as that of the first; what are no engines' ids is refused."""
    host = cluster.host()
    await host.hello()
    refusal = _status.to_bytes(DeliveryError("BLOB_EXISTS", blob_id="b"))

    async def refuse(side: HostSide) -> None:
        await side.finish(engine_pb2.TransferRequest(status=refusal))

    hosting = asyncio.create_task(serve(cluster, host, refuse))
    for ids, reason in (
        ("0,7", "BLOB_EXISTS"),
        ("7,0", "INVALID_ENGINE_ID"),
        ("", "BAD_REQUEST"),
        ("0,0", "BAD_REQUEST"),
        ("0,-1", "BAD_REQUEST"),
        (",".join(map(str, range(33))), "BAD_REQUEST"),
    ):
        several = (*cluster.to(None), ("enginery-engine-ids", ids))
        if reason == "INVALID_ENGINE_ID":
            hosting = asyncio.create_task(serve(cluster, host, refuse))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await cluster.engines.Upload(uploads(b"abc"), metadata=several)
        assert _status.from_rpc(error.value).reason == reason
        await hosting


async def test_one_upload_travels_once_to_each_host(cluster: FakeCluster) -> None:
    """The offer names its engines. One that the host's response leaves out does not have it; an old host names
    none, and only the first has it."""
    hosts = [cluster.host(), cluster.host()]
    for host in hosts:
        for slot in range(3):
            await host.hello(slot)
    offers: list[list[int]] = []

    async def take(side: HostSide) -> None:
        ids = [side.offer.engine_id, *side.offer.other_engine_ids]
        offers.append(ids)
        while (await side.read()).WhichOneof("kind") == "message":
            pass
        named = [0, 2] if 0 in ids else []
        await side.send(engine_pb2.UploadResponse(blob=value_pb2.Blob(blob_id="b"), engine_ids=named))
        await side.finish()

    hostings = [asyncio.create_task(serve(cluster, host, take)) for host in hosts]
    several = (*cluster.to(None), ("enginery-engine-ids", "4,0,1,5,2"))
    response = await cluster.engines.Upload(uploads(b"abc"), metadata=several)
    assert (response.blob.blob_id, list(response.engine_ids)) == ("b", [4, 0, 2])
    assert sorted(offers) == [[0, 1, 2], [4, 5]]
    await asyncio.gather(*hostings)


async def test_an_upload_for_several_engines_that_broke_off(cluster: FakeCluster) -> None:
    """Says how much of it all have that have any."""
    hostings = []
    for behaviour in (
        DeliveryError("ENGINE_AWAY", engine_id=0),
        DeliveryError("UPLOAD_INCOMPLETE", blob_id="b", offset=20, size=99),
        DeliveryError("UPLOAD_INCOMPLETE", blob_id="b", offset=7, size=99),
    ):
        host = cluster.host()
        await host.hello()
        status = engine_pb2.TransferRequest(status=_status.to_bytes(behaviour))

        async def refuse(side: HostSide, status: engine_pb2.TransferRequest = status) -> None:
            await side.finish(status)

        hostings.append(asyncio.create_task(serve(cluster, host, refuse)))
    several = (*cluster.to(None), ("enginery-engine-ids", "0,1,2"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Upload(uploads(), metadata=several)
    found = _status.from_rpc(error.value)
    assert (found.reason, found.metadata["offset"]) == ("UPLOAD_INCOMPLETE", "7")
    await asyncio.gather(*hostings)


async def test_a_host_that_answers_before_it_has_read(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Its stream ends only when nothing is being written on it: gRPC takes one operation at a time."""
    host = cluster.host()
    await host.hello()

    async def refuse(side: HostSide) -> None:
        refusal = _status.to_bytes(DeliveryError("BLOB_EXISTS", blob_id="b"))
        await until(lambda: any(one.writing.locked() for one in cluster.controller._transfers.running))
        await side.call.write(engine_pb2.TransferRequest(status=refusal))
        await until(lambda: all(one.done.is_set() for one in cluster.controller._transfers.running))
        await side.call.done_writing()
        while await side.call.read() is not grpc.aio.EOF:
            pass

    async def first_is_large() -> AsyncIterator[engine_pb2.UploadRequest]:
        yield engine_pb2.UploadRequest(chunk=value_pb2.Chunk(data=bytes(4 << 20)))

    hosting = asyncio.create_task(serve(cluster, host, refuse))
    with pytest.raises(grpc.aio.AioRpcError):
        await cluster.engines.Upload(first_is_large(), metadata=cluster.to(0))
    await hosting
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_download(cluster: FakeCluster) -> None:
    """The request reaches the host, and every message of the host the caller."""
    host = cluster.host()
    await host.hello()

    async def give(side: HostSide) -> None:
        request = engine_pb2.DownloadRequest.FromString((await side.read()).message)
        assert request.blob_id == "wanted"
        for size in (1, 200, 20_000, 1 << 20):
            await side.send(engine_pb2.DownloadResponse(chunk=value_pb2.Chunk(data=bytes(size))))
        await side.finish()

    hosting = asyncio.create_task(serve(cluster, host, give))
    call = cluster.engines.Download(engine_pb2.DownloadRequest(blob_id="wanted"), metadata=cluster.to(0))
    assert [len(message.chunk.data) async for message in call] == [1, 200, 20_000, 1 << 20]
    await hosting


async def test_hosts_status_reaches_the_caller(cluster: FakeCluster) -> None:
    """A host that refuses in the middle of an upload ends it with its reason."""
    host = cluster.host()
    await host.hello()
    refusal = _status.to_bytes(DeliveryError("BLOB_EXISTS", blob_id="b"))

    async def refuse(side: HostSide) -> None:
        await side.read()
        await side.finish(engine_pb2.TransferRequest(status=refusal))

    hosting = asyncio.create_task(serve(cluster, host, refuse))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Upload(uploads(*[b"x" * 100_000] * 100), metadata=cluster.to(0))
    assert _status.from_rpc(error.value).reason == "BLOB_EXISTS"
    await hosting


async def test_a_host_that_says_what_cannot_be_read(cluster: FakeCluster) -> None:
    """The caller learns that by its name: it is no defect of the controller."""
    host = cluster.host()
    await host.hello()

    async def stammer(side: HostSide) -> None:
        await side.read()
        await side.call.write(engine_pb2.TransferRequest(status=b"\xff"))
        with contextlib.suppress(grpc.aio.AioRpcError):  # it learns that there is no transfer any more
            await side.call.read()

    hosting = asyncio.create_task(serve(cluster, host, stammer))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Upload(uploads(b"abc"), metadata=cluster.to(0))
    assert _status.from_rpc(error.value).reason == "MALFORMED_MESSAGE"
    await hosting


async def test_host_that_dies_fails_the_caller(cluster: FakeCluster) -> None:
    """A transfer that breaks without a status is ENGINE_AWAY: the same call again may work."""
    host = cluster.host()
    await host.hello()

    async def die(side: HostSide) -> None:
        await side.read()
        side.call.cancel()

    hosting = asyncio.create_task(serve(cluster, host, die))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Upload(uploads(b"abc"), metadata=cluster.to(0))
    assert _status.from_rpc(error.value).reason == "ENGINE_AWAY"
    await hosting


async def test_caller_that_goes_away_ends_the_transfer(cluster: FakeCluster) -> None:
    """The host is told, and nothing stays behind."""
    host = cluster.host()
    await host.hello()
    call = cluster.engines.Download(engine_pb2.DownloadRequest(), metadata=cluster.to(0))
    reading = asyncio.create_task(call.read())
    await until(lambda: host.transfers)
    side = HostSide(cluster, host.transfers[0])
    await side.accept()
    await side.read()
    assert (await side.read()).end
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await side.call.code() is grpc.StatusCode.NOT_FOUND
    await until(lambda: len(cluster.controller._transfers) == 0)
    await side.close()


async def test_a_caller_that_cannot_be_written_to_has_gone() -> None:
    """Which is no defect of ours: gRPC may let a write fail before it says that the caller is gone."""

    class Host:
        async def read(self) -> bytes:
            return engine_pb2.TransferRequest(message=b"event").SerializeToString()

    class Caller:
        async def write(self, message: bytes) -> None:
            raise RuntimeError('Failed "execute_batch"')

    future = asyncio.get_running_loop().create_future()
    transfer = transfers._Transfer(math.inf, None, future, future, None)
    with pytest.raises(asyncio.CancelledError):
        await transfers._from_host(transfer, 0, Caller(), Host())  # type: ignore[arg-type]


async def test_unknown_transfer(cluster: FakeCluster) -> None:
    """An offer that nobody made, or whose caller has gone, is TRANSFER_NOT_FOUND."""
    side = HostSide(cluster, engine_pb2.TransferOffer(transfer_id="0" * 32))
    await side.accept()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await side.read()
    assert _status.from_rpc(error.value).reason == "TRANSFER_NOT_FOUND"
    await side.close()


async def test_value_limit(tmp_path: Path) -> None:
    """More than --value-limit is refused, naming limit and option, without waiting for the host."""
    async with running(tmp_path / "state", value_limit=1_000_000) as cluster:
        host = cluster.host()
        await host.hello()

        async def take(side: HostSide) -> None:
            while await side.call.read() is not grpc.aio.EOF:
                pass

        hosting = asyncio.create_task(serve(cluster, host, take))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await cluster.engines.Upload(uploads(*[bytes(1 << 20)] * 9), metadata=cluster.to(0))
        found = _status.from_rpc(error.value)
        assert (found.reason, found.metadata["limit"]) == ("VALUE_TOO_LARGE", "1000000")
        assert "--value-limit" in found.text
        await asyncio.gather(hosting, return_exceptions=True)


def test_hand_made_frames_are_protobuf() -> None:
    """What is framed by hand is what protobuf makes, at every length of a length."""
    for size in (0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152):
        data = b"\x07" * size
        if size:
            request = engine_pb2.TransferRequest(message=data).SerializeToString()
            assert frames.transferred(request) == data
        assert engine_pb2.TransferResponse.FromString(frames.embed(frames.TO_HOST, data)).message == data
    for other in (b"", OK.SerializeToString(), b"\x7a", b"\x7a\x05abc", b"\x7a\xff\xff\xff\xff\xff\xff"):
        assert frames.transferred(other) is None


@pytest.mark.slow
async def test_a_gigabyte_leaves_no_trace(tmp_path: Path) -> None:
    """1 GB through the controller raises its resident memory by less than 32 MB."""
    from tests.controller.processes import controller_process

    async with controller_process(tmp_path / "state") as cluster:
        host = cluster.host()
        await host.hello()
        process = psutil.Process(cluster.pid)
        peak = 0

        async def take(side: HostSide) -> None:
            nonlocal peak
            count = 0
            while (await side.read()).WhichOneof("kind") == "message":
                count += 1
                if count % 64 == 0:
                    peak = max(peak, process.memory_info().rss)
            await side.send(engine_pb2.UploadResponse())
            await side.finish()

        async def upload(megabytes: int) -> None:
            hosting = asyncio.create_task(serve(cluster, host, take))
            await cluster.engines.Upload(uploads(*[b"x" * (1 << 20)] * megabytes), metadata=cluster.to(0))
            await hosting

        await upload(8)  # what is allocated once
        before = process.memory_info().rss
        await upload(1024)
        assert peak - before < 32 << 20
