"""Engines on an existing Dask cluster: each worker starts its share, by a plugin (`dask_plugin.py`).

    with enginery.Cluster(n=4, on="dask://scheduler:8786", bind="0.0.0.0") as cluster:
        cluster.client[:].apply(os.getpid)

Workers have the same Enginery installed as the client. The n engines are spread evenly over the workers that
there are; a worker that comes later, or that its nanny restarts, starts as many as the others have (n by
workers, rounded up). Each engine has the property `dask_worker`, the address of its worker. Engines take
environment, limits and GPUs from their worker, and end with it, and with the cluster. Dask does not see what
engines do: to an adaptive cluster a worker with a busy engine is idle. A scheduler that was restarted knows of
no engines, and its workers are new: start them again.

**The secret.** Over `dask+tls://` the engines' connection file goes to the workers through Dask, encrypted; the
certificates are those of Dask's configuration (`distributed.comm.tls`). Over plain `dask://` only its *path*
does: workers must see the same file, as they do on one machine or with a shared home, and run as the same user.
(Whoever reaches a plain Dask scheduler can run code as the workers' user anyway.)
"""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from enginery.errors import EngineryError
from enginery.launchers.launcher import STOP_GRACE, HostEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import distributed

    from enginery._connection_file import ConnectionInfo
    from enginery.launchers.launcher import EngineSpec

_ANSWER = 15.0  # seconds that Dask's scheduler has to answer
_EVENTS = 1_000  # of hosts that are kept
_AWAY = 30.0  # seconds that a starter may be without the scheduler before its engines are stopped
_ORPHAN = 60.0  # seconds without a controller after which engines leave whose starter was killed


