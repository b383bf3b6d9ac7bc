"""The host's own port: nothing before the welcome, then EngineService for those who have the client's token."""

from __future__ import annotations

import contextlib
import socket
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine_service.direct import DirectPort
from enginery._certificates import Authority, host_name
from enginery._channel import open_channel
from enginery._connection_file import ConnectionInfo
from enginery._direct_token import direct_token
from enginery._serving import token_digest
from enginery._status import from_rpc
from enginery.v1 import engine_pb2, engine_pb2_grpc
from tests.host.fakes import running_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CLUSTER = str(uuid.uuid4())


def as_client(authority: Authority, port: DirectPort, token: str = "client") -> ConnectionInfo:
    address = f"127.0.0.1:{port.port}"
    return ConnectionInfo("client", CLUSTER, address, host_name(CLUSTER), authority.ca_pem, token)


@contextlib.asynccontextmanager
async def open_port(folder: Path, count: int = 1) -> AsyncIterator[tuple[Authority, DirectPort]]:
    authority = Authority.load_or_create(folder)
    async with contextlib.AsyncExitStack() as stack:
        engines = [(await stack.enter_async_context(running_engine(slot=slot)))[0] for slot in range(count)]
        for engine in engines:
            engine.set_id(engine.slot, registered=True)
        port = DirectPort(engines)
        certificate = authority.sign_request(port.certificate_request.encode(), host_name(CLUSTER)).decode()
        await port.open(CLUSTER, certificate, token_digest("client"))
        try:
            yield authority, port
        finally:
            await port.close()


