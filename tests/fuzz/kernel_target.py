"""What a kernel sends its host, byte by byte: user code runs there, so nothing of it can be believed.

An input is three bytes that say how it comes, and the bytes of the kernel's socket. The first says which method
was called, or that the kernel has only just begun; the second which files come along; the third where the
stream is cut in two.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from engine_service import kernel_wire as wire
from engine_service.engine import Engine
from engine_service.kernel_exit import ExitStatus, KernelExited
from engine_service.kernel_frames import Frame, FrameReader, WireError
from engine_service.kernel_messages import (
    DisplayData,
    Failure,
    Progress,
    Ready,
    Reply,
    Shown,
)
from engine_service.kernel_page import make_page, open_page
from engine_service.kernel_pipes import OutputPipes
from engine_service.kernel_process import KernelProcess
from engine_service.kernel_socket import KernelSocket
from engine_service.responses import MAX_RESPONSE, RESPONSES
from enginery import _ids, _values
from enginery._encoded import Codec, Encoded
from enginery._engine import CallContext, CallReply
from enginery._methods import PYTHON_NAMES
from enginery._reasons import DeliveryError
from enginery.errors import RaisedError, RemoteFrame
from enginery.v1 import engine_pb2, frame_pb2
from tests.fuzz import mutator
from tests.fuzz.loop import Loop, turns
from tests.fuzz.reply_target import show
from tests.fuzz.rules import BrokenRule, Watch, check_error, check_message

if TYPE_CHECKING:
    from random import Random

    from engine_service.kernel_options import KernelOptions
    from engine_service.kernel_process import KernelListener

_ENGINE: Any = engine_pb2  # to make messages of plain fields, which their types do not tell of
_REQUESTS: dict[int, Any] = {
    frame_pb2.METHOD_EXECUTE: engine_pb2.ExecuteRequest(code="x"),
    frame_pb2.METHOD_APPLY: _ENGINE.ApplyRequest(function_name="f", accept=[1]),
    frame_pb2.METHOD_PUSH: _ENGINE.PushRequest(pickled={"data": b"p"}),
    frame_pb2.METHOD_PULL: _ENGINE.PullRequest(keys=["x"], accept=[1, 2]),
    frame_pb2.METHOD_PULL_FUNCTION: engine_pb2.PullFunctionRequest(keys=["x"]),
    frame_pb2.METHOD_PULL_SERIALIZED: engine_pb2.PullSerializedRequest(keys=["x"]),
    frame_pb2.METHOD_KEYS: engine_pb2.KeysRequest(),
    frame_pb2.METHOD_SET_PROPERTIES: engine_pb2.SetPropertiesRequest(),
    frame_pb2.METHOD_RESET: engine_pb2.ResetRequest(),
}
METHODS = list(_REQUESTS)
STARTUP = len(METHODS)
"""In the place of a method: the bytes come where the kernel should say that it is ready."""
_READY = wire.write_ready(Ready("3.11.7", {"p": Encoded(Codec.JSON, (b"1",))}))
_SHORT_INLINE = 1 << 9  # bytes, so that small values become blobs
_IDLE_TURNS = 12
_MAX_PROPERTIES = 2 << 20


def _bytes(frame: Frame | bytes) -> bytes:
    return frame if isinstance(frame, bytes) else b"".join(bytes(part) for part in frame.pack())


def _seeds() -> list[bytes]:
    line = RemoteFrame("<execute 1>", 1, "f", "1/0", 1, 0, None)
    raised = RaisedError(
        *("builtins", "ValueError", ("builtins.ValueError",), "m", "r", ("n",), (line,)),
        *(2, 1, None, True, (1,)),
    )
    errors = (raised, RaisedError("m", "E", (), "", ""))
    pickled, as_json = Encoded(Codec.PICKLE, (b"p",), "3.11.7"), Encoded(Codec.JSON, (b'{"a":[1,{}]}',))
    array = Encoded(Codec.NDARRAY, (b"12345678",), dtype="<f8", shape=(1,), fortran_order=True)
    text = Encoded(Codec.TEXT, (b"x" * 700,))
    shown = DisplayData({"text/plain": "x", "image/png": b"\x89"}, {"image/png": {"w": [1]}})
    replies = [
        Reply(failure=Failure(errors, "Traceback", "USER", pickled)),
        Reply(values={"value": pickled}),
        Reply(values={"value": array, "namespace": pickled}),
        Reply(values={"namespace": as_json, "x": text, "value": text}),
        Reply(text="t", pretty="p", value_error="none fits", keys=("k",), displays=[shown, shown]),
        Reply(properties={"p": as_json, "q": pickled}, keys=("a", "b")),
        Reply(was_revoked=True),
    ]
    streams = [_bytes(wire.write_reply(1, reply)) for reply in replies]
    streams.append(_bytes(wire.write_reply(1, replies[1], 7)))
    before = _bytes(wire.write_progress(Progress(0.5, "half"))) + _bytes(wire.write_shown(Shown(7, shown)))
    streams.append(before + streams[1])
    with_file = {"kind": "reply", "serial": 1, "started_at": 1.0, "duration": 0.5}
    with_file["values"] = [["value", [1, [3, 2]]], ["namespace", [1, [5], "3.11.7"]]]
    seeds = [bytes((method, 0, 0)) + stream for method in range(STARTUP) for stream in streams]
    seeds += [bytes((method, 1 << 4 | 1, 0)) + _bytes(framed(with_file, 2)) for method in range(STARTUP)]
    seeds.append(bytes((STARTUP, 0, 0)) + _bytes(_READY))
    return seeds


def framed(meta: dict[str, Any], files: int) -> bytes:
    """Return a frame that says it brings so many files."""
    whole = bytearray(_bytes(Frame(meta)))
    whole[12:16] = files.to_bytes(4, "little")
    return bytes(whole)


class WiredKernel(KernelProcess):
    """A kernel without a process: what it says is written into `theirs`, and killing it ends it at once."""

    def _spawn(self, options: KernelOptions) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self._socket = KernelSocket(self._loop, ours)
        page = make_page()
        self._page = open_page(page)
        os.close(page)
        self._pipes = OutputPipes(self._loop, self._page, self._take_output)
        self._acknowledged, self._acknowledge = os.pipe()
        os.set_blocking(self._acknowledge, False)
        self.pid = 0
        self.is_ending = False
        self._socket.follow(self._on_readable)

    def interrupt(self, operation_id: bytes = b"") -> bool:
        return False

    def resident_bytes(self) -> int:
        return 0

    async def stop(self, grace: float) -> ExitStatus:
        self.kill()
        return await self.exited

    def kill(self, number: int = 9, *, cause: str = "") -> None:
        if not self.exited.done():
            self._ordered = True
            self._cause = self._cause or cause
            if not self.is_ending:
                self.is_ending = True
                self._loop.call_soon(self._end)

    def _end(self) -> None:
        with suppress(OSError):
            self.theirs.shutdown(socket.SHUT_WR)
        self._read_last_frames()
        self._close()
        self.theirs.close()
        os.close(self._acknowledged)
        status = ExitStatus(-9, ordered=True, cause=self._cause)
        self.exited.set_result(status)
        if self._introduction is not None and not self._introduction.done():
            self._introduction.set_exception(KernelExited(status))
        while self._line:
            self._line.popleft().done(KernelExited(status))

    def say(self, data: bytes, files: list[int], cut: int) -> None:
        """Let this come from it, in two pieces if `cut` is one, the files with the first."""
        pieces = [data[:cut], data[cut:]] if 0 < cut < len(data) else [data]
        for position, piece in enumerate(pieces):
            if piece and not self.exited.done():
                with suppress(BlockingIOError, BrokenPipeError):
                    socket.send_fds(self.theirs, [piece], [] if position else files)
                self.catch_up()

    @property
    def wants(self) -> int:
        """The serial number of the command that it is to answer, 0 if there is none."""
        return self._line[0].serial if self._line else 0

    def begin_anew(self) -> None:
        """Count commands from the first again, so that inputs mean the same to every kernel."""
        self._serial = 0


class KernelTarget:
    """An engine, and one call of it for each input."""

    name = "kernel"
    seeds = _seeds()

    def __init__(self, watch: Watch) -> None:
        """Start an engine."""
        self._watch = watch
        self._loop = Loop(watch)
        self._kernel: WiredKernel
        self._files = _Files()
        self._engine = self._loop.run(self._make())
        self._ids = _ids.OperationIds()

    async def _make(self) -> Engine:
        engine = Engine(start_kernel=self._start_kernel)
        await engine.start()
        return engine

    async def _start_kernel(self, options: KernelOptions, listener: KernelListener) -> WiredKernel:
        self._kernel = await self._start_saying(_bytes(_READY), options, listener)
        return self._kernel

    async def _start_saying(
        self, first: bytes, options: KernelOptions, listener: KernelListener
    ) -> WiredKernel:
        kernel = WiredKernel(options, listener)
        introduced = asyncio.ensure_future(kernel._introduce(options))
        try:
            await asyncio.sleep(0)
            kernel.say(first, [], 0)
            if not await turns(introduced.done, _IDLE_TURNS):
                kernel.kill(cause="it does not become ready")
            await introduced
        except BaseException:
            kernel.kill()
            await asyncio.shield(kernel.exited)
            await asyncio.gather(introduced, return_exceptions=True)
            raise
        return kernel

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil the text of a frame, or what says how it comes."""
        head, stream = bytearray(data[:3].ljust(3, b"\0")), data[3:]
        if random.randrange(4) == 0:
            head[random.randrange(3)] = random.randrange(256)
        spoilt = _spoil_frame(random, stream)
        return bytes(head) + (mutator.spoil(random, stream, other) if spoilt is None else spoilt)

    def run(self, data: bytes) -> str:
        """Let a kernel say this."""
        with self._watch.in_time():
            outcome = self._loop.run(self._try(data))
        self._watch.check()
        return outcome

    async def _try(self, data: bytes) -> str:
        scenario, files, cut = (*data[:3], 0, 0, 0)[:3]
        stream = data[3:]
        if scenario % (STARTUP + 1) == STARTUP:
            return await self._try_start(stream)
        method = METHODS[scenario % (STARTUP + 1)]
        await turns(lambda: self._engine.keeper.is_ready and not self._kernel.is_ending, 200)
        kernel = self._kernel
        kernel.begin_anew()
        context = CallContext(self._ids.mint(), inline_limit=_SHORT_INLINE)
        call = asyncio.ensure_future(self._engine.call(method, _REQUESTS[method].SerializeToString(), context))
        if not await turns(lambda: bool(kernel.wants) or call.done(), 200):
            call.cancel()
            raise BrokenRule("an engine with a new kernel does not run what it is told to")
        kernel.say(stream, self._files.choose(files), cut)
        # An answer may be composed in a thread, which takes its time.
        if not await turns(call.done, _IDLE_TURNS) and not self._engine._runner._asides:
            kernel.kill(cause="it says no more")
        try:
            reply = await call
        except DeliveryError as error:
            outcome = check_error(error)
        else:
            outcome = f"{PYTHON_NAMES[method]} {self._check_reply(method, reply)}"
        _check_properties(self._engine)
        if len(kernel._socket.reader._data) and not kernel.exited.done():
            kernel.kill(cause="it has begun to say something else")
            await kernel.exited
        return outcome

    async def _try_start(self, stream: bytes) -> str:
        """Start another engine, whose kernel says this in the place of being ready."""
        engine = Engine(start_kernel=partial(self._start_saying, stream))
        try:
            await engine.start()
        except KernelExited as exited:
            return f"no kernel: {exited}"
        try:
            _check_properties(engine)
        finally:
            engine.stop("it was tried")
            await engine.wait_stopped()
        return "a kernel began"

    def _check_reply(self, method: int, reply: CallReply) -> str:
        if len(reply.response) > MAX_RESPONSE:
            raise BrokenRule(f"a response of {len(reply.response)} bytes")
        message = check_message(RESPONSES[method], reply.response)
        show(method, message)
        fields = sorted(field.name for field, _ in message.ListFields())
        return f"{frame_pb2.Outcome.Name(reply.outcome)} {fields}"  # type: ignore[arg-type]

    def close(self) -> None:
        """Stop the engine."""

        async def stop() -> None:
            self._engine.stop("all was tried")
            await self._engine.wait_stopped()

        self._loop.run(stop())
        self._loop.close()
        self._files.close()


