"""A kernel without a process, and a controller that does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from engine_service.engine import Engine, EngineOptions
from engine_service.kernel_page import AHEAD
from engine_service.kernel_process import Command, ExitStatus, Failure, KernelExited, KernelOptions, Reply
from enginery import _ids, _status
from enginery._connection_file import ConnectionInfo
from enginery._encoded import Codec, Encoded
from enginery._engine import CallContext
from enginery._methods import METHODS
from enginery.errors import RaisedError
from enginery.v1 import engine_pb2, engine_pb2_grpc, frame_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from engine_service.kernel_process import DisplayData, KernelListener
    from enginery._reasons import DeliveryError

Response = TypeVar("Response", bound="Message")
IDS = _ids.OperationIds()


class FakeKernel:
    """Does what the code says: `fail`, `reject`, `die`, `wait`, `deaf`, `print TEXT`, `set NAME`.

    Anything else is echoed. `wait` fails when it is interrupted, `deaf` does not hear it.
    """

    def __init__(self, options: KernelOptions, listener: KernelListener) -> None:
        self.options = options
        self.listener = listener
        self.memory = 1 << 20
        self.interrupts = 0
        self.incarnation = _ids.new_incarnation()
        self.pid = 4711
        self.python_version = "3.11.0"
        self.rank = -1
        self.properties: dict[str, Encoded] = dict(options.properties)
        self.exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.commands: list[Command] = []
        self.released = asyncio.Event()
        self.interrupted = asyncio.Event()
        self.reply: Callable[[Command], Reply] | None = None
        self.serving: asyncio.Task[None] | None = None
        self.line: deque[tuple[Command, Callable[[Reply | KernelExited], None]]] = deque()
        self.revoked: set[bytes] = set()

    def resident_bytes(self) -> int:
        return self.memory

    def group_bytes(self, *, above: int = 0) -> int:
        return self.memory

    def descendants(self) -> list[object]:
        return []

    def interrupt(self, operation_id: bytes) -> bool:
        self.interrupts += 1
        self.interrupted.set()
        return True

    def kill(self, number: int = 9, *, cause: str = "") -> None:
        self.die(ExitStatus(-number, ordered=True, cause=cause))

    def die(self, status: ExitStatus) -> None:
        """End; that is noticed a little later, and then whoever waits for an answer is told at once."""
        asyncio.get_running_loop().call_soon(self._exit, status)

    def _exit(self, status: ExitStatus) -> None:
        if self.exited.done():
            return
        self.exited.set_result(status)
        if self.serving is not None:
            self.serving.cancel()
        while self.line:
            command, done = self.line.popleft()
            done(KernelExited(status, has_begun=command in self.commands))

    async def stop(self, grace: float) -> ExitStatus:
        self.die(ExitStatus(0, ordered=True))
        return await self.exited

    @property
    def takes_more(self) -> bool:
        return not self.line or (self.line[-1][0].is_task and len(self.line) < AHEAD)

    def begin(self, command: Command, done: Callable[[Reply | KernelExited], None]) -> None:
        if self.exited.done():
            raise KernelExited(self.exited.result())
        assert self.takes_more
        self.line.append((command, done))
        if self.serving is None or self.serving.done():
            self.serving = asyncio.create_task(self._serve())

    def revoke(self, operation_id: bytes) -> None:
        self.revoked.add(operation_id)

    def has_begun(self, operation_id: bytes) -> bool:
        return any(command.operation_id == operation_id for command in self.commands)

    def catch_up(self) -> None:
        """It answers at once."""

    def write(self, stream: str, data: bytes) -> None:
        """Write something, as the command that runs or as nobody."""
        self.listener.output(stream, data, self.line[0][0].operation_id if self.line else b"")

    def show(self, display: DisplayData) -> None:
        """Display something, as the command that runs."""
        self.listener.display(display, self.line[0][0].operation_id)

    async def _serve(self) -> None:
        while self.line:
            await asyncio.sleep(0)
            command, _ = self.line[0]
            if command.operation_id in self.revoked:
                self.revoked.remove(command.operation_id)
                reply = Reply(was_revoked=True)
            else:
                self.commands.append(command)
                reply = await self._run(command)
            _, done = self.line.popleft()
            done(reply)

    async def _run(self, command: Command) -> Reply:
        word, _, rest = command.code.partition(" ")
        reply = Reply(text=command.code, started_at=1000.5, duration=0.25)
        if self.reply is not None:
            reply = self.reply(command)
        elif word == "die":
            self.write("stdout", b"last words")
            self.die(ExitStatus(-11))
            await self.exited
        elif word == "print":
            self.write("stdout", rest.encode())
        elif word == "wait":
            ends = [asyncio.ensure_future(end.wait()) for end in (self.released, self.interrupted)]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
            if self.interrupted.is_set():
                self.interrupted.clear()
                reply = failure("KeyboardInterrupt", "", category="INTERRUPTED")
        elif word == "deaf":
            await self.released.wait()
        elif word == "set":
            self.properties = {**self.properties, rest: Encoded(Codec.JSON, (b"1",))}
            reply.properties = dict(self.properties)
        elif word == "fail":
            reply = failure("ValueError", "no")
        elif word == "reject":
            reply = failure("TaskReject", "no", category="REJECTED")
        return reply


def failure(name: str, message: str, category: str = "USER") -> Reply:
    """Return the reply of a command that raised."""
    raised = RaisedError("builtins", name, (f"builtins.{name}",), message, f"{name}({message!r})")
    return Reply(failure=Failure((raised,), f"{name}: {message}\n", category), started_at=1000.5, duration=0.25)


@dataclass
class Kernels:
    """Starts fake kernels.

    `refusals` says how many starts fail first, `shortages` for how many of them the system has no process.
    While it `is_slow`, starts do not come to their end; `starting` counts those.
    """

    started: list[FakeKernel] = field(default_factory=list)
    refusals: int = 0
    shortages: int = 0
    is_slow: bool = False
    starting: int = 0

    async def start(self, options: KernelOptions, listener: KernelListener) -> FakeKernel:
        if self.refusals:
            self.refusals -= 1
            raise KernelExited(ExitStatus(1), b"exec line raised")
        if self.shortages:
            self.shortages -= 1
            raise BlockingIOError("no process is left")
        if self.is_slow:
            self.starting += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.starting -= 1
        self.started.append(FakeKernel(options, listener))
        return self.started[-1]


@contextlib.asynccontextmanager
async def running_engine(
    options: EngineOptions | None = None, *, slot: int = 0, kernels: Kernels | None = None
) -> AsyncIterator[tuple[Engine, Kernels]]:
    """Run an engine over fake kernels."""
    kernels = kernels or Kernels()
    engine = Engine(options, slot=slot, start_kernel=kernels.start)  # type: ignore[arg-type]
    await engine.start()
    try:
        yield engine, kernels
    finally:
        engine.stop("the test ends")
        await engine.wait_stopped()


async def call(
    engine: Engine, request: Message, answer: type[Response], *, operation_id: bytes = b"", **context: Any
) -> Response:
    """Call the method that the request is named after."""
    method = METHODS[type(request).__name__.removesuffix("Request")]
    made = CallContext(operation_id or IDS.mint(), **context)
    return answer.FromString((await engine.call(method, request.SerializeToString(), made)).response)


async def execute(engine: Engine, code: str, **context: Any) -> engine_pb2.ExecuteResult:
    """Run code."""
    request = engine_pb2.ExecuteRequest(code=code)
    return (await call(engine, request, engine_pb2.ExecuteResponse, **context)).result


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.001)


# ---- controller


class FakeStream:
    """The controller's end of one registration stream."""

    def __init__(self, requests: AsyncIterator[engine_pb2.EngineMessage], context: Any) -> None:
        self._requests = requests
        self._context = context
        self.outgoing: asyncio.Queue[engine_pb2.ControllerMessage | DeliveryError | None] = asyncio.Queue()
        self.call_ids = itertools.count(1)

    async def receive(self) -> engine_pb2.EngineMessage:
        """Return the next message."""
        async with asyncio.timeout(10):
            return await anext(self._requests)

    async def receive_until(
        self, wanted: Callable[[engine_pb2.EngineMessage], bool]
    ) -> engine_pb2.EngineMessage:
        """Return the first message that is wanted, others merged before it."""
        merged = engine_pb2.EngineMessage()
        while not wanted(merged):
            merged.MergeFrom(await self.receive())
        return merged

    async def ended(self) -> bool:
        """Return whether the host ended the stream, once it is at its end."""
        async with asyncio.timeout(10):
            return await anext(self._requests, None) is None

    def send(self, **fields: Any) -> None:
        """Send a message."""
        self.outgoing.put_nowait(engine_pb2.ControllerMessage(**fields))

    def welcome(self, slot: int = 0, engine_id: int = 0, epoch: int = 1, **fields: Any) -> None:
        """Register an engine."""
        self.send(
            welcomes=[engine_pb2.Welcome(slot=slot, engine_id=engine_id, epoch=epoch, cluster_id="c", **fields)]
        )

    def call(self, request: Message, *, engine_id: int = 0, operation_id: bytes = b"") -> int:
        """Send a call and return its number."""
        call_id = next(self.call_ids)
        method = METHODS[type(request).__name__.removesuffix("Request")]
        frame = frame_pb2.Call(
            call_id=call_id,
            engine_id=engine_id,
            method=frame_pb2.Method.ValueType(method),
            operation_id=operation_id or IDS.mint(),
            request=request.SerializeToString(),
        )
        self.send(calls=[frame])
        return call_id

    async def reply(self, call_id: int) -> frame_pb2.Reply:
        """Return the reply of a call."""
        merged = await self.receive_until(
            lambda message: any(reply.call_id == call_id for reply in message.replies)
        )
        return next(reply for reply in merged.replies if reply.call_id == call_id)

    def end(self, error: DeliveryError | None = None) -> None:
        """End the stream."""
        self.outgoing.put_nowait(error)


