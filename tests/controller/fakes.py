"""A host of engines that does what a test says, and a cluster to try it on."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio

from controller_service.app import Controller
from controller_service.config import Config
from enginery import _connection_file
from enginery._channel import open_channel
from enginery._function_window import FunctionWindow
from enginery._methods import METHODS
from enginery.v1 import cluster_pb2, cluster_pb2_grpc, engine_pb2, engine_pb2_grpc, frame_pb2

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 10.0
Answer = Callable[[frame_pb2.Call], frame_pb2.Reply | None]


def echo(call: frame_pb2.Call) -> frame_pb2.Reply:
    """Answer with the request itself."""
    return frame_pb2.Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=call.request)


async def until(condition: Callable[[], object]) -> None:
    """Wait for `condition`; TimeoutError if it does not come true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for is plain state
            await asyncio.sleep(0.005)


class FakeHost:
    """One registration stream, and its engines, which answer calls as `answer` says."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any, *, host_id: str = "") -> None:
        self.host_id = host_id or str(uuid.uuid4())
        self.answer: Answer = echo
        self.calls: list[frame_pb2.Call] = []
        self.functions: list[frame_pb2.Function] = []
        self.window = FunctionWindow()
        self.transfers: list[engine_pb2.TransferOffer] = []
        self.dismissals: list[engine_pb2.Dismissal] = []
        self.acks: list[int] = []
        self.journaled: list[int] = []
        self.welcomes: dict[int, engine_pb2.Welcome] = {}
        self.refusals: dict[int, engine_pb2.Refusal] = {}
        self.stub = engine_pb2_grpc.ControllerServiceStub(channel)
        self.metadata = metadata
        self.stream = self.stub.RegisterEngine(metadata=metadata)
        self._out: asyncio.Queue[engine_pb2.EngineMessage | None] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        self.over = asyncio.Event()

    def send(self, **fields: Any) -> None:
        """Send one EngineMessage."""
        self._out.put_nowait(engine_pb2.EngineMessage(**fields))

    def reply(self, call: frame_pb2.Call) -> None:
        """Answer `call` by echo."""
        self.send(replies=[echo(call)])

    async def hello(self, slot: int = 0, *, incarnation: str = "", **fields: Any) -> engine_pb2.Welcome:
        """Register one engine; AssertionError if it is refused."""
        self.welcomes.pop(slot, None)
        hello = engine_pb2.Hello(
            slot=slot,
            host_id=self.host_id,
            incarnation=incarnation or str(uuid.uuid4()),
            pid=4321,
            hostname="fake",
            **fields,
        )
        self.send(hellos=[hello])
        await until(lambda: slot in self.welcomes or slot in self.refusals or self.over.is_set())
        assert slot in self.welcomes, f"refused: {self.refusals}"
        return self.welcomes[slot]

    async def _read(self) -> None:
        try:
            async for message in self.stream:
                self.welcomes.update({welcome.slot: welcome for welcome in message.welcomes})
                self.refusals.update({refusal.slot: refusal for refusal in message.refusals})
                self.transfers.extend(message.transfers)
                self.dismissals.extend(message.dismissals)
                if message.HasField("heartbeat_ack"):
                    self.acks.append(message.heartbeat_ack.sequence)
                if message.journaled_count:
                    self.journaled.append(message.journaled_count)
                self.calls.extend(message.calls)
                self.functions.extend(message.functions)
                for function in message.functions:
                    self.window.take_in(function.digest, function.pickle)
                for reply in map(self.answer, message.calls):
                    if reply is not None:
                        self.send(replies=[reply])
                self.window.trim()
        except grpc.aio.AioRpcError:
            pass  # `code()` has the status
        finally:
            self.over.set()

    async def _write(self) -> None:
        while (message := await self._out.get()) is not None:
            try:
                await self.stream.write(message)
            except Exception:  # the stream is over; the reader has the status
                return
        await self.stream.done_writing()

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the end of the stream."""
        async with asyncio.timeout(PATIENCE):
            return await self.stream.code(), await self.stream.details()

    async def close(self) -> None:
        """End the stream as a host that is killed does."""
        self.stream.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class FakeSession:
    """A client's Session."""

    def __init__(self, stub: cluster_pb2_grpc.ClusterServiceAsyncStub, metadata: Any) -> None:
        self.stream = stub.Session(metadata=metadata)
        self.replies: dict[int, frame_pb2.Reply] = {}
        self.welcome: cluster_pb2.SessionWelcome | None = None
        self._numbers = itertools.count(1)
        self._reader = asyncio.create_task(self._read())

    async def send(self, **fields: Any) -> None:
        """Send one SessionRequest."""
        await self.stream.write(cluster_pb2.SessionRequest(**fields))

    async def open(self, session_id: bytes = b"sessionA") -> None:
        """Say hello."""
        await self.send(hello=cluster_pb2.SessionHello(session_id=session_id))
        await until(lambda: self.welcome)

    def call(
        self, engine_id: int, request: bytes = b"x", method: str = "Apply", **fields: Any
    ) -> frame_pb2.Call:
        """Return a new call."""
        number = next(self._numbers)
        return frame_pb2.Call(
            call_id=number,
            engine_id=engine_id,
            method=METHODS[method],  # type: ignore[arg-type]
            request=request,
            **fields,
        )

    async def ask(self, call: frame_pb2.Call) -> frame_pb2.Reply:
        """Send one call and return its reply."""
        await self.send(calls=[call])
        return await self.reply(call)

    async def reply(self, call: frame_pb2.Call) -> frame_pb2.Reply:
        """Wait for the reply of a call."""
        await until(lambda: call.call_id in self.replies or self._reader.done())
        return self.replies[call.call_id]

    async def _read(self) -> None:
        async for message in self.stream:
            if message.HasField("welcome"):
                self.welcome = message.welcome
            self.replies.update({reply.call_id: reply for reply in message.replies})

    @property
    def is_over(self) -> bool:
        """Whether the stream has ended."""
        return self._reader.done()

    async def end(self) -> None:
        """Wait for the end of the stream; AioRpcError if it is not OK."""
        async with asyncio.timeout(PATIENCE):
            await self._reader

    async def close(self) -> None:
        """Hang up."""
        self.stream.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


