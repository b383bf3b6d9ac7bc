"""One kernel for the tests of a module, reset between them; and one of their own for those that end it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest_asyncio

from engine_service.event_log import EventLog
from engine_service.kernel_process import Command, DisplayData, KernelOptions, KernelProcess, Reply
from enginery._codec import decode, encode, encode_for_engine, encode_functions
from enginery._encoded import Codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from enginery._encoded import Encoded


class Heard:
    """What a kernel said: `log` has the output and displays of the last command, `late` that of none."""

    def __init__(self) -> None:
        self.late: list[tuple[str, bytes]] = []
        self.progressed: list[tuple[float, str]] = []
        self.log = EventLog(64 << 20)

    def output(self, stream: str, data: bytes, operation_id: bytes) -> None:
        if operation_id:
            self.log.output(stream, data, 0)
        else:
            self.late.append((stream, data))

    def display(self, display: DisplayData, operation_id: bytes) -> None:
        self.log.display(display, 0)

    def progress(self, fraction: float, text: str, operation_id: bytes) -> None:
        self.progressed.append((fraction, text))

    def clear(self) -> None:
        self.late.clear()
        self.progressed.clear()


class Driver:
    """A kernel and short words for its commands."""

    def __init__(self, kernel: KernelProcess, heard: Heard) -> None:
        self.kernel = kernel
        self.heard = heard
        self.number = 0

    @property
    def late(self) -> list[tuple[str, bytes]]:
        return self.heard.late

    @property
    def progress(self) -> list[tuple[float, str]]:
        return self.heard.progressed

    @property
    def stdout(self) -> bytes:
        """What the last command wrote."""
        return self.heard.log.stdout()

    @property
    def stderr(self) -> bytes:
        return self.heard.log.stderr()

    async def run(self, method: str, **fields: object) -> Reply:
        self.number += 1
        fields = {"accept": (Codec.PICKLE,), "engine_id": 3, "number": self.number} | fields
        operation = self.number.to_bytes(16, "big")
        self.heard.log = EventLog(64 << 20)
        return await self.kernel.run(Command(method, operation, **fields))  # type: ignore[arg-type]

    async def execute(self, code: str, **fields: object) -> Reply:
        return await self.run("execute", code=code, **fields)

    async def ok(self, code: str) -> Reply:
        reply = await self.execute(code)
        assert reply.failure is None, reply.failure.traceback
        return reply

    async def raises(self, code: str) -> str:
        """Return the type of what `code` raises."""
        reply = await self.execute(code)
        assert reply.failure is not None
        return reply.failure.errors[0].type_name

    async def output(self, code: str) -> str:
        await self.ok(code)
        return self.stdout.decode()

    async def apply(self, function: Callable[..., object], *args: object, **kwargs: object) -> Reply:
        values = (("function", encode_for_engine(function)), ("arguments", encode((args, kwargs))))
        return await self.run("apply", values=values)

    async def push(self, **names: object) -> Reply:
        return await self.run("push", values=(("namespace", encode(names)),))

    async def push_function(self, **functions: object) -> Reply:
        return await self.run("push_function", values=(("namespace", encode_functions(functions)),))

    async def pull(self, *keys: str) -> Mapping[str, object]:
        reply = await self.run("pull", keys=keys)
        assert reply.failure is None, reply.failure.traceback
        pulled = decode(reply.values["namespace"])  # type: ignore[arg-type]
        assert isinstance(pulled, dict)
        return pulled


def value(reply: Reply, name: str = "value") -> object:
    """Return a decoded value of a reply that succeeded."""
    assert reply.failure is None, reply.failure.traceback
    encoded: Encoded = reply.values[name]  # type: ignore[assignment]
    return decode(encoded)


@asynccontextmanager
async def running(options: KernelOptions | None = None) -> AsyncIterator[Driver]:
    """Start a kernel, and end it whatever happens."""
    heard = Heard()
    kernel = await KernelProcess.start(options or KernelOptions(engine_id=3), heard)
    try:
        yield Driver(kernel, heard)
    finally:
        kernel.kill()
        await kernel.exited


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Driver]:
    async with running() as driver:
        yield driver


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(shared: Driver) -> AsyncIterator[Driver]:
    """The module's kernel, empty."""
    await shared.run("reset")
    shared.heard.clear()
    yield shared
