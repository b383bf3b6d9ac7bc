"""Starts a controller on this machine, and engines, and stops them again.

Used by `Cluster`, `enginery up` and `enginery run`. Controller and engine host start at the same time; the host
waits for the connection file. Needs no gRPC: who waits for registration brings a client. Engines may run
elsewhere too: a launcher starts them (`launchers/`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enginery._connection_file import ConnectionInfo, read
from enginery._signals import signals_later
from enginery._state_dir import StateDirectory, runtime_directory
from enginery.errors import (
    ConnectionFileError,
    ControllerNotRunning,
    EngineryError,
    FileTimeoutError,
    StateDirectoryInUse,
)
from enginery.launchers.launcher import STOP_GRACE, EngineSpec
from enginery.launchers.local import LocalLauncher
from enginery.launchers.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from enginery.engines import EngineInfo
    from enginery.launchers.launcher import Launcher

_POLL = 0.005  # seconds between looks at a file that a child is about to write
_ABANDONED = 600.0  # seconds without a change and without a controller


def connected(engines: Iterable[EngineInfo]) -> int:
    """Return how many of the engines are there: others of an earlier cluster may still be awaited."""
    return sum(engine.state != "away" for engine in engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What to start. None means the service's own default; names are those of the services' options.

    Sizes in bytes, times in seconds.
    """

    n: int | None = None
    """How many engines; None leaves it to the launcher."""
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
    shell: str | None = None
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
        """Return these options as an engine host takes them, but for `n`, which the launcher says."""
        arguments = _arguments(
            value_limit=self.value_limit,
            memory_limit=self.memory_limit,
            output_limit=self.output_limit,
            queue_limit=self.queue_limit,
            queue_bytes=self.queue_bytes,
            store_limit=self.store_limit,
            drain_grace=self.drain_grace,
            orphan_timeout=self.orphan_timeout,
            no_direct=not self.direct,
            shell=self.shell,
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


@contextlib.contextmanager
def noted_on(error: BaseException) -> Iterator[None]:
    """Keep a failure to stop what was started from hiding why it is stopped: it becomes a note on `error`."""
    try:
        yield
    except EngineryError as also:
        error.add_note(f"then, {also}")


class Launched:
    """The controller of one cluster, a process of this machine, and the engines that a launcher starts for it.

    `attached` ones end with this process, even if it is killed.
    """

    def __init__(
        self,
        state: StateDirectory,
        options: LaunchOptions,
        *,
        attached: bool,
        temporary: bool,
        launcher: Launcher | None = None,
    ) -> None:
        """Take where and what; `temporary` removes the state directory at the end.

        `launcher` says where engines run, by default on this machine.
        """
        self.state = state
        self.options = options
        self.launcher: Launcher = LocalLauncher() if launcher is None else launcher
        self.engines = 0
        """How many engines are expected, once started."""
        self._attached = attached
        self._temporary = temporary
        self._controller: Process | None = None

    def start(self, deadline: float) -> None:
        """Start the processes; `deadline` is of time.monotonic. On this machine that waits for nothing.

        StateDirectoryInUse if a cluster runs there, EngineryError if engines cannot be started.
        """
        pid = self.state.controller_pid()
        if pid is not None:
            raise StateDirectoryInUse(
                f"a cluster runs already in {self.state.path} (controller pid {pid}): `enginery engine` adds "
                "engines to it, `enginery down` stops it, another --state-dir starts another"
            )
        with signals_later():  # or one might come between a process and its entry in the state directory
            self._start_controller()
        self._start_engines(deadline)

    def _start_controller(self) -> None:
        self.state.prepare()
        state = ["--state-dir", str(self.state.path)]
        if self._temporary:
            state.append("--temporary")
        arguments = [*state, *self.options.controller_arguments()]
        self._controller = Process(
            "controller", "controller_service", arguments, logs=self.state.logs, attached=self._attached
        )
        self.state.add_process(self._controller.pid, "controller")

    def _start_engines(self, deadline: float) -> None:
        spec = EngineSpec(
            n=self.options.n,
            connection_file=self.state.engine_file,
            logs=self.state.logs,
            arguments=tuple(self.options.host_arguments()),
            attached=self._attached,
            timeout=max(1.0, deadline - time.monotonic()),
            grace=self._grace,
        )

        def connection() -> ConnectionInfo:
            self.wait_for_controller(deadline)
            return read(self.state.engine_file, "engine")

        self.engines = self.launcher.start(spec, connection)
        note = self.launcher.note()
        if note is not None:
            self.state.note_launcher(note)

    @property
    def _grace(self) -> float:
        return STOP_GRACE + (self.options.drain_grace or 0.0)

    @property
    def controller_pid(self) -> int:
        """Process id of the controller, once started; else 0."""
        return 0 if self._controller is None else self._controller.pid

    def wait_for_controller(self, deadline: float) -> ConnectionInfo:
        """Return the client's connection file once the controller has written it.

        `deadline` is of time.monotonic. Raises EngineryError if a process ends, FileTimeoutError if it is late.
        """
        while True:
            self.check()
            if self.state.client_file.exists():
                with contextlib.suppress(
                    ConnectionFileError
                ):  # an old one that is no good; it will be replaced
                    info = read(self.state.client_file, "client")
                    if info.pid == self.controller_pid:
                        return info
            if time.monotonic() > deadline:
                raise FileTimeoutError(f"the controller did not come up in time{self._last_words()}")
            time.sleep(_POLL)

    @contextlib.contextmanager
    def connecting(self) -> Iterator[None]:
        """Have a connection that fails say what is wrong: the controller runs, so it is the way to it."""
        try:
            yield
        except ControllerNotRunning as error:
            self.check()
            raise ControllerNotRunning(
                "the controller runs, but the address that it advertises does not lead to it from here, "
                f"as engines here need: give another --advertise ({error})"
            ) from error

    def wait_for_engines(self, count: Callable[[], int], deadline: float) -> None:
        """Wait until `count()` engines are there; errors as in `wait_for_controller`."""
        while (found := count()) < self.engines:
            self.check()
            if time.monotonic() > deadline:
                raise FileTimeoutError(f"only {found} of {self.engines} engines came up{self._last_words()}")
            time.sleep(_POLL)

    def check(self) -> None:
        """Raise EngineryError if the controller or an engine host has ended."""
        how = None if self._controller is None else self._controller.end()
        if self._controller is not None and how is not None:
            raise EngineryError(f"the controller ended while it started ({how}){self._controller.last_words()}")
        for event in self.launcher.events():
            if event.kind == "ended":
                raise EngineryError(
                    f"the engine {event.host} ended while it started ({event.reason}){event.log}"
                )

    def _last_words(self) -> str:
        controller = "" if self._controller is None else self._controller.last_words()
        return controller + self.launcher.last_words()

    def stop(self) -> None:
        """Stop engines, then controller: SIGTERM, and SIGKILL if that is not enough. Again does nothing."""
        with signals_later():
            try:
                self.launcher.stop(self._grace)
                if self.launcher.note() is not None:
                    self.state.note_launcher(None)
            finally:  # whatever became of engines elsewhere
                if self._controller is not None:
                    self._controller.stop(self._grace)
                    self.state.remove_process(self._controller.pid)
                    self._controller = None
                if self._temporary:
                    self.state.remove()
