"""The floor: the same contract's stubs and channel options, and a server that only echoes.

`python -m benchmarks.bare_grpc DIRECTORY` is that server: it prints its ports as JSON and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginery._channel import CLIENT_OPTIONS, SERVER_OPTIONS, prepare_grpc

prepare_grpc()

import grpc  # noqa: E402  (gRPC reads its environment on import)
import grpc.aio  # noqa: E402

from benchmarks import measure  # noqa: E402
from enginery import _certificates  # noqa: E402
from enginery.v1 import (  # noqa: E402
    cluster_pb2,
    cluster_pb2_grpc,
    engine_pb2,
    engine_pb2_grpc,
    frame_pb2,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

CLUSTER_ID = "bare"
CHUNK = 1 << 20
PAYLOAD = b"x" * 64  # about what a trivial call carries


async def _session(
    requests: AsyncIterator[cluster_pb2.SessionRequest], context: object
) -> AsyncIterator[cluster_pb2.SessionResponse]:
    async for message in requests:
        replies = [
            frame_pb2.Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=call.request)
            for call in message.calls
        ]
        yield cluster_pb2.SessionResponse(replies=replies)


async def _apply(request: engine_pb2.ApplyRequest, context: object) -> engine_pb2.ApplyResponse:
    return engine_pb2.ApplyResponse(operation_id=request.function_name)


async def _upload(chunks: AsyncIterator[bytes], context: object) -> bytes:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
    return b"%d" % size


async def _download(request: bytes, context: object) -> AsyncIterator[bytes]:
    data = bytes(CHUNK)
    for _ in range(0, int(request), CHUNK):
        yield data


def _handlers() -> list[grpc.GenericRpcHandler]:
    """Return handlers of the four rpcs that are measured."""
    session = grpc.stream_stream_rpc_method_handler(
        _session, cluster_pb2.SessionRequest.FromString, cluster_pb2.SessionResponse.SerializeToString
    )
    apply = grpc.unary_unary_rpc_method_handler(
        _apply, engine_pb2.ApplyRequest.FromString, engine_pb2.ApplyResponse.SerializeToString
    )
    engine: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Apply": apply,
        "Upload": grpc.stream_unary_rpc_method_handler(_upload),  # of raw bytes: protobuf would copy them
        "Download": grpc.unary_stream_rpc_method_handler(_download),
    }
    return [
        grpc.method_handlers_generic_handler("enginery.v1.ClusterService", {"Session": session}),
        grpc.method_handlers_generic_handler("enginery.v1.EngineService", engine),
    ]


async def _serve(directory: Path) -> None:
    authority = _certificates.Authority.load_or_create(directory)
    key, certificate = authority.issue_server(_certificates.controller_name(CLUSTER_ID))
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(_handlers())
    ports = {
        "plaintext": server.add_insecure_port("127.0.0.1:0"),
        "tls": server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)])),
    }
    await server.start()
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def _channel(tls: bool, port: int, directory: Path) -> grpc.aio.Channel:
    address = f"127.0.0.1:{port}"
    if not tls:
        return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
    credentials = grpc.ssl_channel_credentials((directory / _certificates.CA_FILE).read_bytes())
    name = ("grpc.ssl_target_name_override", _certificates.controller_name(CLUSTER_ID))
    return grpc.aio.secure_channel(address, credentials, options=[*CLIENT_OPTIONS, name])


def _message(number: int) -> cluster_pb2.SessionRequest:
    return cluster_pb2.SessionRequest(
        calls=[frame_pb2.Call(call_id=number, method=frame_pb2.METHOD_APPLY, request=PAYLOAD)]
    )


async def _ping_pong(stub: cluster_pb2_grpc.ClusterServiceAsyncStub) -> measure.Numbers:
    stream = stub.Session()
    samples = []
    for number in range(measure.WARM_UP + measure.ROUND_TRIPS):
        start = time.perf_counter()
        await stream.write(_message(number))
        await stream.read()
        samples.append((time.perf_counter() - start) * 1e6)
    await stream.done_writing()
    samples = samples[measure.WARM_UP :]
    return {"stream p50": measure.percentile(samples, 0.5), "stream p99": measure.percentile(samples, 0.99)}


async def _unary(stub: engine_pb2_grpc.EngineServiceAsyncStub) -> measure.Numbers:
    samples = []
    for _ in range(measure.WARM_UP + measure.ROUND_TRIPS):
        start = time.perf_counter()
        await stub.Apply(engine_pb2.ApplyRequest(function_name="f" * 64))
        samples.append((time.perf_counter() - start) * 1e6)
    samples = samples[measure.WARM_UP :]
    return {"unary p50": measure.percentile(samples, 0.5), "unary p99": measure.percentile(samples, 0.99)}


async def _in_flight(stub: cluster_pb2_grpc.ClusterServiceAsyncStub) -> float:
    """One call a message, 64 unanswered at a time: what a client without batching could reach."""
    stream = stub.Session()
    places = asyncio.Semaphore(measure.IN_FLIGHT)

    async def write() -> None:
        for number in range(measure.CALLS_IN_FLIGHT):
            await places.acquire()
            await stream.write(_message(number))
        await stream.done_writing()

    start = time.perf_counter()
    writer = asyncio.create_task(write())
    async for _ in stream:
        places.release()
    await writer
    return measure.CALLS_IN_FLIGHT / (time.perf_counter() - start)


class _Bulk:
    """Streams of raw chunks of 1 MiB, there and back."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
        self._upload = channel.stream_unary("/enginery.v1.EngineService/Upload")
        self._download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        self._download = channel.unary_stream("/enginery.v1.EngineService/Download")
        self._data = bytes(CHUNK)

    async def push(self, size: int) -> None:
        """Send `size` MB."""
        await self._upload(self._data for _ in range(0, size * measure.MB, CHUNK))

    async def pull(self, size: int) -> None:
        """Receive `size` MB."""
        async for chunk in self._download(b"%d" % (size * measure.MB)):
            assert chunk

    async def throughput(self, size: int) -> tuple[float, float]:
        """Return MB/s of `push` and of `pull`."""
        up, down = [], []
        for _ in range(measure.REPEATS[size] + 1):
            start = time.perf_counter()
            await self.push(size)
            middle = time.perf_counter()
            await self.pull(size)
            up.append(size / (middle - start))
            down.append(size / (time.perf_counter() - middle))
        return measure.median(up[1:]), measure.median(down[1:])