class FakeController(engine_pb2_grpc.ControllerServiceServicer):
    """Hands every stream to the test."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[FakeStream] = asyncio.Queue()
        self.transfers: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        self.over: asyncio.Event = asyncio.Event()
        self.tokens: list[str] = []

    async def RegisterEngine(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.tokens += [value for key, value in context.invocation_metadata() if key == "authorization"]
        stream = FakeStream(request_iterator, context)
        self.streams.put_nowait(stream)
        while True:
            message = await stream.outgoing.get()
            if message is None:
                return
            if isinstance(message, engine_pb2.ControllerMessage):
                yield message
            else:
                await context.abort(_status.grpc_code(message), message.text, _status.trailers(message))

    async def Transfer(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self.transfers.put_nowait((request_iterator, outgoing))
        while (message := await outgoing.get()) is not None:
            yield message

    async def stream(self) -> FakeStream:
        """Return the next stream that a host opens."""
        async with asyncio.timeout(10):
            return await self.streams.get()


@contextlib.asynccontextmanager
async def running_controller() -> AsyncIterator[tuple[FakeController, ConnectionInfo]]:
    """Serve a fake controller without TLS."""
    server = grpc.aio.server()
    controller = FakeController()
    engine_pb2_grpc.add_ControllerServiceServicer_to_server(controller, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    info = ConnectionInfo("engine", "c", f"127.0.0.1:{port}", "", "", "secret", insecure=True)
    try:
        yield controller, info
    finally:
        await server.stop(None)


async def refused(awaitable: Awaitable[object]) -> str:
    """Return the reason for which a call was not delivered."""
    from enginery._reasons import DeliveryError

    try:
        await awaitable
    except DeliveryError as error:
        return error.reason
    raise AssertionError("it was delivered")
