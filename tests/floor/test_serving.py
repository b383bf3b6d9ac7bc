"""Every call passes the guard: who may call, and how errors leave."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from enginery import _status
from enginery._channel import open_channel
from enginery._reasons import DeliveryError
from enginery._serving import Authorizer, abort, check_insecure, is_loopback, token_digest
from enginery.errors import EngineryError
from enginery.v1 import cluster_pb2

from .conftest import CLUSTER, Served

if TYPE_CHECKING:
    from enginery._connection_file import ConnectionInfo

Stream = grpc.aio.StreamStreamCall[Any, Any]

INFO = f"/{CLUSTER.full_name}/GetClusterInfo"
HEALTH = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
KINDS = {
    "unary": INFO,
    "server stream": f"/{CLUSTER.full_name}/WatchEngines",
    "both stream": f"/{CLUSTER.full_name}/Session",
    "unknown method": f"/{CLUSTER.full_name}/Nothing",
    "unknown service": "/some.Service/Call",
    "health": HEALTH,
    "health watch": HEALTH_WATCH,
    "reflection v1": REFLECTION.format("v1"),
    "reflection v1alpha": REFLECTION.format("v1alpha"),
}


async def call(
    info: ConnectionInfo, method: str, data: bytes = b"", *, token: str | None = None, over_socket: bool = False
) -> bytes | DeliveryError:
    """Make one call of any kind with raw bytes; the first answer, or the error."""
    metadata = (("authorization", token),) if token else ()
    async with open_channel(info, over_socket=over_socket) as channel:
        stream: Stream = channel.stream_stream(method)(metadata=metadata, timeout=10)
        try:
            await stream.write(data)
            await stream.done_writing()
            answer = await stream.read()
            assert isinstance(answer, bytes), await stream.code()
            return answer
        except grpc.aio.AioRpcError as error:
            return _status.from_rpc(error)
        except asyncio.InvalidStateError:  # it was refused before it was written
            trailing: Any = await stream.trailing_metadata()
            return _status.from_parts(await stream.code(), await stream.details() or "", trailing or ())


async def refusal(info: ConnectionInfo, method: str, data: bytes = b"", **options: object) -> DeliveryError:
    """Return why a call is refused. gRPC hides it if the refusal comes amid a write: then ask again."""
    for _ in range(5):
        answer = await call(info, method, data, **options)  # type: ignore[arg-type]
        assert isinstance(answer, DeliveryError), answer
        if answer.reason != "CONTROLLER_LOST":
            return answer
    raise AssertionError(f"{method}: no status in five tries")


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_token_everything_is_denied(served: Served, kind: str) -> None:
    """Handlers of each kind, health, reflection and unknown methods: MISSING_TOKEN."""
    assert (await refusal(served.client, KINDS[kind])).reason == "MISSING_TOKEN"


@pytest.mark.parametrize("kind", KINDS)
async def test_with_a_wrong_token_everything_is_denied(served: Served, kind: str) -> None:
    """A token of no role is WRONG_TOKEN everywhere."""
    assert (await refusal(served.client, KINDS[kind], token="Bearer nonsense")).reason == "WRONG_TOKEN"


async def test_the_scheme_must_be_bearer(served: Served) -> None:
    """The bare token, and other schemes, are wrong; the scheme's case does not matter."""
    token = served.client.token
    assert (await refusal(served.client, INFO, token=token)).reason == "WRONG_TOKEN"
    assert (await refusal(served.client, INFO, token=f"Basic {token}")).reason == "WRONG_TOKEN"
    assert isinstance(await call(served.client, INFO, token=f"bearer {token}"), bytes)


async def test_each_method_has_its_roles(served: Served) -> None:
    """The role client may call ClusterService; the role engine gets WRONG_ROLE, but may ask for health."""
    engine = f"Bearer {served.engine.token}"
    assert (await refusal(served.engine, INFO, token=engine)).reason == "WRONG_ROLE"
    assert isinstance(await call(served.engine, HEALTH, token=engine), bytes)
    answer = await call(served.client, INFO, token=f"Bearer {served.client.token}")
    assert isinstance(answer, bytes)
    assert cluster_pb2.GetClusterInfoResponse.FromString(answer).pid == 7


@pytest.mark.parametrize("method", [KINDS["unknown method"], KINDS["unknown service"]])
async def test_authenticated_callers_of_unknown_methods_get_unimplemented(served: Served, method: str) -> None:
    """Tools fall back to older services only on UNIMPLEMENTED."""
    error = await refusal(served.client, method, token=f"Bearer {served.client.token}")
    assert error.reason == "UNKNOWN_METHOD"
    assert method in error.text


