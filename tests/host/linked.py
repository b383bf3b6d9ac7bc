"""A host's engines over fake kernels, linked to a controller that does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from engine_service.link import Link
from enginery.v1 import engine_pb2, frame_pb2
from tests.host.fakes import FakeController, FakeStream, Kernels, running_controller, running_engine, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from engine_service.engine import Engine, EngineOptions
    from enginery._connection_file import ConnectionInfo


class Linked:
    """A host's engines, their link and the controller at its other end."""

    def __init__(self, controller: FakeController, engines: list[Engine], kernels: list[Kernels]) -> None:
        self.controller = controller
        self.engines = engines
        self.kernels = kernels
        self.link: Link
        self.task: asyncio.Task[None]

    async def registered(self) -> tuple[FakeStream, list[engine_pb2.Hello]]:
        """Take the next stream and welcome all of its engines, in the order of their slots."""
        stream = await self.controller.stream()
        hellos = list((await stream.receive_until(lambda m: len(m.hellos) == len(self.engines))).hellos)
        for hello in hellos:
            stream.welcome(hello.slot, hello.slot, 7)
        await until(lambda: len(self.link.registered) == len(self.engines))
        return stream, hellos


@contextlib.asynccontextmanager
async def linked(
    count: int = 1,
    *,
    heartbeat: float = 60.0,
    read: Callable[[ConnectionInfo], ConnectionInfo] = lambda info: info,
    options: EngineOptions | None = None,
    orphan_timeout: float | None = None,
) -> AsyncIterator[Linked]:
    async with contextlib.AsyncExitStack() as stack:
        controller, info = await stack.enter_async_context(running_controller())
        pairs = [await stack.enter_async_context(running_engine(options, slot=slot)) for slot in range(count)]
        made = Linked(controller, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        made.link = Link(
            made.engines,
            lambda: read(info),
            heartbeat=heartbeat,
            first_delay=0.01,
            orphan_timeout=orphan_timeout,
        )
        made.task = asyncio.create_task(made.link.run())
        try:
            yield made
        finally:
            for engine in made.engines:
                engine.stop("the test ends")
            while not made.task.done():
                while not controller.streams.empty():
                    controller.streams.get_nowait().end()
                await asyncio.wait((made.task,), timeout=0.05)
            await made.task


def code(text: str) -> engine_pb2.ExecuteRequest:
    return engine_pb2.ExecuteRequest(code=text)


def frame(operation_id: bytes, text: str = "", **fields: Any) -> frame_pb2.Call:
    """Return an Execute as a frame, with what FakeStream.call does not offer."""
    request = b"" if fields.get("known") else code(text).SerializeToString()
    return frame_pb2.Call(
        call_id=1_000, method=frame_pb2.METHOD_EXECUTE, operation_id=operation_id, request=request, **fields
    )


def result(reply: frame_pb2.Reply) -> engine_pb2.ExecuteResult:
    return engine_pb2.ExecuteResponse.FromString(reply.response).result
