"""One kernel as the host holds it: a child process, its socket, its output and its end.

Runs on an event loop. Start it from a thread that lives as long as the kernel shall: on Linux a kernel is
killed when its thread ends.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import psutil

from engine_service.kernel_exit import ExitStatus, KernelExited, count_oom_kills
from engine_service.kernel_frames import FrameReader, WireError, rest
from engine_service.kernel_messages import (
    Command,
    DisplayData,
    Failure,
    Progress,
    Ready,
    Reply,
    Start,
    Transferred,
)
from engine_service.kernel_output import OutputBuffer
from engine_service.kernel_wire import read_from_kernel, write_command, write_start
from enginery import _ids
from enginery._engine import DEFAULT_VALUE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from engine_service.kernel_frames import Frame
    from enginery._encoded import Buffer, Encoded

    Done = Callable[[Reply | KernelExited], None]

__all__ = [
    "Command",
    "DisplayData",
    "ExitStatus",
    "Failure",
    "KernelExited",
    "KernelOptions",
    "KernelProcess",
    "Reply",
    "Transferred",
    "WireError",
]


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How a kernel is started. Sizes in bytes, times in seconds.

    `output_limit` is what is kept of each stream of one operation; `value_limit` the largest value that it may
    return. `exec_lines` and then `exec_files` run before it is ready; one that raises is a failed start.
    """

    engine_id: int = -1
    output_limit: int = 64 << 20
    value_limit: int = DEFAULT_VALUE_LIMIT
    startup_timeout: float = 30.0
    directory: Path | None = None
    exec_lines: tuple[str, ...] = ()
    exec_files: tuple[Path, ...] = ()
    properties: Mapping[str, Encoded] = field(default_factory=dict)


_READ_SIZE = 64 << 10
_PIPE_SIZE = 256 << 10
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_MAX_VECTOR = 512  # buffers of one sendmsg