async def test_the_socket_needs_no_token(served: Served) -> None:
    """Who reaches client.sock has the role client, whatever token came along."""
    for token in (None, "Bearer nonsense"):
        assert isinstance(await call(served.client, INFO, token=token, over_socket=True), bytes)
    error = await refusal(served.client, KINDS["unknown method"], over_socket=True)
    assert error.reason == "UNKNOWN_METHOD"


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_answers_under_both_names(served: Served, version: str) -> None:
    """One handler serves v1 and v1alpha, whose messages are equal on the wire."""
    request = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    answer = await call(served.client, REFLECTION.format(version), request, over_socket=True)
    assert isinstance(answer, bytes)
    listed = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response
    assert CLUSTER.full_name in [service.name for service in listed.service]


async def test_health_knows_the_services(served: Served) -> None:
    """The whole server and each service are SERVING; an unknown one keeps health's own NOT_FOUND."""
    async with open_channel(served.client) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        for service in ("", CLUSTER.full_name):
            answer = await stub.Check(
                health_pb2.HealthCheckRequest(service=service), metadata=served.client.metadata
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="x"), metadata=served.client.metadata)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("kind", ["unary", "server stream", "both stream"])
async def test_bytes_that_are_no_message_are_named(served: Served, kind: str) -> None:
    """Garbage is INVALID_ARGUMENT and names the message that was expected, not UNKNOWN with Python's words."""
    error = await refusal(served.client, KINDS[kind], b"\xff\xff\xff", over_socket=True)
    assert error.reason == "MALFORMED_MESSAGE"
    assert "enginery.v1." in error.text


async def test_errors_of_handlers_arrive_with_their_reason(served: Served) -> None:
    """A DeliveryError keeps reason and status, before the first answer and after it."""
    error = await refusal(served.client, f"/{CLUSTER.full_name}/ListEngines", over_socket=True)
    assert error.reason == "BAD_PAGE_TOKEN"
    async with open_channel(served.client, over_socket=True) as channel:
        stream: Stream = channel.stream_stream(KINDS["server stream"])(timeout=10)
        await stream.write(b"")
        await stream.done_writing()
        assert await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert _status.from_rpc(caught.value).reason == "SHUTTING_DOWN"


async def test_defects_are_internal_and_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is INTERNAL for the caller, without its text; the traceback is in the log."""
    with caplog.at_level(logging.ERROR):
        error = await refusal(served.client, f"/{CLUSTER.full_name}/Shutdown", over_socket=True)
    assert error.reason == "INTERNAL"
    assert "ZeroDivisionError" in error.text
    assert "a defect" not in error.text.replace("a defect in Enginery", "")
    assert "a defect" in caplog.text


def test_an_engine_token_counts_on_the_socket_too() -> None:
    """A valid token decides the role, the socket only stands in for a missing one."""
    authorizer = Authorizer({"engine": token_digest("e"), "client": token_digest("c")}, socket_role="client")
    assert authorizer.role([("authorization", "Bearer e")], "unix:") == "engine"
    assert authorizer.role([], "unix:") == "client"
    with pytest.raises(DeliveryError):
        authorizer.role([], "ipv4:127.0.0.1:1")


def test_without_a_socket_role_sockets_need_tokens() -> None:
    """Hosts give nobody a role for free."""
    with pytest.raises(DeliveryError, match="MISSING_TOKEN"):
        Authorizer({"client": token_digest("c")}).role([], "unix:")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_insecure_is_for_loopback(host: str) -> None:
    """Loopback addresses are let through."""
    assert is_loopback(host)
    check_insecure(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", ""])
def test_insecure_is_refused_elsewhere(host: str) -> None:
    """Any other bind is refused, and the text says what to do."""
    with pytest.raises(EngineryError, match=r"--insecure is refused .* bind 127\.0\.0\.1"):
        check_insecure(host)


async def test_the_certificate_must_be_of_the_cluster(served: Served) -> None:
    """A client that expects another name does not connect."""
    stranger = dataclasses.replace(served.client, server_name="controller.other.enginery")
    async with open_channel(stranger) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(INFO, request_serializer=bytes)(
                b"", metadata=stranger.metadata, timeout=5
            )
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_who_has_gone_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    """The status cannot be sent any more: the rpc counts as cancelled, and no traceback is logged."""

    class Gone:
        async def abort(self, *_: object) -> None:
            raise RuntimeError("the call is over")

    with pytest.raises(asyncio.CancelledError):
        await abort(Gone(), grpc.StatusCode.NOT_FOUND, "no", ())  # type: ignore[arg-type]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
