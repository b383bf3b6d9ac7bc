"""A client's connection: the asyncio side of `_session`, on the loop's thread.

One stream carries all small calls, but those that go directly to hosts (`_direct`); another tells of engines; a
channel of its own carries large values. When the connection breaks, it is opened again with growing delays,
reading the connection file anew; calls wait for that, at most `reconnect_timeout` seconds, and those that were
not answered are sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from typing import TYPE_CHECKING, Any, TypeVar

from enginery._channel import prepare_grpc

prepare_grpc()

import grpc  # noqa: E402 - after prepare_grpc
import grpc.aio  # noqa: E402

from enginery import _loop  # noqa: E402
from enginery._answering import Answering  # noqa: E402
from enginery._cancelling import Cancelling  # noqa: E402
from enginery._connection import Connection, cause_of, open_connection, read_response, translated  # noqa: E402
from enginery._direct import DirectPaths  # noqa: E402
from enginery._modules import Modules  # noqa: E402
from enginery._operation_calls import OperationCalls  # noqa: E402
from enginery._reasons import Code, DeliveryError, public  # noqa: E402
from enginery._rpc import cluster_stub  # noqa: E402
from enginery._session import Session  # noqa: E402
from enginery._uploading import Uploading  # noqa: E402
from enginery.engines import Roster  # noqa: E402
from enginery.errors import EngineryError  # noqa: E402
from enginery.v1 import cluster_pb2  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from enginery._calls import Request
    from enginery._connection_file import ConnectionInfo
    from enginery._decode import Errors
    from enginery._path import Path
    from enginery._transfer import Transfers
    from enginery.operation import Operation

T = TypeVar("T")

_FIRST_DELAY = 0.1  # seconds before the connection is opened again
_GROWTH = 1.5
_LONGEST_DELAY = 2.0
_LASTING = 5.0  # seconds after which a connection was a good one
_TRANSFERS = 4  # at a time: more share the same wire
_FLUSH = 5.0  # seconds that `close` gives what was submitted to be sent
_MOST_PAGES = 100  # of a thousand engines each: a list that never ends is none
_LINGER = 0.5  # seconds that `close` gives the controller to take what was sent
_BROKEN = frozenset({"CONTROLLER_LOST", "NOT_SENT", "ENGINE_AWAY", "SHUTTING_DOWN", "UPLOAD_INCOMPLETE"})
"""Why transfers go on from where they were."""

logger = logging.getLogger("enginery")


class Link:
    """The connection of one client to its controller."""

    def __init__(
        self,
        source: Callable[[], ConnectionInfo],
        timeout: float,
        reconnect_timeout: float,
        *,
        direct: bool = True,
    ) -> None:
        """`source` reads the connection file. `timeout` bounds each attempt to connect, `reconnect_timeout` how
        long a call waits for a connection; both in seconds. `direct` lets calls go directly to hosts."""
        self.roster = Roster()
        self.session = Session(self.roster.epochs)
        self.operations = OperationCalls(self)
        self.modules = Modules(self)
        self.answering = Answering(self)
        self.cancelling = Cancelling(self)
        self.uploading = Uploading(self)
        self._direct = DirectPaths(self, is_allowed=direct)
        self.thread = _loop.get()
        self.timeout = timeout
        self.reconnect_timeout = reconnect_timeout
        self.reconnects = 0
        self._source = source
        self._connection: Connection | None = None
        self._ready = asyncio.Event()  # connected
        self._sendable = asyncio.Event()  # the writer has something to look at
        self._drained = asyncio.Event()  # the writer found nothing to send
        self._is_awake = False  # the writer will look at what was submitted, without being told
        self._closing = False
        self.transfer_slots = asyncio.Semaphore(_TRANSFERS)
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._retrying: asyncio.TimerHandle | None = None
        self.cluster_id = ""
        self.info: ConnectionInfo | None = None

    # ---- any thread

    def submit(self, request: Request[T], engine_ids: Sequence[int], errors: Errors) -> list[Operation[T]]:
        """Send a call to each engine at once and return the operations."""
        _loop.check_fork()
        now = time.monotonic()
        entries = self.session.entries(request, engine_ids, errors, now)
        request.uploads = ()  # the entries hold them, until they are sent
        try:
            self.session.submit(entries, may_wait=not self.thread.is_current())
        except DeliveryError as error:
            raise public(error) from None
        if not self._is_awake:
            self._is_awake = True
            self.thread.loop.call_soon_threadsafe(self.wake)
        return [entry.operation for entry in entries]

    def recall(self, operation: Operation[Any]) -> None:
        """Let an operation that was begun elsewhere have its answer when there is one."""
        self.thread.loop.call_soon_threadsafe(lambda: self.start_task(self.operations.recall(operation)))

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine of this link and wait for it; errors are the public ones."""
        try:
            return self.thread.run(coroutine, timeout)
        except DeliveryError as error:
            raise public(error) from None

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

    async def _open(self) -> Connection:
        info = self._source()
        connection = await open_connection(info, self.session.session_id, self.cluster_id, self.timeout)
        self.info = info
        self._engines_changed(connection.snapshot)
        return connection

    async def _keep(self, connection: Connection) -> None:
        delay = _FIRST_DELAY / 2
        while True:
            opened = time.monotonic()
            cause = await self._serve(connection)
            # One that broke soon may do so again: a copy of this process may have the same session.
            lasted = time.monotonic() - opened
            delay = min(delay * 2, _LONGEST_DELAY) if lasted < _LASTING else _FIRST_DELAY
            left = self.session.disconnected(cause, time.monotonic())
            if self._closing:
                return
            self._say_broken(connection, cause, left)
            connection = await self._reopen(cause, delay)
            self.reconnects += 1
            logger.log(
                logging.WARNING if left else logging.INFO,
                "connected to the controller at %s again: %d calls go on",
                connection.info.address,
                self.session.unsent_count,
            )

    def _say_broken(self, connection: Connection, cause: str, left: int) -> None:
        logger.log(
            logging.WARNING if left else logging.INFO,
            "the connection to the controller at %s broke (%s): connecting again, for up to %g s; %d calls "
            "wait for it and go on",
            connection.info.address,
            cause,
            self.reconnect_timeout,
            left,
        )

    async def _serve(self, connection: Connection) -> str:
        """Serve a connection until it ends; return why it did."""
        self.session.connected(time.monotonic(), connection.welcome.controller_epoch)
        self._connection = connection
        self._ready.set()
        self._sendable.set()
        self._retry()
        reader = asyncio.create_task(self.read_replies(connection.stream, self.session.relay))
        watcher = asyncio.create_task(self._watch(connection))
        writer = asyncio.create_task(self._write(connection))
        try:
            await asyncio.wait({reader, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ready.clear()
            self._connection = None
            self._is_awake = False
            ended = [task for task in (reader, watcher) if task.done()]
            writer.cancel()  # the streams are over; nothing of them can be saved
            await connection.close()
            await asyncio.gather(reader, watcher, writer, return_exceptions=True)
        return cause_of(ended[0])

    async def _reopen(self, cause: str, delay: float) -> Connection:
        while True:
            self.accept()
            self.session.expire(time.monotonic(), self.reconnect_timeout, cause)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, hides nothing
            delay = min(delay * _GROWTH, _LONGEST_DELAY)
            try:
                return await self._open()
            except (DeliveryError, EngineryError) as error:
                cause = error.metadata.get("cause", "") or (
                    error.text if isinstance(error, DeliveryError) else str(error)
                )

    async def read_replies(self, stream: Any, path: Path) -> None:
        """Take the replies of a path until its stream ends."""
        while (response := await read_response(stream)) is not None:
            for reply in response.replies:
                self.answering.reply(reply, path)
            if self.session.is_holding:
                self._plan_retry()

    async def _watch(self, connection: Connection) -> None:
        while (response := await connection.watch.read()) is not grpc.aio.EOF:
            self._engines_changed(response)

    def _engines_changed(self, response: cluster_pb2.WatchEnginesResponse) -> None:
        self.roster.apply(response)
        self.modules.engines_changed()
        self._direct.engines_changed(response)

    async def _write(self, connection: Connection) -> None:
        try:
            while True:
                self.accept()
                while (message := self.session.take()) is not None:
                    await connection.stream.write(message)
                    self.accept()  # what piled up meanwhile, for which nobody had to wake this thread
                self._is_awake = False
                if self.session.has_submitted:  # looked at after that: the next to submit wakes it
                    continue
                self._drained.set()
                if self._closing:
                    await connection.stream.done_writing()
                    return
                self._sendable.clear()
                await self._sendable.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            connection.stream.cancel()  # the reader learns why

    # ---- calls out

    def wake_writer(self) -> None:
        """Have the writers look for what is to be sent."""
        self._sendable.set()
        self._direct.wake()

    def wake(self) -> None:
        """Look at what was submitted, after somebody said that there is something."""
        self._is_awake = False  # who submits from here on wakes this thread
        self.accept()
        if self._connection is not None and self.session.relay.outbox:
            self._is_awake = True  # or need not: the writer looks again before it rests

    def accept(self) -> None:
        """Look at what was submitted, and wake the writers of the ways that it takes."""
        self.uploading.start(self.session.accept())
        if self.session.relay.outbox:
            self._sendable.set()
        self._direct.wake()

    def leave(self, engine_ids: Sequence[int], cause: str) -> None:
        """Let the calls of engines go by the controller again."""
        self.session.leave(engine_ids, cause, time.monotonic())
        self._retry()

    def _retry(self) -> None:
        """Send what was refused again when it is time, for as long as there is a connection to its engine."""
        if self._closing:
            return
        self.uploading.start(self.session.retry(time.monotonic()))
        self.wake_writer()
        self._plan_retry()

    def _plan_retry(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
        due = self.session.next_retry()
        wait = 0.0 if due is None else max(0.0, due - time.monotonic())
        self._retrying = None if due is None else self.thread.loop.call_later(wait, self._retry)

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background; `close` ends it. On the loop's thread."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def transfer(
        self, engine_ids: Sequence[int], transfer: Callable[[Transfers], Coroutine[Any, Any, T]]
    ) -> T:
        """Return what `transfer` does with values of engines; it is called again, on a new connection, if the
        old one broke, and with the controller if that was one to their host."""
        until = time.monotonic() + self.reconnect_timeout
        attempts = 0
        direct = self._direct.transfers(engine_ids)
        while True:
            attempts += 1
            begun_at = math.inf
            try:
                async with self.transfer_slots:
                    transfers = direct or (await self.connection()).transfers
                    begun_at = time.monotonic()
                    return await transfer(transfers)
            except (Exception, asyncio.CancelledError) as error:
                failure = translated(error)
            if direct is not None:  # whatever it says, the controller may know better
                if failure.reason == "CONTROLLER_LOST":
                    self._direct.doubt(direct)  # or the call would be sent there, and find that out anew
                direct = None
                continue
            now = time.monotonic()
            if now - begun_at > _LASTING:  # it had gone well so far
                until, attempts = now + self.reconnect_timeout, 1
            if failure.reason not in _BROKEN or self._closing or now >= until:
                raise failure
            await asyncio.sleep(min(_FIRST_DELAY * attempts, _LONGEST_DELAY))

    async def connection(self) -> Connection:
        """Return the connection; NOT_SENT if there is none for `reconnect_timeout` seconds."""
        if self._closing:
            raise DeliveryError("NOT_SENT", cause="this client was closed")
        try:
            async with asyncio.timeout(self.reconnect_timeout):
                while self._connection is None:
                    await self._ready.wait()
        except TimeoutError:
            cause = f"no connection within {self.reconnect_timeout:g} s"
            raise DeliveryError("NOT_SENT", cause=cause) from None
        return self._connection

    # ---- the cluster

    async def lost_engines(self) -> list[cluster_pb2.Engine]:
        """Return the engines that were lost lately, the newest first."""
        stub, metadata = await self._cluster()
        lost: list[cluster_pb2.Engine] = []
        request = cluster_pb2.ListEnginesRequest(page_size=1000, include_lost=True)
        try:
            for _ in range(_MOST_PAGES):
                page = await stub.ListEngines(request, metadata=metadata, timeout=self.timeout)
                lost += [engine for engine in page.engines if engine.state == cluster_pb2.ENGINE_STATE_LOST]
                if not page.next_page_token:
                    return lost
                request.page_token = page.next_page_token
            return lost
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise translated(error) from None

    async def cluster_info(self) -> cluster_pb2.GetClusterInfoResponse:
        """Return what the controller says of itself."""
        stub, metadata = await self._cluster()
        try:
            request = cluster_pb2.GetClusterInfoRequest()
            info: cluster_pb2.GetClusterInfoResponse
            info = await stub.GetClusterInfo(request, metadata=metadata, timeout=self.timeout)
            return info
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise translated(error) from None

    async def shutdown(self, *, keep_engines: bool, grace: float) -> None:
        """Stop engines and controller; return when the connection has ended, or `timeout` seconds after
        `grace`."""
        stub, metadata = await self._cluster()
        self._closing = True  # what follows is no reason to connect again
        try:
            request = cluster_pb2.ShutdownRequest(keep_engines=keep_engines)
            request.grace.FromNanoseconds(round(grace * 1e9))
            await stub.Shutdown(request, metadata=metadata, timeout=self.timeout)
        except (DeliveryError, grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            failure = translated(error)
            if failure.code is not Code.UNAVAILABLE:  # gone before it answered: that is success
                self._closing = False
                raise failure from None
        if self._keeper is not None:
            await asyncio.wait({self._keeper}, timeout=grace + self.timeout)

    async def _cluster(self) -> tuple[Any, tuple[tuple[str, str], ...]]:
        connection = await self.connection()
        return cluster_stub(connection.channels[0]), connection.info.metadata

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
            direct = self._direct.finish()
            if self.session.waiting_count or self.session.unsent_count:  # or nobody might see the last calls
                await asyncio.wait({keeper, *direct}, timeout=_LINGER)
        finally:  # Ctrl-C ends the waiting, not the closing
            await self._end(keeper)

    async def _end(self, keeper: asyncio.Task[None]) -> None:
        self._closing = True
        if self._retrying is not None:
            self._retrying.cancel()
        keeper.cancel()
        await self._direct.close()
        await asyncio.gather(keeper, return_exceptions=True)
        self.session.close()
        others = [task for task in self._tasks if task is not asyncio.current_task()]  # see `abandon`
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def abandon(self) -> None:
        """Close without waiting for it; for a client that was dropped."""
        if not _loop.is_forked() and not self.thread.loop.is_closed():
            self.thread.loop.call_soon_threadsafe(lambda: self.start_task(self.close()))

    async def _flush(self) -> None:
        self.wake()
        with contextlib.suppress(TimeoutError):  # then they end with ControllerLost, as not sent
            async with asyncio.timeout(_FLUSH):
                while self._connection is not None and self.session.unsent_count:
                    self._drained.clear()
                    self._sendable.set()
                    await self._drained.wait()
