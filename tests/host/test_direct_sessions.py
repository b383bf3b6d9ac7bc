"""Session on the host's own port: the frames of the controller's, past it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from enginery import _connection, _ids
from enginery._channel import open_channel
from enginery._status import from_bytes, from_rpc
from enginery.v1 import cluster_pb2, engine_pb2, frame_pb2
from tests.host.test_direct import CLUSTER, as_client, open_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine_service.direct import DirectPort

PATIENCE = 10


class Client:
    """A Session stream."""

    def __init__(self, stream: Any) -> None:
        """Take the stream; `greet` comes first."""
        self.stream = stream
        self.session_id = _ids.new_session_id()
        self.replies: dict[int, frame_pb2.Reply] = {}

    async def greet(self) -> cluster_pb2.SessionWelcome:
        """Say hello and return the welcome."""
        return await _connection.greet(self.stream, self.session_id)

    async def send(self, *calls: frame_pb2.Call) -> None:
        """Send one message."""
        await self.stream.write(cluster_pb2.SessionRequest(calls=calls).SerializeToString())

    async def reply(self, call_id: int) -> frame_pb2.Reply:
        """Return the reply of a call."""
        async with asyncio.timeout(PATIENCE):
            while call_id not in self.replies:
                response = await _connection.read_response(self.stream)
                assert response is not None
                self.replies |= {reply.call_id: reply for reply in response.replies}
        return self.replies.pop(call_id)


def execute(call_id: int, code: str, engine_id: int = 0, **more: Any) -> frame_pb2.Call:
    """Return the call of an Execute."""
    request = engine_pb2.ExecuteRequest(code=code).SerializeToString()
    return frame_pb2.Call(
        call_id=call_id, engine_id=engine_id, method=frame_pb2.METHOD_EXECUTE, request=request, **more
    )


def text(reply: frame_pb2.Reply) -> str:
    """Return the text of an Execute that succeeded."""
    assert reply.outcome == frame_pb2.OUTCOME_OK
    return engine_pb2.ExecuteResponse.FromString(reply.response).result.text


@contextlib.asynccontextmanager
async def connected(
    folder: Path, count: int = 1, token: str = "client"
) -> AsyncIterator[tuple[DirectPort, Client]]:
    """Give a host's port and a stream to it."""
    async with open_port(folder, count) as (authority, port):
        info = as_client(authority, port, token)
        async with open_channel(info) as channel:
            client = Client(_connection.open_session(channel, info))
            yield port, client
            client.stream.cancel()


async def test_calls_of_the_hosts_engines(tmp_path: Path) -> None:
    """One engine, another, and all of them at once; the operation's id is the session's and the call's."""
    async with connected(tmp_path, 2) as (_, client):
        welcome = await client.greet()
        assert (welcome.cluster_id, welcome.controller_epoch) == (CLUSTER, 0)
        targets = [frame_pb2.Target(engine_id=engine_id) for engine_id in (0, 1)]
        await client.send(execute(1, "a"), execute(2, "b", 1), execute(3, "c", targets=targets))
        assert [text(await client.reply(call_id)) for call_id in (1, 2, 3, 4)] == ["a", "b", "c", "c"]
        await client.send(execute(5, "d"))
        answer = engine_pb2.ExecuteResponse.FromString((await client.reply(5)).response)
        assert answer.result.operation_id == _ids.show(_ids.operation_id(client.session_id, 5))


async def test_what_is_not_here_is_refused_by_name(tmp_path: Path) -> None:
    """Another engine, any engine, another registration of an engine, an unknown method; the stream goes on."""
    async with connected(tmp_path) as (_, client):
        await client.greet()
        unknown = frame_pb2.Call(call_id=4, engine_id=0, method=99)  # type: ignore[arg-type]
        await client.send(execute(1, "a", 7), execute(2, "a", -1), execute(3, "a", sent_epoch=5), unknown)
        reasons = [from_bytes((await client.reply(call_id)).error).reason for call_id in (1, 2, 3, 4)]
        assert reasons == ["INVALID_ENGINE_ID", "INVALID_ENGINE_ID", "ENGINE_LOST", "UNKNOWN_METHOD"]
        await client.send(execute(5, "still here"))
        assert text(await client.reply(5)) == "still here"


async def test_a_call_that_comes_again_joins(tmp_path: Path) -> None:
    """On another stream of the same session; the older one ends."""
    async with open_port(tmp_path) as (authority, port):
        info = as_client(authority, port)
        async with open_channel(info) as channel:
            client = Client(_connection.open_session(channel, info))
            await client.greet()
            await client.send(execute(1, "wait"))
            again = Client(_connection.open_session(channel, info))
            again.session_id = client.session_id
            await again.greet()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.stream.read()
            assert from_rpc(caught.value).reason == "SUPERSEDED"
            await again.send(execute(1, "wait"))
            interrupt = engine_pb2.InterruptRequest().SerializeToString()
            call = frame_pb2.Call(call_id=2, engine_id=0, method=frame_pb2.METHOD_INTERRUPT, request=interrupt)
            await again.send(call)
            assert (await again.reply(1)).outcome == frame_pb2.OUTCOME_USER_ERROR
            again.stream.cancel()


async def test_an_engine_that_is_registered_anew_ends_streams(tmp_path: Path) -> None:
    """Clients must ask who is here; so must those of a port that closes."""
    async with connected(tmp_path) as (port, client):
        await client.greet()
        port.engine_changed()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stream.read()
        assert from_rpc(caught.value).reason == "SUPERSEDED"


async def test_a_port_that_closes_sends_what_is_answered(tmp_path: Path) -> None:
    """Then it ends the streams, at once."""
    async with connected(tmp_path) as (port, client):
        await client.greet()
        await client.send(execute(1, "a"))
        assert text(await client.reply(1)) == "a"
        async with asyncio.timeout(0.9):
            await port.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stream.read()
        assert from_rpc(caught.value).reason == "SHUTTING_DOWN"


async def test_others_have_no_session(tmp_path: Path) -> None:
    """The token of a client is asked for, as for every call."""
    async with connected(tmp_path, token="wrong") as (_, client):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.greet()
        assert from_rpc(caught.value).reason == "WRONG_TOKEN"
