"""A client's connection: the asyncio side of `_session`, on the loop's thread.

One stream carries all small calls; another tells of engines; a channel of its own carries large values. When
the connection breaks, it is opened again with growing delays, reading the connection file anew: calls that were
sent end with ControllerLost, those that were not wait for the new one, at most `timeout` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import enginery
from enginery import _loop
from enginery._channel import open_channel, prepare_grpc

prepare_grpc()

import grpc  # noqa: E402 - after prepare_grpc
import grpc.aio  # noqa: E402

from enginery import _calls, _status  # noqa: E402
from enginery._reasons import DeliveryError, public  # noqa: E402
from enginery._session import Entry, Session  # noqa: E402
from enginery._transfer import Transfers  # noqa: E402
from enginery.engines import Roster  # noqa: E402
from enginery.errors import EngineryError  # noqa: E402
from enginery.v1 import cluster_pb2, cluster_pb2_grpc, frame_pb2, value_pb2  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from enginery._calls import Answer, Request
    from enginery._connection_file import ConnectionInfo
    from enginery._decode import Errors
    from enginery._encoded import Encoded
    from enginery.operation import Operation

T = TypeVar("T")

_SESSION = "/enginery.v1.ClusterService/Session"
_FIRST_DELAY = 0.1  # seconds before the connection is opened again
_GROWTH = 1.5
_LONGEST_DELAY = 2.0
_TRANSFERS = 4  # at a time: more share the same wire
_FLUSH = 5.0  # seconds that `close` gives what was submitted to be sent
_LINGER = 0.5  # seconds that `close` gives the controller to take what was sent


@dataclass(slots=True)
class _Connection:
    """Channels and streams of one connection."""

    info: ConnectionInfo
    channels: tuple[grpc.aio.Channel, grpc.aio.Channel]
    stream: Any  # of bytes and SessionResponse; grpc's types know neither raw requests nor EOF
    watch: Any  # of WatchEnginesResponse
    welcome: cluster_pb2.SessionWelcome
    transfers: Transfers

    async def close(self) -> None:
        """End streams and channels."""
        self.stream.cancel()
        self.watch.cancel()
        for channel in self.channels:
            await channel.close()


class Link:
    """The connection of one client to its controller."""

    def __init__(self, source: Callable[[], ConnectionInfo], timeout: float) -> None:
        """`source` reads the connection file; `timeout` bounds every wait for a connection, in seconds."""
        self.session = Session()
        self.roster = Roster()
        self.thread = _loop.get()
        self.timeout = timeout
        self.reconnects = 0
        self._source = source
        self._connection: _Connection | None = None
        self._ready = asyncio.Event()  # connected
        self._sendable = asyncio.Event()  # the writer has something to look at
        self._drained = asyncio.Event()  # the writer found nothing to send
        self._woken = False
        self._closing = False
        self._slots = asyncio.Semaphore(_TRANSFERS)
        self._keeper: asyncio.Task[None] | None = None
        self._transfers: set[asyncio.Task[None]] = set()
        self.cluster_id = ""
        self.info: ConnectionInfo | None = None

    # ---- any thread

    def submit(self, request: Request[T], engine_ids: Sequence[int], errors: Errors) -> list[Operation[T]]:
        """Send a call to each engine at once and return the operations."""
        _loop.check_fork()
        now = time.monotonic()
        entries = [self.session.entry(request, engine_id, errors, now) for engine_id in engine_ids]
        request.uploads = ()  # the entries hold them, until they are sent
        try:
            self.session.submit(entries, may_wait=not self.thread.is_current())
        except DeliveryError as error:
            raise public(error) from None
        if not self._woken:
            self._woken = True
            self.thread.loop.call_soon_threadsafe(self._wake)
        return [entry.operation for entry in entries]

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine of this link and wait for it; errors are the public ones."""
        try:
            return self.thread.run(coroutine, timeout)
        except DeliveryError as error:
            raise public(error) from None

    def fetch(self, engine_id: int, blob: value_pb2.Blob) -> Encoded:
        """Download a blob and wait for it; the engine's host keeps it."""
        return self.run(self._download(engine_id, blob, release=False))

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    # ---- the loop's thread: one connection after the other

    async def start(self) -> None:
        """Open the first connection; DeliveryError or EngineryError if that fails."""
        connection = await self._open()
        self.cluster_id = connection.welcome.cluster_id
        self._keeper = asyncio.create_task(self._keep(connection), name="enginery-link")
        self.thread.at_exit(self.close)

    async def _open(self) -> _Connection:
        info = self._source()
        channel, bulk = open_channel(info), open_channel(info)
        stream: Any = channel.stream_stream(
            _SESSION, request_serializer=None, response_deserializer=cluster_pb2.SessionResponse.FromString
        )(metadata=info.metadata)
        watch: Any = cluster_pb2_grpc.ClusterServiceStub(channel).WatchEngines(
            cluster_pb2.WatchEnginesRequest(), metadata=info.metadata
        )
        transfers = Transfers(bulk, info.metadata)
        connection = _Connection(info, (channel, bulk), stream, watch, cluster_pb2.SessionWelcome(), transfers)
        try:
            async with asyncio.timeout(self.timeout):
                connection.welcome = await self._greet(stream)
                snapshot = await watch.read()
                if snapshot is grpc.aio.EOF:
                    raise DeliveryError("PROTOCOL_ERROR", cause="the controller told of no engines")
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                cause = f"no answer within {self.timeout:g} s"
                raise DeliveryError("CONTROLLER_LOST", cause=cause) from None
            raise _translated(error) from None
        self.roster.apply(snapshot)
        self.info = info
        return connection

    async def _greet(self, stream: Any) -> cluster_pb2.SessionWelcome:
        version = f"enginery {enginery.__version__}"
        hello = cluster_pb2.SessionHello(session_id=self.session.session_id, client_version=version)
        with contextlib.suppress(asyncio.InvalidStateError):  # it is over already: reading tells why
            await stream.write(cluster_pb2.SessionRequest(hello=hello).SerializeToString())
        first = await stream.read()
        if first is grpc.aio.EOF or not first.HasField("welcome"):
            raise DeliveryError("PROTOCOL_ERROR", cause="the controller did not answer the hello")
        welcome: cluster_pb2.SessionWelcome = first.welcome
        if self.cluster_id and welcome.cluster_id != self.cluster_id:
            raise DeliveryError("WRONG_CLUSTER", cluster_id=welcome.cluster_id)
        return welcome

    async def _keep(self, connection: _Connection) -> None:
        while True:
            cause = await self._serve(connection)
            self.session.disconnected(cause)
            if self._closing:
                return
            connection = await self._reopen(cause)
            self.reconnects += 1

    async def _serve(self, connection: _Connection) -> str:
        """Serve a connection until it ends; return why it did."""
        self._connection = connection
        self._ready.set()
        self._sendable.set()
        reader = asyncio.create_task(self._read(connection))
        watcher = asyncio.create_task(self._watch(connection))
        writer = asyncio.create_task(self._write(connection))
        try:
            await asyncio.wait({reader, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ready.clear()
            self._connection = None
            ended = [task for task in (reader, watcher) if task.done()]
            writer.cancel()  # the streams are over; nothing of them can be saved
            await connection.close()
            await asyncio.gather(reader, watcher, writer, return_exceptions=True)
        return _cause(ended[0])

    async def _reopen(self, cause: str) -> _Connection:
        delay = _FIRST_DELAY
        while True:
            self.session.expire(time.monotonic() - self.timeout, cause)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, hides nothing
            delay = min(delay * _GROWTH, _LONGEST_DELAY)
            try:
                return await self._open()
            except (DeliveryError, EngineryError) as error:
                cause = error.metadata.get("cause", "") or (
                    error.text if isinstance(error, DeliveryError) else str(error)
                )

    async def _read(self, connection: _Connection) -> None:
        while (response := await connection.stream.read()) is not grpc.aio.EOF:
            for reply in response.replies:
                self._reply(reply)

    async def _watch(self, connection: _Connection) -> None:
        while (response := await connection.watch.read()) is not grpc.aio.EOF:
            self.roster.apply(response)

    async def _write(self, connection: _Connection) -> None:
        try:
            while True:
                while (message := self.session.take()) is not None:
                    await connection.stream.write(message)
                self._drained.set()
                if self._closing:
                    await connection.stream.done_writing()
                    return
                self._sendable.clear()
                await self._sendable.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            connection.stream.cancel()  # the reader learns why

    # ---- calls out

    def _wake(self) -> None:
        self._woken = False
        for entry in self.session.accept():
            self._start(self._upload(entry))
        self._sendable.set()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._transfers.add(task)
        task.add_done_callback(self._transfers.discard)

    async def _upload(self, first: Entry) -> None:
        """Upload the values of a call, send it, and go on with the next on its engine that has some."""
        entry: Entry | None = first
        while entry is not None:
            engine_id = entry.operation.engine_id
            try:
                async with self._slots:
                    transfers = await self._connected()
                    for blob, encoded in entry.uploads:
                        await transfers.upload(engine_id, blob, encoded)
            except (Exception, asyncio.CancelledError) as error:
                failure = _translated(error)
                if failure.reason == "CONTROLLER_LOST":  # the value was lost on its way; the call never left
                    failure = DeliveryError("NOT_SENT", cause=failure.metadata.get("cause", ""))
                self.session.upload_failed(entry, failure)
                return
            entry = self.session.uploaded(entry)
            self._sendable.set()

    async def _connected(self) -> Transfers:
        if self._closing:
            raise DeliveryError("NOT_SENT", cause="this client was closed")
        try:
            async with asyncio.timeout(self.timeout):
                while self._connection is None:
                    await self._ready.wait()
        except TimeoutError:
            raise DeliveryError("NOT_SENT", cause=f"no connection within {self.timeout:g} s") from None
        return self._connection.transfers

    # ---- replies in

    def _reply(self, reply: frame_pb2.Reply) -> None:
        entry = self.session.replied(reply.call_id)
        if entry is None:
            return  # it was given up when an earlier connection broke
        operation, request = entry.operation, entry.request
        if reply.outcome not in (frame_pb2.OUTCOME_OK, frame_pb2.OUTCOME_USER_ERROR):
            operation.fail(_status.from_bytes(reply.error))
            return
        try:
            message = request.response.FromString(reply.response)
        except Exception as error:  # DecodeError, whose class differs between protobuf's implementations
            operation.fail(DeliveryError("MALFORMED_MESSAGE", message=f"{request.response.__name__} ({error})"))
            return
        engine_id = operation.engine_id
        fetch = partial(_fetch, self, request.owner, engine_id)
        answer = _calls.Answer(engine_id, reply.outcome, message, {}, fetch, operation.errors)
        blobs = _calls.blobs_of(request.method, message)
        if blobs:
            self._start(self._complete(entry, answer, blobs))
        else:
            operation.succeed(answer)

    async def _complete(self, entry: Entry, answer: Answer, blobs: list[tuple[value_pb2.Blob, bool]]) -> None:
        """Download what an answer named, then hand it over."""
        try:
            for blob, indispensable in blobs:
                try:
                    downloaded = await self._download(answer.engine_id, blob, release=indispensable)
                except DeliveryError:
                    if indispensable:
                        raise
                else:
                    answer.blobs[blob.blob_id] = downloaded
        except DeliveryError as error:
            entry.operation.fail(error)
        except asyncio.CancelledError:
            entry.operation.fail(DeliveryError("CONTROLLER_LOST", cause="this client was closed"))
            raise
        else:
            entry.operation.succeed(answer)

    async def _download(self, engine_id: int, blob: value_pb2.Blob, *, release: bool) -> Encoded:
        try:
            async with self._slots:
                transfers = await self._connected()
                return await transfers.download(engine_id, blob, release=release)
        except (Exception, asyncio.CancelledError) as error:
            raise _translated(error) from None

    # ---- the cluster

    async def cluster_info(self) -> cluster_pb2.GetClusterInfoResponse:
        """Return facts about the cluster."""
        stub, metadata = await self._cluster()
        try:
            info: cluster_pb2.GetClusterInfoResponse = await stub.GetClusterInfo(
                cluster_pb2.GetClusterInfoRequest(), metadata=metadata, timeout=self.timeout
            )
        except grpc.aio.AioRpcError as error:
            raise _status.from_rpc(error) from None
        return info

    async def shutdown(self, *, keep_engines: bool) -> None:
        """Stop engines and controller; return when the connection has ended, or after `timeout` seconds."""
        stub, metadata = await self._cluster()
        self._closing = True  # what follows is no reason to connect again
        try:
            await stub.Shutdown(
                cluster_pb2.ShutdownRequest(keep_engines=keep_engines), metadata=metadata, timeout=self.timeout
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # gone before it answered: that is success
                self._closing = False
                raise _status.from_rpc(error) from None
        if self._keeper is not None:
            await asyncio.wait({self._keeper}, timeout=self.timeout)

    async def _cluster(self) -> tuple[Any, tuple[tuple[str, str], ...]]:
        await self._connected()
        assert self._connection is not None
        connection = self._connection
        return cluster_pb2_grpc.ClusterServiceStub(connection.channels[0]), connection.info.metadata

    # ---- the end

    async def close(self) -> None:
        """Send what was submitted, then end the connection and every call that waits. The second time does
        nothing."""
        self.thread.not_at_exit(self.close)
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        try:
            await self._flush()
            self._closing = True
            self._sendable.set()
            if self.session.waiting_count:  # or the controller might never see the last calls
                await asyncio.wait({keeper}, timeout=_LINGER)
        finally:  # Ctrl-C ends the waiting, not the closing
            await self._end(keeper)

    async def _end(self, keeper: asyncio.Task[None]) -> None:
        self._closing = True
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        self.session.close()
        others = [task for task in self._transfers if task is not asyncio.current_task()]  # see `abandon`
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def abandon(self) -> None:
        """Close without waiting for it; for a client that was dropped."""
        if not _loop.is_forked() and not self.thread.loop.is_closed():
            self.thread.loop.call_soon_threadsafe(lambda: self._start(self.close()))

    async def _flush(self) -> None:
        self._wake()
        with contextlib.suppress(TimeoutError):  # then they end with ControllerLost, as not sent
            async with asyncio.timeout(_FLUSH):
                while self._connection is not None and self.session.unsent_count:
                    self._drained.clear()
                    self._sendable.set()
                    await self._drained.wait()


def _fetch(link: Link, _owner: object, engine_id: int, blob: value_pb2.Blob) -> Encoded:
    """Download a blob for a result, which so keeps its client, `_owner`, and with it the connection."""
    return link.fetch(engine_id, blob)


def _translated(error: BaseException) -> DeliveryError:
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


def _cause(task: asyncio.Task[None]) -> str:
    error = None if task.cancelled() else task.exception()
    if error is None:
        return "the controller ended it"
    failure = _translated(error)
    return failure.metadata.get("cause") or failure.text