class KernelProcess:
    """A running kernel.

    `incarnation` names it; `properties` are those that it has once it is ready; `exited` is resolved when it
    has ended and its process group is gone.
    """

    def __init__(
        self,
        options: KernelOptions,
        on_output: Callable[[str, bytes], None],
        on_progress: Callable[[float, str], None],
    ) -> None:
        """Start the process. Use `start` instead, which waits until it is ready."""
        self.incarnation = _ids.new_incarnation()
        self.python_version = ""
        self.properties: dict[str, Encoded] = {}
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._on_output = on_output
        self._on_progress = on_progress
        self._page_fd = _make_page()
        self._map = mmap.mmap(self._page_fd, _PAGE_SIZE)
        self._page = memoryview(self._map).cast("Q")
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
    async def start(
        cls,
        options: KernelOptions,
        *,
        on_output: Callable[[str, bytes], None],
        on_progress: Callable[[float, str], None],
    ) -> Self:
        """Start a kernel and wait until it is ready.

        `on_output` gets what is written outside operations: the stream (`stdout` or `stderr`) and the bytes.
        `on_progress` gets the fraction and text that the running operation reports. KernelExited if it does not
        come up, with its output; one that takes too long is killed.
        """
        kernel = cls(options, on_output, on_progress)
        try:
            async with asyncio.timeout(options.startup_timeout):
                await kernel._introduce(options)
        except TimeoutError:
            kernel._end(f"it was not ready after {options.startup_timeout:g} s")
            status = await asyncio.shield(kernel.exited)
            raise KernelExited(status, *kernel._take_output()) from None
        except BaseException:
            kernel.kill()
            raise
        return kernel

    def _spawn(self, options: KernelOptions) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        self._pipes = {"stdout": out_read, "stderr": err_read}
        self._buffers = {name: OutputBuffer(options.output_limit) for name in self._pipes}
        try:
            for fd in self._pipes.values():
                os.set_blocking(fd, False)
                if sys.platform == "linux":
                    with suppress(PermissionError):  # over what a user may have: then the pipe stays as it is
                        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            module = "engine_service.kernel"
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-m", module, str(theirs.fileno()), str(self._page_fd)],
                stdin=subprocess.DEVNULL,
                stdout=out_write,
                stderr=err_write,
                pass_fds=(theirs.fileno(), self._page_fd),
                cwd=options.directory,
                start_new_session=True,  # so that a signal to its group takes what it started along
            )
        except BaseException:
            for fd in (*self._pipes.values(), self._page_fd):
                os.close(fd)
            self._socket.close()
            raise
        finally:
            theirs.close()
            os.close(out_write)
            os.close(err_write)
        os.close(self._page_fd)
        self.pid = self._process.pid
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        for name, fd in self._pipes.items():
            self._loop.add_reader(fd, self._read_output, name)
        self._watch_exit()

    async def _introduce(self, options: KernelOptions) -> None:
        answer: asyncio.Future[Ready] = self._loop.create_future()
        self._answer = partial(_settle, answer)
        await self._send(self._send_what_fits(write_start(_describe_start(options))))
        ready = await answer
        assert isinstance(ready, Ready)
        self.python_version = ready.python_version
        self.properties = ready.properties
        for name in self._pipes:
            self._drain(name)
            output, _ = self._buffers[name].take()
            if output:
                self._on_output(name, output)

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
        for name in self._pipes:
            self._drain(name)  # what was written before belongs to nobody
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

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the kernel and all processes of its group. Nothing if it has ended."""
        if not self.exited.done():
            self._ordered = True
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
        """Return its resident memory in bytes, 0 if unknown."""
        if self.exited.done():
            return 0
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:  # it has just ended
            return 0

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
            self._end(f"killed, since it broke the protocol between kernel and host ({error})")

    def _take_frames(self) -> None:
        while (frame := self._reader.take()) is not None:
            message = read_from_kernel(frame, self._serial if self._answer is not None else -1)
            if isinstance(message, Progress):
                if self._command is not None:
                    self._on_progress(message.fraction, message.text)
                continue
            if isinstance(message, Reply):
                self._add_output(message)
            self._command = None
            answer, self._answer = self._answer, None
            if answer is not None:
                answer(message)
            elif isinstance(message, Reply):
                message.close()

    def _add_output(self, reply: Reply) -> None:
        for name in self._pipes:
            self._drain(name)
        reply.stdout, dropped = self._buffers["stdout"].take()
        reply.stderr, also_dropped = self._buffers["stderr"].take()
        reply.dropped_bytes = dropped + also_dropped

    def _drain(self, name: str) -> None:
        """Read exactly what the pipe holds now: a chatty grandchild cannot keep us."""
        waiting = bytearray(4)
        fcntl.ioctl(self._pipes[name], termios.FIONREAD, waiting)
        (size,) = struct.unpack("i", waiting)
        if size:
            self._keep(name, os.read(self._pipes[name], size))

    def _read_output(self, name: str) -> None:
        try:
            data = os.read(self._pipes[name], _READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        if data:
            self._keep(name, data)
        else:  # it closed the stream itself
            self._loop.remove_reader(self._pipes[name])

    def _keep(self, name: str, data: bytes) -> None:
        if self._answer is not None:
            self._buffers[name].write(data)
        else:
            self._on_output(name, data)

    # ---- its end

    def _end(self, cause: str) -> None:
        """Kill it for a reason that is not the user's wish."""
        self._cause = self._cause or cause
        self.kill()

    def _give_up(self, cause: str) -> None:
        """Its socket is at its end: a dead kernel is noticed by itself, a live one is of no use."""
        self._loop.call_later(_EXIT_GRACE, lambda: None if self.exited.done() else self._end(cause))

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
        for name in self._pipes:
            self._drain(name)
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
            answer(KernelExited(exit_status, *self._take_output()))

    def _read_last_frames(self) -> None:
        """It may have answered just before it ended."""
        with suppress(OSError, WireError):
            while self._reader.receive(self._socket):
                self._take_frames()

    def _take_output(self) -> tuple[bytes, bytes]:
        return self._buffers["stdout"].take()[0], self._buffers["stderr"].take()[0]

    def _close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._reader.close()
        self._page.release()
        self._map.close()
        for fd in self._pipes.values():
            self._loop.remove_reader(fd)
            os.close(fd)


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
