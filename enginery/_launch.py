"""Starts a controller and engines as processes of this machine, and stops them again.

Used by `Cluster`, `enginery up` and `enginery run`. Controller and engine host start at the same time; the host
waits for the connection file. Needs no gRPC: who waits for registration brings a client.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enginery import _logs
from enginery._channel import environment
from enginery._connection_file import ConnectionInfo, read
from enginery._state_dir import StateDirectory, runtime_directory
from enginery.errors import ConnectionFileError, EngineryError, FileTimeoutError, StateDirectoryInUse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from enginery.engines import EngineInfo

_POLL = 0.005  # seconds between looks at a file that a child is about to write
_LAST_WORDS = 15  # lines of a log that an error shows
_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ABANDONED = 600.0  # seconds without a change and without a controller
STOP_GRACE = 5.0
"""Seconds that a process has to stop after SIGTERM, besides its time to drain, before SIGKILL."""


def default_engines() -> int:
    """Return how many engines to start if nobody said: one per CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def connected(engines: Iterable[EngineInfo]) -> int:
    """Return how many of the engines are there: others of an earlier cluster may still be awaited."""
    return sum(engine.state != "away" for engine in engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What to start. None means the service's own default; names are those of the services' options.

    Sizes in bytes, times in seconds.
    """

    n: int
    port: int | None = None
    bind: str | None = None
    advertise: str | None = None
    insecure: bool = False
    lease: float | None = None
    save_ids: bool = False
    journal: bool = True
    journal_age: float | None = None
    journal_limit: int | None = None
    durability: str | None = None
    value_limit: int | None = None
    waiting_limit: int | None = None
    memory_limit: int | None = None
    output_limit: int | None = None
    queue_limit: int | None = None
    queue_bytes: int | None = None
    store_limit: int | None = None
    drain_grace: float | None = None
    orphan_timeout: float | None = None
    direct: bool = True
    properties: Mapping[str, object] = field(default_factory=dict)
    exec_lines: Sequence[str] = ()
    exec_files: Sequence[Path | str] = ()
    log_level: str | None = None
    log_format: str | None = None

    def controller_arguments(self) -> list[str]:
        """Return these options as the controller takes them."""
        return _arguments(
            port=self.port,
            bind=self.bind,
            advertise=self.advertise,
            insecure=self.insecure,
            lease=self.lease,
            save_ids=self.save_ids,
            no_journal=not self.journal,
            journal_age=self.journal_age,
            journal_limit=self.journal_limit,
            durability=self.durability,
            value_limit=self.value_limit,
            waiting_limit=self.waiting_limit,
            log_level=self.log_level,
            log_format=self.log_format,
        )

    def host_arguments(self) -> list[str]:
        """Return these options as the engine host takes them."""
        arguments = _arguments(
            n=self.n,
            value_limit=self.value_limit,
            memory_limit=self.memory_limit,
            output_limit=self.output_limit,
            queue_limit=self.queue_limit,
            queue_bytes=self.queue_bytes,
            store_limit=self.store_limit,
            drain_grace=self.drain_grace,
            orphan_timeout=self.orphan_timeout,
            no_direct=not self.direct,
            log_level=self.log_level,
            log_format=self.log_format,
        )
        arguments += [f"--property={key}={json.dumps(value)}" for key, value in self.properties.items()]
        arguments += [f"--exec-line={line}" for line in self.exec_lines]
        arguments += [f"--exec-file={os.fspath(file)}" for file in self.exec_files]
        return arguments


def _arguments(**options: str | float | bool | None) -> list[str]:
    found = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
        if value is True:
            found.append(option)
        elif value is not None and value is not False:
            found += [option, str(value)]
    return found


def temporary_state() -> StateDirectory:
    """Return a state directory of a new name, for a cluster that leaves nothing behind.

    Removes those that were left because starter and controller were both killed.
    """
    for path in runtime_directory().glob("temporary-*"):
        old = StateDirectory(path)
        with contextlib.suppress(FileNotFoundError):  # its own cluster removes it just now
            if not old.is_running() and time.time() - path.stat().st_mtime > _ABANDONED:
                old.remove()
    return StateDirectory(runtime_directory() / f"temporary-{secrets.token_hex(4)}")


@dataclass(frozen=True, slots=True)
class _Log:
    """The log file of a process, and where in it this process began."""

    path: Path
    start: int

    def tail(self) -> str:
        """Return the last lines for an error's text; empty if nothing was logged."""
        try:
            lines = self.path.read_bytes()[self.start :].decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        shown = [f"\n  {line}" for line in lines[-_LAST_WORDS:]]
        return "".join([f"\nthe end of {self.path}:", *shown]) if shown else ""


class Launched:
    """The processes of one local cluster.

    `attached` ones end with this process, even if it is killed: they watch a pipe that it holds.
    """

    def __init__(
        self, state: StateDirectory, options: LaunchOptions, *, attached: bool, temporary: bool
    ) -> None:
        """Take where and what; `temporary` removes the state directory at the end."""
        self.state = state
        self.options = options
        self._attached = attached
        self._temporary = temporary
        self._processes: list[tuple[str, subprocess.Popen[bytes], _Log]] = []

    def start(self) -> None:
        """Start the processes, without waiting. StateDirectoryInUse if a cluster runs there."""
        pid = self.state.controller_pid()
        if pid is not None:
            raise StateDirectoryInUse(
                f"a cluster runs already in {self.state.path} (controller pid {pid}): `enginery engine` adds "
                "engines to it, `enginery down` stops it, another --state-dir starts another"
            )
        with _signals_later():  # or one might come between a process and its entry in the list
            self._start()

    def _start(self) -> None:
        self.state.prepare()
        state = ["--state-dir", str(self.state.path)]
        if self._temporary:
            state.append("--temporary")
        self._spawn("controller", "controller_service", [*state, *self.options.controller_arguments()])
        if self.options.n:
            connection = ["--connection-file", str(self.state.engine_file)]
            self._spawn("host", "engine_service", [*connection, *self.options.host_arguments()])
        for kind, process, _ in self._processes:
            self.state.add_process(process.pid, kind)

    def _spawn(self, kind: str, module: str, arguments: list[str]) -> None:
        path, fd = _logs.claim(self.state.logs, kind)
        log = _Log(path, path.stat().st_size)
        arguments += ["--log-file", str(path)]
        if self._attached:
            arguments.append("--life-line")
        try:
            process = subprocess.Popen(
                # -P: modules of the current directory must not stand in for ours
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE if self._attached else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=fd,  # a crash before logging is set up, or in C, is found there too
                env=environment(),
                start_new_session=True,  # Ctrl-C in the terminal goes to the starter alone
            )
        finally:
            os.close(fd)
        self._processes.append((kind, process, log))

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by kind, `controller` and `host`."""
        return {kind: process.pid for kind, process, _ in self._processes}

    def wait_for_controller(self, deadline: float) -> ConnectionInfo:
        """Return the client's connection file once the controller has written it.

        `deadline` is of time.monotonic. Raises EngineryError if a process ends, FileTimeoutError if it is late.
        """
        controller = self.pids["controller"]
        while True:
            self.check()
            if self.state.client_file.exists():
                with contextlib.suppress(
                    ConnectionFileError
                ):  # an old one that is no good; it will be replaced
                    info = read(self.state.client_file, "client")
                    if info.pid == controller:
                        return info
            if time.monotonic() > deadline:
                raise FileTimeoutError(f"the controller did not come up in time{self._last_words()}")
            time.sleep(_POLL)

    def wait_for_engines(self, count: Callable[[], int], deadline: float) -> None:
        """Wait until `count()` engines are there; errors as in `wait_for_controller`."""
        while (found := count()) < self.options.n:
            self.check()
            if time.monotonic() > deadline:
                raise FileTimeoutError(f"only {found} of {self.options.n} engines came up{self._last_words()}")
            time.sleep(_POLL)

    def check(self) -> None:
        """Raise EngineryError if one of the processes has ended."""
        for kind, process, log in self._processes:
            code = process.poll()
            if code is not None:
                name = {"controller": "controller", "host": "engine host"}[kind]
                how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
                raise EngineryError(f"the {name} ended while it started ({how}){log.tail()}")

    def _last_words(self) -> str:
        return "".join(log.tail() for _, _, log in self._processes)

    def stop(self) -> None:
        """Stop engines, then controller: SIGTERM, and SIGKILL if that is not enough. Again does nothing."""
        grace = STOP_GRACE + (self.options.drain_grace or 0.0)
        with _signals_later():
            while self._processes:
                _, process, _ = self._processes.pop()  # the host was started last
                _stop(process, grace)
                self.state.remove_process(process.pid)
            if self._temporary:
                self.state.remove()


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Hold back signals that would break off the block, and let them in at its end.

    Not by the signal mask, since the processes that are started in the block would inherit it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled by the main thread
        return
    came: list[int] = []
    numbers = [n for n in _DEFERRED if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()
