"""The kernel itself: read a command, run it on the main thread, answer, repeat."""

from __future__ import annotations

import _socket
import builtins
import os
import sys
from functools import partial
from time import perf_counter, time  # as they are now: user code may put others into `time`
from typing import Any, NoReturn

from engine_service.kernel import on_import, process
from engine_service.kernel.awaiting import Awaiting
from engine_service.kernel.commands import Commands
from engine_service.kernel.engine import ProgressReports, RunningEngine
from engine_service.kernel.failure import bare_failure, describe
from engine_service.kernel.interrupts import Interrupts
from engine_service.kernel.link import Link, Reports
from engine_service.kernel.namespace import Namespace
from engine_service.kernel.properties import Properties
from engine_service.kernel.shell import PythonShell, Shell
from engine_service.kernel_frames import WireError
from engine_service.kernel_messages import Command, Failure, Ready, Reply, Start
from engine_service.kernel_page import open_page
from engine_service.kernel_wire import (
    read_command,
    read_start,
    write_ready,
    write_reply,
)
from enginery import _current
from enginery._codec import PYTHON_VERSION
from enginery._encoded import Stored
from enginery.errors import ValueTooLarge


class Kernel:
    """One process, one namespace, one command at a time."""

    def __init__(self, link: Link, interrupts: Interrupts, reports: Reports, start: Start) -> None:
        """Make the namespace and what user code may ask for."""
        self._link = link
        self._interrupts = interrupts
        self._reports = reports
        self._pid = os.getpid()
        mpi: Any = _start_mpi() if start.mpi else None
        self._rank = mpi.COMM_WORLD.Get_rank() if start.mpi else -1
        self._namespace = Namespace(self._rank if start.engine_id < 0 else start.engine_id, mpi)
        self._properties = Properties(start.properties)
        self._progress = ProgressReports(reports.progress)
        self._awaiting = Awaiting(interrupts)
        self._shell = self._make_shell(start.shell)
        self._commands = Commands(
            self._namespace,
            self._properties,
            self._shell,
            self._awaiting,
            start.value_limit,
        )
        engine = RunningEngine(
            self._namespace, self._properties, reports.display, self._progress, self._shell.forms
        )
        _current.set_engine(engine)
        builtins.get_engine = _current.get_engine  # type: ignore[attr-defined]  # without a name in the namespace

    def _make_shell(self, name: str) -> Shell:
        if name == "python":
            on_import.install()
            return PythonShell(self._namespace, self._awaiting)
        from engine_service.kernel.ipython_shell import IPythonShell  # an extra, which takes a while

        return IPythonShell(self._namespace, self._awaiting, self._reports.display)

    def seed(self, start: Start) -> None:
        """Run what every engine runs first; what it raises ends the kernel."""
        sources = [(line, f"<exec-line {number}>") for number, line in enumerate(start.exec_lines, start=1)]
        if start.exec_files:
            from pathlib import Path  # some milliseconds that few kernels need

            sources += [(Path(file).read_text(encoding="utf-8"), file) for file in start.exec_files]
        for source, filename in sources:
            self._shell.start(source, filename)
        self._link.send(write_ready(Ready(PYTHON_VERSION, self._properties.snapshot(), self._rank)))

    def serve(self) -> None:
        """Answer commands until the host closes its end."""
        while (frame := self._link.receive()) is not None:
            serial, command = read_command(frame)
            if command.digest:
                self._commands.take_function(command)
            self._progress.restart()
            try:
                reply = self._answer(serial, command)
            except KeyboardInterrupt as error:  # the third within microseconds
                self._interrupts.disarm()
                reply = Reply(failure=bare_failure(error))
            if os.getpid() != self._pid:
                _leave_child(reply)
            self._interrupts.restore()
            reply.properties = self._properties.take_changes()
            if command.is_task and not self._reports.is_output_read():  # the next one may be here already
                self._reports.answer(partial(self._send_reply, serial, reply))
            else:
                self._send_reply(serial, reply)

    def _answer(self, serial: int, command: Command) -> Reply:
        """Run a command. An interrupt is never lost and never leaves the nested `try`."""
        reply = Reply(started_at=time())
        began = perf_counter()
        try:
            try:
                if self._interrupts.arm(serial):
                    self._commands.run(command, reply)
                else:
                    reply.was_revoked = True
            except BaseException as error:
                reply.close()
                failure = self._describe(error)
                reply = Reply(started_at=reply.started_at, failure=failure)
            process.flush()
            self._interrupts.disarm()
        except KeyboardInterrupt as error:  # while an exception was described, or output flushed
            self._interrupts.disarm()
            reply.close()
            reply = Reply(started_at=reply.started_at, failure=bare_failure(error))
        reply.duration = perf_counter() - began
        return reply

    def _describe(self, error: BaseException) -> Failure:
        """Return everything about `error`, or what can be said of it."""
        try:
            return describe(error, interrupted=True, render=self._shell.render)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            # It was too odd, or user code has spoilt what Python consists of. Where no exception at all can be
            # described nothing works any more: then this raises, the kernel ends, and the engine gets another.
            describe(Exception(), interrupted=True)
            return bare_failure(error, problem)

    def _send_reply(self, serial: int, reply: Reply, acknowledgement: int = 0) -> None:
        stored = [value for value in reply.values.values() if isinstance(value, Stored)]
        try:
            self._link.send(write_reply(serial, reply, acknowledgement))
        except WireError as error:  # nothing was sent: too many names, or a text beyond all bounds
            failure = describe(ValueTooLarge(f"the answer is too large: {error}"), interrupted=False)
            answer = Reply(started_at=reply.started_at, failure=failure)
            self._link.send(write_reply(serial, answer, acknowledgement))
        finally:
            for value in stored:
                value.close()


def _start_mpi() -> Any:
    """Return the MPI module, which starts MPI as it is imported."""
    try:
        from mpi4py import MPI  # a library that is found when it is needed
    except (ImportError, RuntimeError, OSError) as error:
        sys.exit(f"--mpi: mpi4py finds no MPI on this machine, such as Open MPI or MPICH: {error}")
    return MPI


def _leave_child(reply: Reply) -> NoReturn:
    """End a forked child that ran out of user code: only its parent answers."""
    if reply.failure is None:
        os._exit(0)
    if reply.failure.errors[0].type_name == "SystemExit":
        message = reply.failure.errors[0].message
        os._exit(int(message) & 0xFF if message.isdecimal() else int(message != "None" and message != ""))
    os.write(2, reply.failure.traceback.encode())
    os._exit(1)


def main(sock: int, page: int, acknowledgements: int) -> None:
    """Serve one host over inherited descriptors; returns when it has gone."""
    for fd in (sock, page, acknowledgements):
        os.set_inheritable(fd, False)
    link = Link(_socket.socket(fileno=sock))
    frame = link.receive()
    if frame is None:
        return
    start = read_start(frame)
    process.prepare(start.host_pid)
    shared = open_page(page)
    os.close(page)
    interrupts = Interrupts(shared)
    kernel = Kernel(link, interrupts, Reports(link, acknowledgements, interrupts, shared), start)
    try:
        kernel.seed(start)
    except BaseException as error:
        sys.stderr.write(describe(error, interrupted=False).traceback)
        sys.exit(1)
    try:
        kernel.serve()
    except OSError as error:
        sys.exit(f"the connection to the engine host is gone ({error}): the host ended, or user code closed it")