async def reason(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> str:
    """Return the reason for which a call failed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc(caught.value).reason


async def test_nothing_answers_before_the_welcome() -> None:
    """The port is held, so that hellos can name it, but a connection is refused."""
    port = DirectPort([])
    try:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port.port)) != 0
        with pytest.raises(OSError, match="in use"):
            DirectPort([], port=port.port)
    finally:
        await port.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "127.0.0.1:{port}"),
        ({"bind": "0.0.0.0"}, "127.0.0.1:{port}"),
        ({"bind": "0.0.0.0", "advertise": "here.test"}, "here.test:{port}"),
        ({"advertise": "here.test:7000"}, "here.test:7000"),
        ({"advertise": "fd00::1"}, "[fd00::1]:{port}"),
    ],
)
async def test_what_clients_are_told(options: dict[str, Any], told: str) -> None:
    """What it is bound to; if that means all, the address on the way to the controller; or as told."""
    port = DirectPort([], **options)
    try:
        assert await port.addresses("127.0.0.1:7") == [told.format(port=port.port)]
    finally:
        await port.close()


async def test_a_client_calls_an_engine_directly(tmp_path: Path) -> None:
    """TLS under the cluster's name, the client's token, and the operation id in the initial metadata."""
    async with open_port(tmp_path) as (authority, port):
        info = as_client(authority, port)
        async with open_channel(info) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            call = stub.Execute(engine_pb2.ExecuteRequest(code="hi"), metadata=info.metadata)
            result = (await call).result
            assert result.text == "hi"
            metadata = dict(await call.initial_metadata())
            assert metadata["enginery-operation-id"] == result.operation_id


async def test_a_port_that_drains_says_so_and_serves_on(tmp_path: Path) -> None:
    """Health is NOT_SERVING, so that nobody sends new work; calls are answered until the port closes."""
    async with open_port(tmp_path) as (authority, port):
        info = as_client(authority, port)
        async with open_channel(info) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            async def status() -> int:
                request = health_pb2.HealthCheckRequest(service="enginery.v1.EngineService")
                answer = await health.Check(request, metadata=info.metadata)
                return int(answer.status)

            assert await status() == health_pb2.HealthCheckResponse.SERVING
            port.drain()
            assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            answer = await stub.GetId(engine_pb2.GetIdRequest(), metadata=info.metadata)
            assert isinstance(answer, engine_pb2.GetIdResponse)


async def test_others_are_denied(tmp_path: Path) -> None:
    """No token and a wrong one are refused."""
    async with open_port(tmp_path) as (authority, port):
        info = as_client(authority, port, "wrong")
        async with open_channel(info) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)
            assert await reason(stub.GetId(engine_pb2.GetIdRequest(), metadata=info.metadata)) == "WRONG_TOKEN"
            assert await reason(stub.GetId(engine_pb2.GetIdRequest())) == "MISSING_TOKEN"


async def test_several_engines_must_be_named(tmp_path: Path) -> None:
    """With more than one engine the metadata says which; an unknown one is refused."""
    async with open_port(tmp_path, 2) as (authority, port):
        info = as_client(authority, port)
        async with open_channel(info) as channel:
            stub = engine_pb2_grpc.EngineServiceStub(channel)

            def get_id(*more: tuple[str, str]) -> grpc.aio.UnaryUnaryCall[Any, Any]:
                return stub.GetId(engine_pb2.GetIdRequest(), metadata=(*info.metadata, *more))

            assert await reason(get_id()) == "MISSING_ENGINE_ID"
            assert await reason(get_id(("enginery-engine-id", "7"))) == "INVALID_ENGINE_ID"
            answer = await get_id(("enginery-engine-id", "1"))
            assert isinstance(answer, engine_pb2.GetIdResponse)
            assert answer.engine_id == 1


async def test_a_new_token_replaces_the_old(tmp_path: Path) -> None:
    """A controller with another state directory brings other tokens: the old one is good no more."""
    async with open_port(tmp_path) as (authority, port):
        certificate = authority.sign_request(port.certificate_request.encode(), host_name(CLUSTER)).decode()
        await port.open(CLUSTER, certificate, token_digest("new"))
        for token, expected in (("client", "WRONG_TOKEN"), ("new", "")):
            info = as_client(authority, port, token)
            async with open_channel(info) as channel:
                call = engine_pb2_grpc.EngineServiceStub(channel).GetId(
                    engine_pb2.GetIdRequest(), metadata=info.metadata
                )
                if expected:
                    assert await reason(call) == expected
                else:
                    assert (await call).engine_id == 0


async def test_a_token_that_is_for_this_host_alone(tmp_path: Path) -> None:
    """It is taken beside the client token, of which it is made; one made for another address is not."""
    async with open_port(tmp_path) as (authority, port):
        address = f"127.0.0.1:{port.port}"
        certificate = authority.sign_request(port.certificate_request.encode(), host_name(CLUSTER)).decode()
        digest = token_digest(direct_token("client", address))
        await port.open(CLUSTER, certificate, token_digest("client"), (digest,))
        for token in ("client", direct_token("client", address), direct_token("client", "127.0.0.1:1")):
            info = as_client(authority, port, token)
            async with open_channel(info) as channel:
                call = engine_pb2_grpc.EngineServiceStub(channel).GetId(
                    engine_pb2.GetIdRequest(), metadata=info.metadata
                )
                if token == direct_token("client", "127.0.0.1:1"):
                    assert await reason(call) == "WRONG_TOKEN"
                else:
                    assert (await call).engine_id == 0


async def test_a_new_authority_replaces_the_old(tmp_path: Path) -> None:
    """After --insecure, or with another authority, the port does not stay as it was: true TLS or none."""
    (tmp_path / "new").mkdir()
    authority = Authority.load_or_create(tmp_path / "new")
    async with open_port(tmp_path) as (_, port):
        await port.open(CLUSTER, "", token_digest("client"))
        for certificate in (
            authority.sign_request(port.certificate_request.encode(), host_name(CLUSTER)).decode(),
            "damaged",
        ):
            await port.open(CLUSTER, certificate, token_digest("client"))
            info = as_client(authority, port)
            async with open_channel(info) as channel:
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                answer = await stub.GetId(engine_pb2.GetIdRequest(), metadata=info.metadata)
                assert answer.engine_id == 0
