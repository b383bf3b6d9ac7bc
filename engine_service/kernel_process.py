"""One kernel as the host holds it: a child process, its socket, its output and its end.

Runs on an event loop. Start it from a thread that lives as long as the kernel shall: on Linux a kernel is
killed when its thread ends.
"""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from engine_service.kernel_exit import ExitStatus, KernelExited, count_oom_kills
from engine_service.kernel_frames import FrameReader, WireError, rest
from engine_service.kernel_memory import descendants, group_bytes, resident_bytes
from engine_service.kernel_messages import (
    Command,
    DisplayData,
    Failure,
    Progress,
    Ready,
    Reply,
    Shown,
    Start,
    Transferred,
)
from engine_service.kernel_pipes import OutputPipes
from engine_service.kernel_wire import read_from_kernel, write_command, write_start
from enginery import _ids
from enginery._channel import environment
from enginery._engine import DEFAULT_VALUE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import psutil

    from engine_service.kernel_frames import Frame
    from enginery._encoded import Buffer, Encoded

    Done = Callable[[Reply | KernelExited], None]

__all__ = [
    "Command",
    "DisplayData",
    "ExitStatus",
    "Failure",
    "KernelExited",
    "KernelListener",
    "KernelOptions",
    "KernelProcess",
    "Reply",
    "Transferred",
    "WireError",
]


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How a kernel is started. Sizes in bytes, times in seconds.

    `value_limit` is the largest value that an operation may return. `exec_lines` and then `exec_files` run
    before it is ready; one that raises is a failed start.
    """

    engine_id: int = -1
    value_limit: int = DEFAULT_VALUE_LIMIT
    startup_timeout: float = 30.0
    directory: Path | None = None
    exec_lines: tuple[str, ...] = ()
    exec_files: tuple[Path, ...] = ()
    properties: Mapping[str, Encoded] = field(default_factory=dict)


class KernelListener(Protocol):
    """Who is told what a kernel says beside its answers, as it is read. Must be quick and raise nothing."""

    def output(self, stream: str, data: bytes, *, running: bool) -> None:
        """It wrote to `stdout` or `stderr`; `running` says whether a command runs, whose output it is then."""

    def display(self, display: DisplayData) -> None:
        """The command that runs displays an object; all output before it was told before."""

    def progress(self, fraction: float, text: str) -> None:
        """The command that runs reports progress."""


_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_MAX_VECTOR = 512  # buffers of one sendmsg


class KernelProcess:
    """A running kernel.

    `incarnation` names it; `properties` are those that it has once it is ready; `exited` is resolved when it
    has ended and its process group is gone.
    """

    def __init__(self, options: KernelOptions, listener: KernelListener) -> None:
        """Start the process. Use `start` instead, which waits until it is ready."""
        self.incarnation = _ids.new_incarnation()
        self.python_version = ""
        self.properties: dict[str, Encoded] = {}
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._listener = listener
        self._reader = FrameReader()
        self._serial = 0
        self._command: Command | None = None
        self._answer: Callable[[Any], None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._ordered = False
        self._cause = ""
        self._oom_kills = count_oom_kills()
        self._spawn(options)

    @classmethod
    async def start(cls, options: KernelOptions, listener: KernelListener) -> Self:
        """Start a kernel and wait until it is ready.

        KernelExited if it does not come up; one that takes too long is killed.
        """
        kernel = cls(options, listener)
        try:
            async with asyncio.timeout(options.startup_timeout):
                await kernel._introduce(options)
        except TimeoutError:
            kernel.kill(cause=f"it was not ready after {options.startup_timeout:g} s")
            status = await asyncio.shield(kernel.exited)
            raise KernelExited(status, kernel._pipes.last_words) from None
        except BaseException:
            kernel.kill()
            await asyncio.shield(kernel.exited)
            raise
        return kernel

    def _spawn(self, options: KernelOptions) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        page = _make_page()
        self._map = mmap.mmap(page, _PAGE_SIZE)
        self._page = memoryview(self._map).cast("Q")
        self._pipes = OutputPipes(self._loop, self._take_output)
        acknowledged, self._acknowledge = os.pipe()
        os.set_blocking(self._acknowledge, False)
        descriptors = (theirs.fileno(), page, acknowledged)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-m", "engine_service.kernel", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=self._pipes.write_end("stdout"),
                stderr=self._pipes.write_end("stderr"),
                pass_fds=descriptors,
                cwd=options.directory,
                env=environment(),
                start_new_session=True,  # so that a signal to its group takes what it started along
            )
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()
            os.close(page)
            os.close(acknowledged)
        self.pid = self._process.pid
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._pipes.follow()
        self._watch_exit()

    async def _introduce(self, options: KernelOptions) -> None:
        answer: asyncio.Future[Ready] = self._loop.create_future()
        self._answer = partial(_settle, answer)
        await self._send(self._send_what_fits(write_start(_describe_start(options))))
        ready = await answer
        assert isinstance(ready, Ready)
        self.python_version = ready.python_version
        self.properties = ready.properties
        self._pipes.drain()

    def begin(self, command: Command, done: Done) -> None:
        """Begin a command; one at a time. `done` gets the reply, or KernelExited if the kernel ends before it.

        It is called at once when the reply is read, since a trip through the event loop costs more than most
        commands; it must not raise. KernelExited if the kernel has ended already. Stored values of the command
        stay the caller's to close, once `done` was called; those of the reply become the caller's.
        """
        if self.exited.done():
            raise KernelExited(self.exited.result())
        if self._answer is not None:
            raise RuntimeError("a kernel runs one command at a time")
        self._pipes.drain()  # what was written before belongs to nobody
        self._pipes.last_words = b""
        self._serial += 1
        frame = write_command(self._serial, command)
        unsent = self._send_what_fits(frame)
        self._command = command
        self._answer = done
        if unsent:
            self._sending = self._loop.create_task(self._send(unsent), name=f"command for kernel {self.pid}")

    async def run(self, command: Command) -> Reply:
        """Run a command, as `begin`. If the caller is cancelled the command runs on until it ends."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        self.begin(command, partial(_settle, future))
        return await future

    def _send_what_fits(self, frame: Frame) -> list[memoryview]:
        """Send as much of a frame as the socket takes at once, and return the rest."""
        buffers: list[Buffer] = frame.pack()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", frame.fds))] if frame.fds else []
        try:
            sent = self._socket.sendmsg(buffers[:_MAX_VECTOR], ancillary)
        except BlockingIOError:  # never with nothing in flight, unless the system is out of buffers
            raise WireError("the socket of the kernel takes nothing") from None
        except (BrokenPipeError, ConnectionResetError):
            return []  # it has ended: the answer will say how
        return rest(buffers, sent)

    async def _send(self, unsent: list[memoryview]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended: the answer will say how
            for view in unsent:
                await self._loop.sock_sendall(self._socket, view)

    def interrupt(self, operation_id: bytes = b"") -> bool:
        """Interrupt that operation, or whichever runs if empty. Returns whether it runs; never hits another."""
        if self._command is None or self.exited.done():
            return False
        if operation_id and operation_id != self._command.operation_id:
            return False
        self._page[0] = self._serial  # the kernel ignores the signal unless this one runs
        os.kill(self.pid, signal.SIGINT)  # Popen's own would reap a kernel that has just ended
        return True

    def kill(self, number: int = signal.SIGKILL, *, cause: str = "") -> None:
        """Send a signal to the kernel and all processes of its group. Nothing if it has ended.

        `cause` is what its end says then, unless there was a cause before.
        """
        if not self.exited.done():
            self._ordered = True
            self._cause = self._cause or cause
            os.killpg(self.pid, number)

    async def stop(self, grace: float) -> ExitStatus:
        """Let an idle kernel end by itself, kill it after `grace` seconds, and wait until it is gone."""
        if not self.exited.done():
            self._ordered = True
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            await asyncio.wait([self.exited], timeout=grace)
            self.kill()
        return await asyncio.shield(self.exited)

    def resident_bytes(self) -> int:
        """Return its resident memory in bytes, 0 if it has ended."""
        return 0 if self.exited.done() else resident_bytes(self.pid)

    def group_bytes(self, *, above: int = 0) -> int:
        """Return the memory of it and its descendants in bytes, 0 if it has ended. Call it in a thread.

        Memory that they share is counted once, which takes longer, only where the sum is over `above`.
        """
        return 0 if self.exited.done() else group_bytes(self.pid, above=above)

    def descendants(self) -> list[psutil.Process]:
        """Return all processes that it has started, with theirs; none if it has ended. Call it in a thread."""
        return [] if self.exited.done() else descendants(self.pid)

    # ---- what comes from it

    def _on_readable(self) -> None:
        try:
            if not self._reader.receive(self._socket):
                self._loop.remove_reader(self._socket.fileno())
                if not self._ordered:
                    self._give_up("user code closed its connection to the engine host")
                return
            self._take_frames()
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionResetError:  # it ended with something unread: its end will be noticed
            self._loop.remove_reader(self._socket.fileno())
        except WireError as error:
            self._loop.remove_reader(self._socket.fileno())
            self.kill(cause=f"killed, since it broke the protocol between kernel and host ({error})")

    def _take_frames(self) -> None:
        while (frame := self._reader.take()) is not None:
            message = read_from_kernel(frame, self._serial if self._answer is not None else -1)
            if isinstance(message, Progress):
                if self._command is not None:
                    self._listener.progress(message.fraction, message.text)
                continue
            self._pipes.drain()  # what was written before this comes before it
            if isinstance(message, Shown):
                self._show(message)
                continue
            self._command = None
            answer, self._answer = self._answer, None
            if answer is not None:
                answer(message)
            elif isinstance(message, Reply):
                message.close()

    def _show(self, shown: Shown) -> None:
        if self._command is not None:
            self._listener.display(shown.display)
        else:  # of a thread that its command left behind: nobody's, as its output is
            text = shown.display.data.get("text/plain", "")
            data = text if isinstance(text, bytes) else text.encode()
            self._listener.output("stdout", data + b"\n", running=False)
        try:
            os.write(self._acknowledge, shown.number.to_bytes(8, "little"))
        except BrokenPipeError:  # user code closed it: then it waits for nothing
            return
        except BlockingIOError:
            raise WireError("it displays, and does not wait until that is taken in") from None

    def _take_output(self, stream: str, data: bytes) -> None:
        self._listener.output(stream, data, running=self._command is not None)

    # ---- its end

    def _give_up(self, cause: str) -> None:
        """Its socket is at its end: a dead kernel is noticed by itself, a live one is of no use."""
        self._loop.call_later(_EXIT_GRACE, lambda: None if self.exited.done() else self.kill(cause=cause))

    def _watch_exit(self) -> None:
        """Learn of its death from the process itself: a forked child may hold copies of every descriptor."""
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(self.pid)
            self._loop.add_reader(self._pidfd, self._on_exit)
            return

        def wait() -> None:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                self._loop.call_soon_threadsafe(self._on_exit)

        self._pidfd = -1
        threading.Thread(target=wait, name=f"kernel-{self.pid}", daemon=True).start()

    def _on_exit(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._read_last_frames()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # before it is reaped, so that the number is still its own
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._pipes.drain()
        exit_status = ExitStatus(
            self._process.returncode,
            ordered=self._ordered,
            cause=self._cause,
            peak_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            out_of_memory=count_oom_kills() > self._oom_kills,
        )
        self._close()
        self.exited.set_result(exit_status)
        answer, self._answer, self._command = self._answer, None, None
        if answer is not None:
            answer(KernelExited(exit_status, self._pipes.last_words))

    def _read_last_frames(self) -> None:
        """It may have answered just before it ended."""
        with suppress(OSError, WireError):
            while self._reader.receive(self._socket):
                self._take_frames()

    def _close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._reader.close()
        self._page.release()
        self._map.close()
        self._pipes.close()
        os.close(self._acknowledge)


def _settle(future: asyncio.Future[Any], answer: Ready | Reply | KernelExited) -> None:
    if future.done():  # its caller was cancelled
        if isinstance(answer, Reply):
            answer.close()
    elif isinstance(answer, KernelExited):
        future.set_exception(answer)
    else:
        future.set_result(answer)


_EXIT_GRACE = 0.5  # seconds from the end of the socket to the end of the process


def _make_page() -> int:
    """Return an inheritable file of one page that both sides map."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("enginery-page", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, _PAGE_SIZE)
    return fd


def _describe_start(options: KernelOptions) -> Start:
    return Start(
        engine_id=options.engine_id,
        host_pid=os.getpid(),
        value_limit=options.value_limit,
        exec_lines=options.exec_lines,
        exec_files=tuple(str(file.absolute()) for file in options.exec_files),
        properties=options.properties,
    )
