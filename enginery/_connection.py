"""One connection of a client to its controller: two channels, the Session stream, the watch of engines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

import enginery
from enginery import _status
from enginery._channel import open_channel
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery._rpc import cluster_stub
from enginery._transfer import Transfers
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from enginery._connection_file import ConnectionInfo

_LONG = 0.05  # seconds
_SESSION = "/enginery.v1.ClusterService/Session"


@dataclass(slots=True)
class Connection:
    """Channels and streams of one connection."""

    info: ConnectionInfo
    channels: tuple[grpc.aio.Channel, grpc.aio.Channel]
    """For calls, and for large values."""
    stream: Any  # of bytes both ways; grpc's types know neither those nor EOF
    watch: Any  # of WatchEnginesResponse
    transfers: Transfers
    welcome: cluster_pb2.SessionWelcome
    snapshot: cluster_pb2.WatchEnginesResponse
    """The engines there were when it was opened."""

    async def close(self) -> None:
        """End streams and channels."""
        self.stream.cancel()
        self.watch.cancel()
        for channel in self.channels:
            await channel.close()


async def open_connection(
    info: ConnectionInfo, session_id: bytes, cluster_id: str, timeout: float
) -> Connection:
    """Connect within `timeout` seconds, to `cluster_id` if it is not empty; DeliveryError if that fails."""
    channel, bulk = open_channel(info), open_channel(info)
    stream = open_session(channel, info)
    watch: Any = cluster_stub(channel).WatchEngines(cluster_pb2.WatchEnginesRequest(), metadata=info.metadata)
    connection = Connection(
        info,
        (channel, bulk),
        stream,
        watch,
        Transfers(bulk, info.metadata),
        cluster_pb2.SessionWelcome(),
        cluster_pb2.WatchEnginesResponse(),
    )
    try:
        async with asyncio.timeout(timeout):
            began = time.monotonic()
            connection.welcome = await greet(stream, session_id)
            connect_early(bulk, time.monotonic() - began)
            if cluster_id and connection.welcome.cluster_id != cluster_id:
                raise DeliveryError("WRONG_CLUSTER", cluster_id=connection.welcome.cluster_id)
            snapshot = await watch.read()
            if snapshot is grpc.aio.EOF:
                raise DeliveryError("PROTOCOL_ERROR", cause="the controller told of no engines")
            connection.snapshot = snapshot
    except BaseException as error:
        await connection.close()
        if isinstance(error, TimeoutError):
            raise DeliveryError("CONTROLLER_LOST", cause=f"no answer within {timeout:g} s") from None
        raise translated(error) from None
    return connection


def connect_early(bulk: grpc.aio.Channel, seconds: float) -> None:
    """Connect the channel of large values if that takes long, as it did for calls; none waits for it then."""
    if seconds > _LONG:
        bulk.get_state(try_to_connect=True)


def open_session(channel: grpc.aio.Channel, info: ConnectionInfo) -> Any:
    """Return a new Session stream, of serialized messages: `read_response` reads it."""
    stream: Any = channel.stream_stream(_SESSION)
    return stream(metadata=info.metadata)


async def read_response(stream: Any) -> cluster_pb2.SessionResponse | None:
    """Return what comes next on a Session stream, None at its end; MALFORMED_MESSAGE if it is no message."""
    data = await stream.read()
    return None if data is grpc.aio.EOF else parse(cluster_pb2.SessionResponse, data)


async def greet(stream: Any, session_id: bytes) -> cluster_pb2.SessionWelcome:
    """Open the session on a new stream and return the welcome; DeliveryError or AioRpcError if none comes."""
    version = f"enginery {enginery.__version__}"
    hello = cluster_pb2.SessionHello(session_id=session_id, client_version=version)
    with contextlib.suppress(asyncio.InvalidStateError):  # it is over already: reading tells why
        await stream.write(cluster_pb2.SessionRequest(hello=hello).SerializeToString())
    first = await read_response(stream)
    if first is None or not first.HasField("welcome"):
        raise DeliveryError("PROTOCOL_ERROR", cause="the controller did not answer the hello")
    return first.welcome


def translated(error: BaseException) -> DeliveryError:
    """Return what went wrong on a connection as an error of the table; a cancellation of the task is raised."""
    match error:
        case asyncio.CancelledError() if not _is_cancelling():
            # gRPC's word for a call whose channel was closed, as it is when the connection is given up.
            return DeliveryError("CONTROLLER_LOST", cause="the connection was closed")
        case DeliveryError():
            return error
        case grpc.aio.AioRpcError():
            return _status.from_rpc(error)
        case asyncio.InvalidStateError():
            return DeliveryError("CONTROLLER_LOST", cause="the stream ended")
        case Exception():
            return DeliveryError("INTERNAL", cause=f"{type(error).__name__}: {error}", process="client")
        case _:
            raise error


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def cause_of(task: asyncio.Task[None]) -> str:
    """Return why a task that reads a connection ended, for people to read."""
    error = None if task.cancelled() else task.exception()
    if error is None:
        return "the controller ended it"
    failure = translated(error)
    return failure.metadata.get("cause") or failure.text