class FakeCluster:
    """A controller, and whoever connects to it."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.client_info = _connection_file.read(controller.state.client_file, "client")
        self.engine_info = _connection_file.read(controller.state.engine_file, "engine")
        self.client_channel = open_channel(self.client_info)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self.client_channel)
        self.engines = engine_pb2_grpc.EngineServiceStub(self.client_channel)
        self.metadata = self.client_info.metadata
        self._hosts: list[FakeHost] = []
        self._sessions: list[FakeSession] = []
        self._channels = [self.client_channel]

    def to(self, engine_id: int | None, **more: str) -> tuple[tuple[str, str], ...]:
        """Return metadata that names an engine, if one is given; `more` are further keys, `_` for `-`."""
        named = () if engine_id is None else (("enginery-engine-id", str(engine_id)),)
        return (*self.metadata, *named, *((key.replace("_", "-"), value) for key, value in more.items()))

    def raw_stream(self, path: str) -> Any:
        """Return the stream method of that path, as bytes in and bytes out, on a channel of its own."""
        self._channels.append(open_channel(self.engine_info))
        return self._channels[-1].stream_stream(path)

    def host(self, *, host_id: str = "") -> FakeHost:
        """Open a host, on a channel of its own."""
        channel = open_channel(self.engine_info)
        self._channels.append(channel)
        self._hosts.append(FakeHost(channel, self.engine_info.metadata, host_id=host_id))
        return self._hosts[-1]

    async def session(self, session_id: bytes = b"sessionA") -> FakeSession:
        """Open a session that has said hello."""
        session = self.raw_session()
        await session.open(session_id)
        return session

    def raw_session(self) -> FakeSession:
        """Open a session that has said nothing."""
        self._sessions.append(FakeSession(self.cluster, self.metadata))
        return self._sessions[-1]

    async def close(self) -> None:
        """End everything but the controller."""
        for session in self._sessions:
            await session.close()
        for host in self._hosts:
            await host.close()
        for channel in self._channels:
            await channel.close()


@asynccontextmanager
async def running(state_dir: Path, **options: Any) -> AsyncIterator[FakeCluster]:
    """Run a controller in this process, insecure unless told otherwise."""
    controller = Controller(Config(state_dir=state_dir, **{"port": 0, "insecure": True, **options}))
    await controller.start()
    cluster = FakeCluster(controller)
    try:
        yield cluster
    finally:
        await cluster.close()
        await controller.stop()
