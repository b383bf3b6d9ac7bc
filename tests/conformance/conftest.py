"""One engine, reached in three ways: the host's own object, its host's port, and the controller."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest
import pytest_asyncio

from controller_service.app import Controller
from controller_service.config import Config
from engine_service.app import Host
from engine_service.config import HostConfig
from engine_service.engine import Engine
from enginery import _connection_file, _ids, _methods, _status
from enginery._certificates import host_name
from enginery._channel import open_channel
from enginery._engine import DEFAULT_GRACE, CallContext
from enginery._methods import METHODS
from enginery.v1 import engine_pb2

from .under_test import Call, Caller, Download, EngineUnderTest, Transport, Upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enginery._connection_file import ConnectionInfo

HERE = Path(__file__).parent
_ids_of_calls = _ids.OperationIds()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run this suite in one event loop, since its engines live in it."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@contextlib.asynccontextmanager
async def local_engine() -> AsyncIterator[Transport]:
    """The host's engine object over its kernel: no gRPC."""
    engine = Engine()
    await engine.start()

    async def call(method: str, request: bytes, caller: Caller) -> bytes:
        context = CallContext(
            caller.operation_id or _ids_of_calls.mint(),
            caller.session_id,
            caller.keep_queue,
            caller.inline_limit,
            caller.timeout,
            DEFAULT_GRACE if caller.grace is None else caller.grace,
            caller.interrupt_only,
            caller.any_incarnation,
        )
        return (await engine.call(METHODS[method], request, context)).response

    try:
        yield Transport("local", call, engine.upload, engine.download, engine.attach, registered=False)
    finally:
        engine.stop("the test is over")
        await engine.wait_stopped()


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[ConnectionInfo, str]]:
    """A controller and a host of one engine in this process; their client file and the host's own address."""
    controller = Controller(Config(state_dir=folder, port=0))
    await controller.start()
    host = Host(HostConfig(connection_file=folder / "engine.json"))
    await host.start()
    try:
        info = _connection_file.read(folder / "client.json", "client")
        async with open_channel(info) as channel:
            watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
            watch = channel.unary_stream("/enginery.v1.ClusterService/WatchEngines")
            call = watch(b"", metadata=info.metadata, timeout=10)
            while not controller.registry.ids():
                await call.read()
            call.cancel()
        assert host.direct_port is not None
        yield info, f"127.0.0.1:{host.direct_port}"
    finally:
        await host.stop()
        await controller.stop()


@contextlib.asynccontextmanager
async def over_grpc(name: str, info: ConnectionInfo, metadata: dict[str, str]) -> AsyncIterator[Transport]:
    """EngineService over a channel."""
    service = f"/{_methods.ENGINE_SERVICE.full_name}"

    def headers(caller: Caller = Caller()) -> tuple[tuple[str, str], ...]:  # noqa: B008 - frozen
        keys = {**metadata, _methods.INLINE_LIMIT_KEY: str(caller.inline_limit)}
        if caller.session_id:
            keys[_methods.SESSION_ID_KEY] = caller.session_id.hex()
        if caller.operation_id:
            keys[_methods.OPERATION_ID_KEY] = _ids.show(caller.operation_id)
        for key, value in (
            (_methods.KEEP_QUEUE_KEY, caller.keep_queue),
            (_methods.INTERRUPT_ONLY_KEY, caller.interrupt_only),
            (_methods.ANY_INCARNATION_KEY, caller.any_incarnation),
        ):
            if value:
                keys[key] = "true"
        for key, seconds in ((_methods.TIMEOUT_KEY, caller.timeout), (_methods.GRACE_KEY, caller.grace)):
            if seconds is not None:
                keys[key] = str(seconds)
        return (*info.metadata, *keys.items())

    async with open_channel(info) as channel:
        uploads: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"{service}/Upload")

        async def call(method: str, request: bytes, caller: Caller) -> bytes:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{service}/{method}")
            try:
                return await unary(request, metadata=headers(caller), timeout=30, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                raise _status.from_rpc(error) from error

        async def upload(requests: AsyncIterator[bytes]) -> bytes:
            try:
                return await uploads(requests, metadata=headers(), timeout=30)
            except grpc.aio.AioRpcError as error:
                raise _status.from_rpc(error) from error

        def streaming(method: str) -> Download:
            open_stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
            open_stream = channel.unary_stream(f"{service}/{method}")

            async def read(request: bytes) -> AsyncIterator[bytes]:
                try:
                    async for message in open_stream(request, metadata=headers(), timeout=30):
                        yield message
                except grpc.aio.AioRpcError as error:
                    raise _status.from_rpc(error) from error

            return read

        made: tuple[Call, Upload] = (call, upload)
        yield Transport(name, *made, streaming("Download"), streaming("Attach"))


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["local", "direct", "controller"])
async def transport(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Transport]:
    """One way to reach an engine, for all tests."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "local":
            yield await stack.enter_async_context(local_engine())
            return
        info, address = await stack.enter_async_context(cluster(tmp_path_factory.mktemp("state")))
        if request.param == "direct":  # a host of one engine needs no engine id
            direct = dataclasses.replace(info, address=address, server_name=host_name(info.cluster_id))
            yield await stack.enter_async_context(over_grpc("direct", direct, {}))
        else:
            named = {_methods.ENGINE_ID_KEY: "0"}
            yield await stack.enter_async_context(over_grpc("controller", info, named))


@pytest_asyncio.fixture(loop_scope="session")
async def engine(transport: Transport) -> EngineUnderTest:
    """The engine, as empty as a new one."""
    under_test = EngineUnderTest(transport)
    await under_test.call(engine_pb2.ResetRequest(), engine_pb2.ResetResponse)
    return under_test
