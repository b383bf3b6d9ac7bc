"""A cluster that lives as long as a `with` block."""

from __future__ import annotations

import json
import os
import time
import weakref
from typing import TYPE_CHECKING, Literal, NoReturn, Self

from enginery import _sizes, _times, launchers
from enginery._launch import Launched, LaunchOptions, connected, noted_on, temporary_state
from enginery._logs import FORMATS, LEVELS
from enginery._loop import is_forked
from enginery._state_dir import StateDirectory
from enginery.errors import InvalidProperty

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from enginery.client import Client
    from enginery.launchers.launcher import HostEvent, Launcher


class Cluster:
    """A controller on this machine, engines here or elsewhere, and a client of them.

        with enginery.Cluster(n=4) as cluster:
            cluster.client[:].execute("import math")

    The processes end with the block, and in any case with this process, even if it is killed. Several clusters
    may run at once. Options are those of the commands:

    n: engines to start; by default one per CPU.
    on: where engines run, by default on this machine. "dask://HOST:PORT", or with TLS "dask+tls://HOST:PORT",
        is a Dask scheduler: its workers share the n engines evenly, by default one for each of their threads,
        and workers that come later start their share too. See `enginery.launchers.dask`.
    state_dir: where files are kept, and stay; by default a temporary directory that goes at the end.
    memory_limit: resident memory at which the kernel of an engine is killed; by default there is no limit.
    drain_grace: seconds that what runs at the end of the block gets to finish; by default it is stopped.
    reconnect_timeout: seconds for which calls wait for a controller that has gone; see `connect`.
    journal: whether the controller keeps results on disk; journal_age (seconds) and journal_limit bound it;
        durability is "process", or "power" if results are to survive a power cut.
    port, bind, advertise, insecure, lease (seconds), save_ids, waiting_limit: see `enginery controller --help`.
    shell: what runs code on engines: "python", the default, or "ipython", which takes magics, `?` and `!`
        too, and needs IPython where engines run.
    properties, exec_lines, exec_files, output_limit, queue_limit, queue_bytes, store_limit, orphan_timeout
        (seconds), direct (False: no port for direct calls): see `enginery engine --help`. Property values must
        fit JSON; `set_properties` sets others later.
    value_limit, log_level, log_format ("human" or "json"): for both.
    timeout: seconds in which all engines must be registered.

    Sizes are in bytes, or texts such as "2G".
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        on: str | Launcher | None = None,
        state_dir: Path | str | None = None,
        port: int | None = None,
        bind: str | None = None,
        advertise: str | None = None,
        insecure: bool = False,
        lease: float | None = None,
        save_ids: bool = False,
        journal: bool = True,
        journal_age: float | None = None,
        journal_limit: int | str | None = None,
        durability: Literal["process", "power"] | None = None,
        value_limit: int | str | None = None,
        waiting_limit: int | str | None = None,
        memory_limit: int | str | None = None,
        output_limit: int | str | None = None,
        queue_limit: int | None = None,
        queue_bytes: int | str | None = None,
        store_limit: int | str | None = None,
        drain_grace: float = 0.0,
        orphan_timeout: float | None = None,
        direct: bool = True,
        shell: Literal["python", "ipython"] | None = None,
        properties: Mapping[str, object] | None = None,
        exec_lines: Sequence[str] = (),
        exec_files: Sequence[Path | str] = (),
        log_level: str | None = None,
        log_format: Literal["human", "json"] | None = None,
        reconnect_timeout: float = 60.0,
        timeout: float = 30.0,
    ) -> None:
        """Take the options; nothing is started yet.

        TypeError, ValueError or FileNotFoundError if one of them cannot be right, InvalidProperty if a property
        does not fit JSON.
        """
        if n is not None and (isinstance(n, bool) or not isinstance(n, int)):
            raise TypeError(f"n is how many engines to start, not {n!r}")
        if n is not None and n < 0:
            raise ValueError(f"n is {n}: a cluster has 0 engines or more")
        for name, value in (("lease", lease), ("journal_age", journal_age), ("orphan_timeout", orphan_timeout)):
            if value is not None:  # which is the service's own default
                _times.check(name, value)
        _times.check("drain_grace", drain_grace)
        _times.check("reconnect_timeout", reconnect_timeout)
        _times.check("timeout", timeout)
        _check_choice("log_level", log_level, LEVELS)
        _check_choice("log_format", log_format, FORMATS)
        _check_choice("shell", shell, ("python", "ipython"))
        _check_choice("durability", durability, ("process", "power"))
        _check_start(properties or {}, exec_lines, exec_files)
        launchers.check(on)
        self._on = on
        self._options = LaunchOptions(
            n=n,
            port=port,
            bind=bind,
            advertise=advertise,
            insecure=insecure,
            lease=lease,
            save_ids=save_ids,
            journal=journal,
            journal_age=journal_age,
            journal_limit=_size("journal_limit", journal_limit),
            durability=durability,
            value_limit=_size("value_limit", value_limit),
            waiting_limit=_size("waiting_limit", waiting_limit),
            memory_limit=_size("memory_limit", memory_limit),
            output_limit=_size("output_limit", output_limit),
            queue_limit=queue_limit,
            queue_bytes=_size("queue_bytes", queue_bytes),
            store_limit=_size("store_limit", store_limit),
            drain_grace=drain_grace,
            orphan_timeout=orphan_timeout,
            direct=direct,
            shell=shell,
            properties=dict(properties or {}),
            exec_lines=tuple(exec_lines),
            exec_files=tuple(exec_files),
            log_level=log_level,
            log_format=log_format,
        )
        self._named_state = StateDirectory(state_dir) if state_dir is not None else None
        self._timeout = timeout
        self._reconnect_timeout = reconnect_timeout
        self._launched: Launched | None = None
        self._client: Client | None = None
        self._finalizer: weakref.finalize[[Launched, int], Cluster] | None = None

    def start(self) -> Self:
        """Start it and wait until all engines are registered; does nothing if it runs.

        Raises StateDirectoryInUse if a cluster runs in `state_dir`, EngineryError with the end of its log if a
        process fails, FileTimeoutError if `timeout` passes. Nothing is left running then.
        """
        if self._launched is not None:
            return self
        deadline = time.monotonic() + self._timeout
        temporary = self._named_state is None
        launched = Launched(
            self._named_state or temporary_state(),
            self._options,
            attached=True,
            temporary=temporary,
            launcher=launchers.find(self._on),
        )
        self._launched = launched
        # At exit too, if nobody stopped it. A forked child has a copy of this and must leave the cluster alone.
        self._finalizer = weakref.finalize(self, _stop_in, launched, os.getpid())
        try:
            launched.start(deadline)
            from enginery.client import connect  # only now: processes come up while this imports gRPC

            info = launched.wait_for_controller(deadline)
            with launched.connecting():
                client = self._client = connect(
                    info.path,
                    timeout=max(1.0, deadline - time.monotonic()),
                    reconnect_timeout=self._reconnect_timeout,
                )
            client._cluster = self  # `Cluster().start().client` alone keeps it running
            launched.wait_for_engines(lambda: connected(client.engines), deadline)
        except BaseException as error:
            with noted_on(error):
                self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop everything and remove a temporary state directory. Does nothing twice, or in a forked child."""
        client, self._client = self._client, None
        if client is not None and not is_forked():
            client._cluster = None
            client.close()
        if self._finalizer is not None:
            self._finalizer()
        self._launched = None

    @property
    def client(self) -> Client:
        """The client of this cluster, closed with it. RuntimeError if the cluster is not running."""
        if self._client is None:
            raise RuntimeError("the cluster is not running: use `with Cluster(...)`, or call start()")
        return self._client

    @property
    def state_dir(self) -> Path | None:
        """Its state directory, with connection files and logs; None for a temporary one that is not there."""
        state = self._launched.state if self._launched is not None else self._named_state
        return None if state is None else state.path

    def host_events(self) -> list[HostEvent]:
        """Return what has happened to the hosts of its engines, oldest first: started, ended, lost, and why.

        RuntimeError if the cluster is not running, as in `signal_engines`.
        """
        return list(self._running().launcher.events())

    def signal_engines(self, number: int) -> None:
        """Send a signal, such as signal.SIGTERM, to the hosts of all engines, wherever they run.

        At SIGTERM or SIGINT a host lets what runs end within `drain_grace`, and leaves. To stop what runs on
        an engine there are `interrupt` and `cancel`. EngineryError if the place where they run does not answer.
        """
        self._running().launcher.signal(number)

    def _running(self) -> Launched:
        if self._launched is None:
            raise RuntimeError("the cluster is not running: use `with Cluster(...)`, or call start()")
        return self._launched

    def __enter__(self) -> Self:
        """Start it; see `start`."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to an engine."""
        raise TypeError("a Cluster belongs to its process and cannot be pickled: connect(state_dir) elsewhere")

    def __repr__(self) -> str:
        """Show how many engines, and where."""
        launched = self._launched
        n, where = (self._options.n, "not running") if launched is None else (launched.engines, self.state_dir)
        return f"Cluster(n={n}, {where})"


def _check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")


def _size(name: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        return _sizes.parse(str(value))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_start(
    properties: Mapping[str, object], exec_lines: Sequence[str], exec_files: Sequence[Path | str]
) -> None:
    """Refuse what the engines would refuse, where it was written."""
    given: dict[str, object] = {"exec_lines": exec_lines, "exec_files": exec_files}
    for name, value in given.items():
        if isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} is a list, even of one: [{value!r}]")
    for file in exec_files:
        if not os.path.isfile(file):  # noqa: PTH113 - a str, or a path of any kind
            raise FileNotFoundError(f"there is no file {file} (of exec_files)")
    for key, value in properties.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidProperty(
                f"the property {key!r} does not fit JSON ({error}): set_properties takes it once engines run"
            ) from error


def _stop_in(launched: Launched, pid: int) -> None:
    if os.getpid() == pid:
        launched.stop()
