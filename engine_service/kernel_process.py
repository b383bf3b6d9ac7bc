"""One kernel as the host holds it: a child process, its socket, its output and its end.

Runs on an event loop. Start it from a thread that lives as long as the kernel shall: on Linux a kernel is
killed when its thread ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from engine_service.kernel_answers import check_answer, check_properties
from engine_service.kernel_exit import ExitStatus, KernelExited, count_oom_kills
from engine_service.kernel_frames import WireError
from engine_service.kernel_memory import descendants, group_bytes, resident_bytes
from engine_service.kernel_messages import (
    Command,
    DisplayData,
    Failure,
    Progress,
    Ready,
    Reply,
    Shown,
    Transferred,
)
from engine_service.kernel_options import KernelOptions, describe_start, mpi_descriptors
from engine_service.kernel_page import AHEAD, RUNNING, TARGET, make_page, open_page, revoke
from engine_service.kernel_pipes import OutputPipes
from engine_service.kernel_socket import KernelSocket
from engine_service.kernel_wire import read_from_kernel, write_command, write_start
from engine_service.known_functions import SentFunctions
from enginery import _ids
from enginery._channel import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

    from engine_service.kernel_frames import Frame
    from enginery._encoded import Encoded

    Done = Callable[[Reply | KernelExited], None]

logger = logging.getLogger(__name__)

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


class KernelListener(Protocol):
    """Who is told what a kernel says beside its answers, as it is read. Must be quick and raise nothing."""

    def output(self, stream: str, data: bytes, operation_id: bytes) -> None:
        """That operation wrote to `stdout` or `stderr`; an empty id means that none runs."""

    def display(self, display: DisplayData, operation_id: bytes) -> None:
        """That operation displays an object; all output before it was told before."""

    def progress(self, fraction: float, text: str, operation_id: bytes) -> None:
        """That operation reports progress."""


@dataclass(slots=True, eq=False)
class _Given:
    """A command that the kernel has and has not answered."""

    serial: int
    operation_id: bytes
    is_task: bool
    size: int
    done: Done
    method: str
    keys: tuple[str, ...]
    is_revoked: bool = False


_MAX_GIVEN_BYTES = 64 << 10  # in the socket, which takes a few times more before it blocks
_MAX_READS = 64  # of what the socket holds: far more than it can, unless user code fills it meanwhile
_WORDS = 2000  # bytes of stderr


class KernelProcess:
    """A running kernel.

    `incarnation` names it; `properties` are those that it has once it is ready, `rank` that in an MPI job;
    `exited` is resolved when it has ended and its process group is gone.
    """

    def __init__(self, options: KernelOptions, listener: KernelListener) -> None:
        """Start the process. Use `start` instead, which waits until it is ready."""
        self.incarnation = _ids.new_incarnation()
        self.python_version = ""
        self.properties: dict[str, Encoded] = {}
        self.rank = -1
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._listener = listener
        self._serial = 0
        self._introduction: asyncio.Future[Any] | None = None
        self._line: deque[_Given] = deque()  # the first runs, or is to run next
        self._given_bytes = 0
        self._functions = SentFunctions()
        self._is_handling = False
        self._last_words = b""  # the end of what came on stderr, of the command whose serial number follows
        self._spoke = 0
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
            raise KernelExited(status, kernel._last_words) from None
        except BaseException:
            kernel.kill()
            await asyncio.shield(kernel.exited)
            raise
        return kernel

    def _spawn(self, options: KernelOptions) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket = KernelSocket(self._loop, ours)
        page = make_page()
        self._page = open_page(page)
        self._pipes = OutputPipes(self._loop, self._page, self._take_output)
        acknowledged, self._acknowledge = os.pipe()
        os.set_blocking(self._acknowledge, False)
        descriptors = (theirs.fileno(), page, acknowledged)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-m", "engine_service.kernel", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=self._pipes.write_end("stdout"),
                stderr=self._pipes.write_end("stderr"),
                pass_fds=(*descriptors, *(mpi_descriptors() if options.mpi else ())),
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
        self._socket.follow(self._on_readable)
        self._pipes.follow()
        self._watch_exit()

    async def _introduce(self, options: KernelOptions) -> None:
        self._introduction = self._loop.create_future()
        self._put(write_start(describe_start(options)))
        ready = await self._introduction
        assert isinstance(ready, Ready)
        self.python_version = ready.python_version
        self.properties = ready.properties
        self.rank = ready.rank
        self._pipes.drain()

    @property
    def takes_more(self) -> bool:
        """Whether a task may be handed over behind those that it has: if they leave room for it."""
        line = self._line
        return not line or (
            len(line) < AHEAD
            and line[-1].is_task
            and self._given_bytes < _MAX_GIVEN_BYTES
            and not self._socket.is_stuck
        )

    def begin(self, command: Command, done: Done) -> None:
        """Begin a command, or hand over a task behind others if it `takes_more`.

        `done` gets the reply, or KernelExited if the kernel ends before it. It is called at once when the reply
        is read, since a trip through the event loop costs more than most commands; it must not raise.
        KernelExited if the kernel has ended already. Stored values of the command stay the caller's to close,
        once `done` was called; those of the reply become the caller's.
        """
        if self.exited.done():
            raise KernelExited(self.exited.result())
        if self._line:
            if not (command.is_task and self.takes_more):
                raise RuntimeError("a kernel runs one command at a time, but for tasks")
        else:
            self._pipes.drain()  # what was written before belongs to nobody
            self._last_words = b""
        brought = self._bring_function(command)
        size = self._put(write_command(self._serial + 1, command))
        if brought:
            self._functions.add(command.digest, brought, forgets=command.forgets)
        self._serial += 1
        given = _Given(
            self._serial, command.operation_id, command.is_task, size, done, command.method, command.keys
        )
        self._line.append(given)
        self._given_bytes += size

    def _bring_function(self, command: Command) -> int:
        """Take a function that the kernel has out of a command; return the bytes of one that it has not."""
        if not command.digest:
            return 0
        if command.digest in self._functions:
            command.values = tuple(pair for pair in command.values if pair[0] != "function")
            return 0
        size = next(value.size for name, value in command.values if name == "function")
        command.forgets = not self._functions.has_room(size)
        return size

    async def run(self, command: Command) -> Reply:
        """Run a command, as `begin`. If the caller is cancelled the command runs on until it ends."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        self.begin(command, partial(_settle, future))
        return await future

    def _put(self, frame: Frame | bytes) -> int:
        """Send a frame, together with those that are made while replies are handled; return its size."""
        size = self._socket.put(frame)
        if not self._is_handling:
            if self._line:  # it is busy: there may be more
                self._loop.call_soon(self._socket.flush)
            else:
                self._socket.flush()
        return size

    def interrupt(self, operation_id: bytes = b"") -> bool:
        """Interrupt that operation, or whichever runs if empty. Returns whether it runs; never hits another."""
        if not self._line or self.exited.done():
            return False
        first = self._line[0]
        if operation_id and operation_id != first.operation_id:
            return False
        self._page[TARGET] = first.serial  # the kernel ignores the signal unless this one runs
        os.kill(self.pid, signal.SIGINT)  # Popen's own would reap a kernel that has just ended
        return True

    def revoke(self, operation_id: bytes) -> None:
        """Let that operation not begin if it has not: then its reply says that it was revoked."""
        for given in () if self.exited.done() else self._line:
            if given.operation_id == operation_id:
                given.is_revoked = True
                revoke(self._page, given.serial)

    def has_begun(self, operation_id: bytes) -> bool:
        """Return whether that operation, the first it has to answer, runs: then it is revoked no more."""
        if not self._line or self.exited.done():
            return False
        first = self._line[0]
        runs: bool = first.operation_id == operation_id and first.serial == self._page[RUNNING]
        if runs:
            first.is_revoked = False
        return runs

    def catch_up(self) -> None:
        """Take in now what it has answered, instead of as soon as the event loop comes to it."""
        if not self.exited.done():
            self._on_readable()

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
                self._socket.end()
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
            if not self._socket.receive():
                self._socket.unfollow()
                if not self._ordered:
                    self._give_up("user code closed its connection to the engine host")
                return
            self._take_frames()
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionResetError:  # it ended with something unread: its end will be noticed
            self._socket.unfollow()
        except WireError as error:
            self._break(error)

    def _break(self, error: WireError) -> None:
        self._socket.unfollow()
        self.kill(cause=f"killed, since it broke the protocol between kernel and host ({error})")

    def _fail(self, error: Exception) -> None:
        """End the kernel for a defect of the host: what it said was not taken in, so its call might not end."""
        logger.error("defect in what hears of a kernel, which is killed", exc_info=error)
        self.kill(cause="killed, since its host has a defect, of which the host's log says more")

    def _take_frames(self, *, until: int = 0) -> None:
        """Handle what was read; with `until`, only until that command is the first that is not answered."""
        was_handling, self._is_handling = self._is_handling, True
        try:
            while not (until and self._line and self._line[0].serial == until):
                frame = self._socket.reader.take()
                if frame is None:
                    break
                try:
                    self._take_frame(frame)
                except WireError:
                    raise
                except Exception as error:
                    self._fail(error)
        finally:
            self._is_handling = was_handling
            if not was_handling:
                self._socket.flush()

    def _take_frame(self, frame: Frame | bytes) -> None:
        first = self._line[0] if self._line else None
        expected = first.serial if first is not None else -1 if self._introduction is None else 0
        message = read_from_kernel(frame, expected)
        operation_id = b"" if first is None else first.operation_id
        if isinstance(message, Progress):
            if first is not None:
                self._listener.progress(message.fraction, message.text, operation_id)
            return
        if isinstance(message, Shown):
            self._pipes.drain()  # what was written before this comes before it
            self._show(message, operation_id)
            return
        if isinstance(message, Ready):
            check_properties(message.properties)
            self._pipes.drain()
            introduction, self._introduction = self._introduction, None
            if introduction is not None and not introduction.done():
                introduction.set_result(message)
            return
        assert first is not None
        try:
            if message.was_revoked and not first.is_revoked:
                raise WireError("it did not begin what it was told to")
            check_answer(first.method, first.keys, message)
        except WireError:
            message.close()
            raise
        if message.acknowledgement or not first.is_task:
            self._pipes.drain()  # with a task that does not ask for it, nothing was left
        if message.acknowledgement:
            self._confirm(message.acknowledgement)
        self._line.popleft()
        self._given_bytes -= first.size
        if self._spoke <= first.serial:
            self._last_words = b""
        first.done(message)

    def _show(self, shown: Shown, operation_id: bytes) -> None:
        if operation_id:
            self._listener.display(shown.display, operation_id)
        else:  # of a thread that its command left behind: nobody's, as its output is
            text = shown.display.data.get("text/plain", "")
            data = text if isinstance(text, bytes) else text.encode()
            self._listener.output("stdout", data + b"\n", b"")
        self._confirm(shown.number)

    def _confirm(self, number: int) -> None:
        """Tell the kernel that its output up to here was read."""
        try:
            os.write(self._acknowledge, number.to_bytes(8, "little"))
        except BrokenPipeError:  # user code closed it: then it waits for nothing
            return
        except BlockingIOError:
            raise WireError("it displays, and does not wait until that is taken in") from None

    def _take_output(self, stream: str, data: bytes) -> None:
        """Pass on what was read: it is of the command begun last, which the kernel does not leave meanwhile."""
        running = self._page[RUNNING]
        line = self._line
        if line and line[0].serial < running <= line[-1].serial:  # those before have answers, not read yet
            self._catch_up_to(running)
        if stream == "stderr":
            words = self._last_words if self._spoke == running else b""
            self._last_words, self._spoke = (words + data)[-_WORDS:], running
        operation_id = line[0].operation_id if line and line[0].serial == running else b""
        try:
            self._listener.output(stream, data, operation_id)
        except Exception as error:
            self._fail(error)

    def _catch_up_to(self, serial: int) -> None:
        """Take in what it answered before it began that command: all of it was sent, and may be many reads."""
        try:
            self._take_frames(until=serial)
            with suppress(BlockingIOError, InterruptedError, ConnectionResetError):
                for _ in range(_MAX_READS):
                    if not (self._line and self._line[0].serial < serial and self._socket.receive()):
                        break
                    self._take_frames(until=serial)
        except WireError as error:
            self._break(error)
        self._loop.call_soon(self._take_rest)

    def _take_rest(self) -> None:
        if not self.exited.done():
            try:
                self._take_frames()
            except WireError as error:
                self._break(error)

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
        running = self._page[RUNNING]
        self._close()
        self.exited.set_result(exit_status)
        if self._introduction is not None and not self._introduction.done():
            self._introduction.set_exception(KernelExited(exit_status, self._last_words))
        while self._line:
            given = self._line.popleft()
            given.done(KernelExited(exit_status, self._last_words, has_begun=given.serial <= running))

    def _read_last_frames(self) -> None:
        """It may have answered just before it ended."""
        with suppress(OSError, WireError):
            while self._socket.receive():
                self._take_frames()

    def _close(self) -> None:
        self._socket.close()
        self._page.release()
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