def _check_properties(engine: Engine) -> None:
    """BrokenRule if the next hello could not tell them."""
    try:
        size = sum(len(key) + _values.to_value(value).ByteSize() for key, value in engine.properties.items())
    except DeliveryError as error:
        raise BrokenRule(f"a property that no hello can tell: {error}") from error
    if size > _MAX_PROPERTIES:
        raise BrokenRule(f"properties of {size} bytes")


def _spoil_frame(random: Random, stream: bytes) -> bytes | None:
    """Spoil the text of the last ordinary frame of `stream`; None if there is none, or for a change."""
    if random.randrange(4) == 0:
        return None
    reader = FrameReader()
    reader._data += stream
    reader._fds = [-1] * 250  # whatever a frame says that it brings
    before = b""
    try:
        while (frame := reader.take()) is not None:
            if isinstance(frame, Frame):
                meta = mutator.spoil_json(random, frame.meta)
                for _ in range(random.randrange(3)):
                    meta = mutator.spoil_json(random, meta)
                if not isinstance(meta, dict):
                    return None
                count = len(frame.fds)
                frame.meta, frame.fds = meta, ()
                return before + _with_files(_bytes(frame), count) + bytes(reader._data)
            before += frame
    except (WireError, ValueError):
        return None
    return None


def _with_files(frame: bytes, count: int) -> bytes:
    return frame[:12] + count.to_bytes(4, "little") + frame[16:]


class _Files:
    """Files that a kernel may send along: what it should send, and what it should not."""

    def __init__(self) -> None:
        import fcntl

        self._sealed, unsealed = os.memfd_create("s", os.MFD_ALLOW_SEALING), os.memfd_create("u")
        for fd in (self._sealed, unsealed):
            os.write(fd, b"1,234")
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(self._sealed, fcntl.F_ADD_SEALS, seals)
        self._others = [unsealed, *os.pipe(), os.open("/dev/zero", os.O_RDONLY)]

    def choose(self, number: int) -> list[int]:
        """Return the files that a byte names: how many good ones, and behind them how many others."""
        return [self._sealed] * (number & 3) * (1 + (number >> 4 & 1)) + self._others[: number >> 2 & 3]

    def close(self) -> None:
        """Close them."""
        for fd in (self._sealed, *self._others):
            os.close(fd)
