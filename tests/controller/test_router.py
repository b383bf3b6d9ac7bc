"""EngineService through the controller: every unary rpc, by metadata, as raw bytes."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import grpc.aio
import pytest

from enginery import _ids, _status
from enginery._methods import ENGINE_SERVICE, METHODS, STREAMING
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2
from tests.controller.fakes import PATIENCE, FakeCluster, until

UNARY = sorted(
    name
    for name, number in METHODS.items()
    if number not in STREAMING and name != "Release"  # on which the controller acts itself
)


def raw(cluster: FakeCluster, name: str) -> Any:
    """Return a unary method as bytes in and bytes out."""
    return cluster.client_channel.unary_unary(f"/{ENGINE_SERVICE.full_name}/{name}")


@pytest.mark.parametrize("name", UNARY)
async def test_every_method_passes_its_bytes(cluster: FakeCluster, name: str) -> None:
    """The request arrives under the method's number as it was sent, and so does the response."""
    host = cluster.host()
    await host.hello()
    assert await raw(cluster, name)(b"\xffraw", metadata=cluster.to(0)) == b"\xffraw"
    assert host.calls[0].method == METHODS[name]


async def test_metadata_becomes_the_calls_context(cluster: FakeCluster) -> None:
    """Operation, session and options travel in the frame, and the operation comes back as initial metadata."""
    host = cluster.host()
    await host.hello()
    operation = str(uuid.uuid4())
    metadata = cluster.to(
        0,
        enginery_operation_id=operation,
        enginery_session_id=b"sessionA".hex(),
        enginery_keep_queue="true",
        enginery_inline_limit="77",
    )
    call = raw(cluster, "Execute")(b"", metadata=metadata)
    initial = dict(await call.initial_metadata())
    await call
    assert initial["enginery-operation-id"] == operation
    (frame,) = host.calls
    assert (frame.operation_id, frame.session_id) == (_ids.parse(operation), b"sessionA")
    assert frame.options == frame_pb2.CallOptions(keep_queue=True, inline_limit=77)


async def test_operation_ids_are_minted(cluster: FakeCluster) -> None:
    """Without an operation id each call gets one of its own, told in initial metadata."""
    host = cluster.host()
    await host.hello()
    calls = [raw(cluster, "Keys")(b"", metadata=cluster.to(0)) for _ in range(2)]
    await asyncio.gather(*calls)
    ids = [dict(await call.initial_metadata())["enginery-operation-id"] for call in calls]
    assert sorted(_ids.show(call.operation_id) for call in host.calls) == sorted(ids)
    assert ids[0] != ids[1]
    assert {call.session_id for call in host.calls} == {b""}, "it neither clears nor is cleared"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "MISSING_ENGINE_ID"),
        ({"enginery-engine-id": "9"}, "INVALID_ENGINE_ID"),
        ({"enginery-engine-id": "first"}, "BAD_REQUEST"),
        ({"enginery-engine-id": "0", "enginery-operation-id": "7"}, "BAD_REQUEST"),
        ({"enginery-engine-id": "0", "enginery-session-id": "xyz"}, "BAD_REQUEST"),
        ({"enginery-engine-id": "0", "enginery-keep-queue": "maybe"}, "BAD_REQUEST"),
        ({"enginery-engine-id": "0", "enginery-inline-limit": "999999999"}, "BAD_REQUEST"),
    ],
)
async def test_bad_metadata(cluster: FakeCluster, given: dict[str, str], reason: str) -> None:
    """A missing, unknown or malformed key is an error that says what there is."""
    await cluster.host().hello()
    await cluster.host().hello()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await raw(cluster, "Keys")(b"", metadata=(*cluster.metadata, *given.items()))
    found = _status.from_rpc(error.value)
    assert found.reason == reason
    if reason.endswith("ENGINE_ID"):
        assert "0, 1" in found.text
    assert "None" not in found.metadata.values()


async def test_no_engines(cluster: FakeCluster) -> None:
    """Without any engine the error says how to start one."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=cluster.to(0))
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert _status.from_rpc(error.value).reason == "NO_ENGINES_REGISTERED"


async def test_delivery_error_becomes_a_status(cluster: FakeCluster) -> None:
    """What the host says about a failed delivery is the status of the call."""
    host = cluster.host()
    await host.hello()
    lost = DeliveryError("KERNEL_DIED", engine_id=0, cause="SIGSEGV", method="keys", operation_id="o")
    host.answer = lambda call: frame_pb2.Reply(
        call_id=call.call_id, outcome=frame_pb2.OUTCOME_NOT_DELIVERED, error=_status.to_bytes(lost)
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=cluster.to(0))
    assert (error.value.code(), _status.from_rpc(error.value).metadata) == (
        grpc.StatusCode.ABORTED,
        lost.metadata,
    )


async def test_deadline_ends_the_waiting_only(cluster: FakeCluster) -> None:
    """A passed deadline ends the rpc; the operation stays with the engine, and its late reply is dropped."""
    host = cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.engines.Keys(engine_pb2.KeysRequest(), metadata=cluster.to(0), timeout=0.5)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    reference = cluster.controller._switchboard.engine(0)  # type: ignore[union-attr]
    assert reference.statistics().waiting_calls == 1
    host.reply(host.calls[0])
    await until(lambda: reference.statistics().waiting_calls == 0)


async def test_retries_pile_up_nothing(cluster: FakeCluster) -> None:
    """Who gives up and comes again takes the place of the call that waits; only the host refuses another."""
    host = cluster.host()
    host.answer = lambda _call: None
    await host.hello()
    execute, metadata = raw(cluster, "Execute"), cluster.to(0, enginery_operation_id=str(uuid.uuid4()))
    reference = cluster.controller._switchboard.engine(0)  # type: ignore[union-attr]
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError):
            await execute(b"same", metadata=metadata, timeout=0.3)
        await until(lambda: all(call.receiver.is_gone for call in reference._router._waiting.values()))
    assert (len(host.calls), reference.statistics().waiting_calls) == (1, 1)
    last = execute(b"same", metadata=metadata)
    await until(lambda: not any(call.receiver.is_gone for call in reference._router._waiting.values()))
    other = execute(b"another", metadata=metadata)
    await until(lambda: len(host.calls) == 2)
    for call in host.calls:
        host.reply(call)
    assert [await asyncio.wait_for(call, PATIENCE) for call in (last, other)] == [b"same", b"another"]


async def test_call_to_an_away_engine_waits(cluster: FakeCluster) -> None:
    """A call that is made while the engine is away runs when it is back."""
    host = cluster.host()
    await host.hello(incarnation="kernel")
    await host.close()
    await until(lambda: cluster.controller.registry.statistics().away == 1)
    call = raw(cluster, "Keys")(b"later", metadata=cluster.to(0))
    reference = cluster.controller._switchboard.engine(0)  # type: ignore[union-attr]
    await until(lambda: reference.statistics().waiting_calls == 1)
    await cluster.host(host_id=host.host_id).hello(incarnation="kernel")
    assert await asyncio.wait_for(call, PATIENCE) == b"later"