class DaskLauncher:
    """Starts engines on the workers of a Dask cluster. See `Launcher`, and the module's text."""

    def __init__(self, address: str, *, security: distributed.Security | None = None, name: str = "") -> None:
        """Take the scheduler's address, as `tcp://HOST:PORT` or `tls://HOST:PORT`; connects to nothing yet.

        `security` is Dask's, by default as its configuration says. `name` is that of engines that were started
        before, to stop them.
        """
        self._address = address
        self._security = security
        self._name = name
        self._is_registered = bool(name)
        self._is_guarded = False
        self._client: distributed.Client | None = None
        self._events: deque[HostEvent] = deque(maxlen=_EVENTS)
        self._workers: set[str] = set()  # that started a host

    def start(self, spec: EngineSpec, connection: Callable[[], ConnectionInfo]) -> int:
        """Register the plugin, so that every worker starts its engines, now or when it comes."""
        deadline = time.monotonic() + spec.timeout
        client = self._connect(min(_ANSWER, spec.timeout))
        from enginery.launchers.dask_guard import guard
        from enginery.launchers.dask_plugin import EnginesPlugin, even

        info = connection()
        workers = self._workers_of(client, deadline)
        check_reachable(info, workers)
        is_safe = self._address.startswith("tls://") and all(worker.startswith("tls://") for worker in workers)
        share = even(spec.n, workers)
        orphans = [f"--orphan-timeout={_ORPHAN:g}"] if spec.attached else []
        self._name = f"enginery-{info.cluster_id}"  # Dask replaces an earlier one of this cluster
        plugin = EnginesPlugin(
            self._name,
            share,
            (*orphans, *spec.arguments),  # the last one wins: the user's
            connection_file=str(spec.connection_file),
            connection=info if is_safe else None,
            grace=spec.grace,
        )
        client.subscribe_topic(self._name, self._on_host)
        client.subscribe_topic("all", self._on_cluster)
        if spec.attached:
            self._is_guarded = True
            keeper = guard(self._name, client.id, _AWAY)
            self._ask("watch over engines", lambda: client.register_plugin(keeper, name=self._name))
        self._is_registered = True  # even if only some workers took it
        self._ask(
            "start engines on workers, which need the Enginery of this process",
            lambda: client.register_plugin(plugin, name=self._name),
        )
        return sum(share.of(worker, threads) for worker, threads in workers.items())

    def events(self) -> Sequence[HostEvent]:
        """Return what the workers have told, and which of them have gone."""
        return list(self._events)

    def last_words(self) -> str:
        """Return what was told last: logs are on the workers."""
        return "".join(f"\n{event.host}: {event.kind} {event.reason}{event.log}" for event in self.events())

    def signal(self, number: int) -> None:
        """Send a signal to the host of every worker."""
        from enginery.launchers.dask_plugin import signal_host

        client = self._connect()
        self._ask("send a signal", lambda: client.run(signal_host, self._name, int(number)))

    def stop(self, grace: float) -> None:
        """Remove the plugin: every worker stops its host, and no other starts one."""
        try:
            if self._is_registered:
                client = self._connect()
                self._ask("stop engines", lambda: self._unregister(client), _ANSWER + grace)
                self._is_registered = False
        finally:
            if self._client is not None:
                self._client.close(timeout=STOP_GRACE)
                self._client = None

    def note(self) -> dict[str, str]:
        """Return where the engines are, and under which name."""
        return {"dask": self._address, "name": self._name}

    def _unregister(self, client: distributed.Client) -> None:
        try:
            # An error says that others took it back, or that a worker did not have it: nothing is left to stop.
            with contextlib.suppress(ValueError, KeyError):
                client.unregister_worker_plugin(self._name)
        finally:
            self._unguard(client)

    def _unguard(self, client: distributed.Client) -> None:
        if self._is_guarded:
            with contextlib.suppress(ValueError):
                client.unregister_scheduler_plugin(self._name)

    def _connect(self, timeout: float = _ANSWER) -> distributed.Client:
        if self._client is None:
            try:
                import distributed  # an extra, and slow to import
            except ImportError as error:
                raise EngineryError(f"Dask is not installed ({error}): pip install enginery[dask]") from error
            try:
                self._client = distributed.Client(
                    self._address,
                    security=self._security,
                    timeout=timeout,
                    set_as_default=False,
                    name="enginery",
                )
            except (OSError, TimeoutError, ValueError, RuntimeError) as error:
                raise EngineryError(
                    f"no Dask scheduler answers at {self._address} ({error}): is it running, and is the "
                    "transport right (dask:// or dask+tls://)?"
                ) from error
        return self._client

    def _workers_of(self, client: distributed.Client, deadline: float) -> dict[str, int]:
        """Return the number of threads of each worker, by address; waits for the first one."""
        try:
            client.wait_for_workers(1, timeout=max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            raise EngineryError(f"the Dask cluster at {self._address} has no worker: start some") from None
        return dict(client.nthreads())

    def _on_host(self, event: tuple[float, dict[str, Any]]) -> None:
        _, told = event
        self._workers.add(told["worker"])
        self._events.append(
            HostEvent(told["kind"], f"host of the worker {told['worker']}", told["reason"], told["log"])
        )

    def _on_cluster(self, event: tuple[float, Any]) -> None:
        _, told = event
        if isinstance(told, dict) and told.get("action") == "remove-worker":
            worker = told.get("worker", "")
            if worker in self._workers:
                self._workers.discard(worker)
                self._events.append(HostEvent("lost", f"host of the worker {worker}", "its worker has gone"))

    def _ask(self, what: str, call: Callable[[], object], timeout: float = _ANSWER) -> None:
        """Run a blocking call of Dask's, which know no timeout; EngineryError if it fails or is late."""
        answer: Future[object] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=run, name="enginery asks Dask", daemon=True).start()
        try:
            answer.result(timeout)
        except TimeoutError:
            raise EngineryError(f"Dask at {self._address} did not {what} within {timeout:g} s") from None
        except Exception as error:
            if self._client is not None and self._client.status != "running":  # the reason, whatever it says
                raise EngineryError(
                    f"Dask could not {what}: its scheduler at {self._address} is there no longer; engines end "
                    "with their workers, and those end without it"
                ) from error
            raise EngineryError(
                f"Dask at {self._address} could not {what} ({type(error).__name__}: {error})"
            ) from error


def check_reachable(info: ConnectionInfo, workers: dict[str, int]) -> None:
    """Refuse a controller that only this machine reaches, if workers run on others."""
    host = info.address.rpartition(":")[0].strip("[]")
    if not _is_loopback(host):
        return
    import psutil

    here = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    away = [worker for worker in workers if not _is_here(worker, here)]
    if away:
        raise EngineryError(
            f"the controller listens on {host}, which the Dask worker {away[0]} does not reach: give it an "
            "address of this machine, bind='0.0.0.0' (--bind 0.0.0.0)"
        )


def _is_here(worker: str, here: set[str]) -> bool:
    host = worker.partition("://")[2].rpartition(":")[0].strip("[]")
    return _is_loopback(host) or host in here


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