async def _beside(stub: cluster_pb2_grpc.ClusterServiceAsyncStub, transfer: Coroutine[Any, Any, None]) -> float:
    """Return p99 in microseconds of a ping-pong beside a transfer, which has a connection of its own."""
    transferring = asyncio.create_task(transfer)
    stream = stub.Session()
    samples: list[float] = []
    while not transferring.done():
        start = time.perf_counter()
        await stream.write(_message(len(samples)))
        await stream.read()
        samples.append((time.perf_counter() - start) * 1e6)
    await stream.done_writing()
    await transferring
    return measure.percentile(samples, 0.99)


async def measure_bare(tls: bool) -> measure.Numbers:
    """Measure against a server process of its own, over TLS or in plaintext."""
    with tempfile.TemporaryDirectory() as folder:  # 0700
        start = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.bare_grpc",
            folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        ports = json.loads(await process.stdout.readline())
        numbers: measure.Numbers = {"ready": time.perf_counter() - start}
        try:
            numbers["idle server"] = measure.resident(process.pid)
            port = ports["tls" if tls else "plaintext"]
            async with _channel(tls, port, Path(folder)) as channel, _channel(tls, port, Path(folder)) as other:
                bulk = _Bulk(other)
                cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
                engine = engine_pb2_grpc.EngineServiceStub(channel)
                numbers |= await _ping_pong(cluster)
                numbers |= await _unary(engine)
                numbers["in flight"] = await _in_flight(cluster)
                for size in measure.SIZES:
                    numbers[f"push {size} MB"], numbers[f"pull {size} MB"] = await bulk.throughput(size)
                numbers["beside push p99"] = await _beside(cluster, bulk.push(measure.LARGE))
                numbers["beside pull p99"] = await _beside(cluster, bulk.pull(measure.LARGE))
        finally:
            process.stdin.close()
            await process.wait()
        return numbers


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
