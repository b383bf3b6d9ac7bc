"""The controller put together: what is built, started and stopped, in which order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from controller_service.any_engine import AnyEngine
from controller_service.cluster_endpoint import Cluster, ClusterEndpoint
from controller_service.config import POWER, Config
from controller_service.engine_endpoint import ClusterFacts, EngineEndpoint
from controller_service.engine_router import EngineRouter
from controller_service.events import EngineEvent, EventKind
from controller_service.journal import Journal
from controller_service.journal_store import Bounds
from controller_service.lease import State
from controller_service.no_journal import NoJournal
from controller_service.operations import Operations
from controller_service.registry import Registry
from controller_service.session_endpoint import SessionEndpoint
from controller_service.switchboard import Switchboard
from controller_service.transfers import Transfers
from enginery import _address, _alive, _connection_file, _logs
from enginery._certificates import Authority, controller_name, host_name
from enginery._channel import SERVER_OPTIONS
from enginery._connection_file import ConnectionInfo
from enginery._direct_token import direct_token
from enginery._methods import ENGINE_SERVICE
from enginery._open_streams import OpenStreams
from enginery._reasons import DeliveryError
from enginery._serving import (
    CLIENT,
    ENGINE,
    INSECURE_NOTICE,
    Authorizer,
    Guard,
    add_introspection,
    check_insecure,
    server_credentials,
    service_roles,
    token_digest,
)
from enginery._state_dir import ClusterIdentity, StateDirectory
from enginery.errors import EngineryError, StateDirectoryInUse
from enginery.v1 import cluster_pb2, engine_pb2

if TYPE_CHECKING:
    from collections.abc import Collection

    from google.protobuf.descriptor import ServiceDescriptor
    from grpc_health.v1.health.aio import HealthServicer

    from controller_service.journal import AnyJournal

logger = logging.getLogger(__name__)

CLUSTER_SERVICE: ServiceDescriptor = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"]
CONTROLLER_SERVICE: ServiceDescriptor = engine_pb2.DESCRIPTOR.services_by_name["ControllerService"]
_LEAVING = 8.0  # seconds that dismissed engines get to say goodbye
_REPORT = 60.0  # seconds between lines of counts, at log level debug
_LAST_WORDS = 0.5  # seconds that open calls get to see how they end
_LEASE_PART, _LONGEST_PART = 0.1, 60.0  # of a lease, and seconds: as much a killed controller may forget of it


class Controller:
    """One controller. `start` once, then `stop`; a Shutdown call stops it too."""

    def __init__(self, config: Config | None = None) -> None:
        """Take the options; touches nothing yet."""
        self.config = config or Config()
        self.state = StateDirectory(self.config.state_dir)
        self.registry = Registry(lease=self.config.lease, save_ids=self.config.save_ids)
        self.journal: AnyJournal = NoJournal()
        """What outlives it; the one that was asked for, once started."""
        self.address = ""
        """`host:port` as others should use it, once started."""
        self.port = 0
        """The port that it listens on, once started."""
        self._switchboard: Switchboard | None = None
        self._any_engine: AnyEngine | None = None
        self._server: grpc.aio.Server | None = None
        self._health: HealthServicer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._streams = OpenStreams()
        self._transfers = Transfers(self.config.value_limit)
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self.registry.observers.subscribe(_log)

    def __repr__(self) -> str:
        """Show the address and the engines."""
        return f"Controller({self.address or 'not started'}, engines={self.registry.ids()})"

    async def start(self) -> None:
        """Lock the state directory, listen, and write the connection files.

        Raises StateDirectoryInUse if another controller has the directory or another program the port, and
        EngineryError if an option cannot be followed.
        """
        if self.config.insecure:
            check_insecure(self.config.bind)
            logger.warning(INSECURE_NOTICE)
        self.state.prepare()
        self.state.lock()
        try:
            await self._serve()
        except BaseException:
            await self._close()
            raise

    async def stop(self) -> None:
        """End every stream with a reason, stop listening and give the state directory back. Engines stay."""
        self._begin_stop()
        await self.wait_stopped()

    async def wait_stopped(self) -> None:
        """Wait until the controller has stopped, whoever asked for it."""
        await self._stopped.wait()
        if self._stopping is not None:
            await self._stopping  # raises what went wrong

    def request_shutdown(self, keep_engines: bool, grace: float) -> None:
        """Begin to stop, with all engines unless `keep_engines`; `grace` is how many seconds they get."""
        logger.info("shutdown requested, engines %s", "stay" if keep_engines else f"stop within {grace:g} s")
        self._begin_stop(dismiss_within=None if keep_engines else grace)

    # How it is done

    async def _serve(self) -> None:
        config, state = self.config, self.state
        identity = state.load_identity()
        epoch = state.next_epoch()
        self.registry.begin(epoch)
        await self._open_journal(identity.cluster_id)
        authority = None if config.insecure else await asyncio.to_thread(Authority.load_or_create, state.path)
        self._switchboard = Switchboard(
            self.registry,
            controller_epoch=epoch,
            waiting_limit=config.waiting_limit,
            journal=self.journal,
        )
        self._server = grpc.aio.server(interceptors=(_guard(identity),), options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers(self._handlers(identity, epoch, authority))
        services = [ENGINE_SERVICE, CLUSTER_SERVICE, CONTROLLER_SERVICE]
        self._health = await add_introspection(self._server, [service.full_name for service in services])
        self.port = self._listen(self._server, identity, authority)
        self.address = self._advertised()
        socket_path = state.client_socket
        if socket_path is None:
            logger.warning(state.socket_warning())
        else:
            socket_path.unlink(missing_ok=True)  # of a controller that died; the lock is ours
            self._server.add_insecure_port(f"unix:{socket_path}")
        # A task goes to the engine that has it, or is lost with that: those that are gone are not waited for.
        await self._drop_ended()
        await self._switchboard.tasks.restore(await self.journal.tasks())
        await self._server.start()
        self._switchboard.start()
        self._tasks.append(asyncio.create_task(self._keep_leases()))
        if logger.isEnabledFor(logging.DEBUG):
            self._tasks.append(asyncio.create_task(self._report()))
        state.remember_port(self.port)
        self._write_files(identity, authority)
        logger.info("controller of cluster %s listens on %s", identity.cluster_id, self.address)

    async def _open_journal(self, cluster_id: str) -> None:
        """Take over what an earlier controller knew, and keep what happens from now on."""
        if not self.config.journal:
            return
        bounds = Bounds(self.config.journal_age, self.config.journal_limit)
        is_safe = self.config.durability == POWER
        journal = Journal(self.state.journal, cluster_id, bounds=bounds, power=is_safe)
        self.journal = journal
        self.registry.restore(await journal.open(), now=time.monotonic())
        self.registry.observers.subscribe(self._keep)

    async def _drop_ended(self) -> None:
        """Wait for no engine of an earlier controller whose host ran on this machine and has ended."""
        ended = await asyncio.to_thread(self._ended_hosts, {engine.host_id for engine in self.registry})
        for engine in [engine for engine in self.registry if engine.host_id in ended]:
            cause = "its host process ended while there was no controller"
            error = DeliveryError("ENGINE_LOST", engine_id=engine.engine_id, cause=cause)
            self.registry.unregister(engine.engine_id, error)

    def _ended_hosts(self, known: Collection[str]) -> set[str]:
        directory = self.state.processes_directory
        _alive.forget_ended(directory, known)
        return {host_id for host_id in known if _alive.has_ended(directory, host_id)}

    def _keep(self, event: EngineEvent) -> None:
        """Have the journal know who is registered."""
        match event.kind:
            case EventKind.GONE:
                self.journal.drop_engine(event.engine, retired=self.registry.save_ids)
            case EventKind.AWAY | EventKind.STATE_CHANGED:
                pass
            case EventKind.PROPERTIES_CHANGED:
                self.journal.put_engine(event.engine, at_once=False)
            case _:  # whoever saw it must find it after a crash
                self.journal.put_engine(event.engine)

    async def _keep_leases(self) -> None:
        """Have the journal know now and then what has passed of leases: a restart must not renew them."""
        while True:
            await asyncio.sleep(min(self.config.lease * _LEASE_PART, _LONGEST_PART))
            for engine in self.registry:
                if engine.state is State.AWAY:
                    self.journal.put_engine(engine, at_once=False)
                await asyncio.sleep(0)  # there may be a thousand, with properties

    def _handlers(
        self, identity: ClusterIdentity, epoch: int, authority: Authority | None
    ) -> tuple[grpc.GenericRpcHandler, ...]:
        assert self._switchboard is not None
        switchboard, streams = self._switchboard, self._streams
        cluster_id = identity.cluster_id

        def sign(request: bytes, names: Collection[str]) -> bytes:
            assert authority is not None
            return authority.sign_request(request, host_name(cluster_id), *names)

        def direct_digest(address: str) -> bytes:
            return token_digest(direct_token(identity.client_token, address))

        digest = token_digest(identity.client_token)
        facts = ClusterFacts(cluster_id, epoch, digest, None if authority is None else sign, direct_digest)
        engines = EngineEndpoint(switchboard, facts, streams)
        operations = Operations(switchboard)
        any_engine = self._any_engine = AnyEngine(switchboard, operations)
        sessions = SessionEndpoint(
            switchboard, any_engine, streams, cluster_id=cluster_id, controller_epoch=epoch
        )
        cluster = ClusterEndpoint(
            self.registry,
            Cluster(cluster_id, epoch, self.config.value_limit),
            switchboard.tasks.scheduler,
            streams,
            self.request_shutdown,
        )
        raw_stream = grpc.stream_stream_rpc_method_handler
        return (
            EngineRouter(switchboard, operations, any_engine, self._transfers).handlers(),
            grpc.method_handlers_generic_handler(
                CONTROLLER_SERVICE.full_name,
                {
                    "RegisterEngine": raw_stream(engines.register_engine),
                    "Transfer": raw_stream(self._transfers.accept),
                },
            ),
            grpc.method_handlers_generic_handler(
                CLUSTER_SERVICE.full_name,
                {
                    "ListEngines": grpc.unary_unary_rpc_method_handler(
                        cluster.list_engines,
                        request_deserializer=cluster_pb2.ListEnginesRequest.FromString,
                        response_serializer=cluster_pb2.ListEnginesResponse.SerializeToString,
                    ),
                    "WatchEngines": grpc.unary_stream_rpc_method_handler(
                        cluster.watch_engines,
                        request_deserializer=cluster_pb2.WatchEnginesRequest.FromString,
                    ),
                    "GetClusterInfo": grpc.unary_unary_rpc_method_handler(
                        cluster.get_cluster_info,
                        request_deserializer=cluster_pb2.GetClusterInfoRequest.FromString,
                        response_serializer=cluster_pb2.GetClusterInfoResponse.SerializeToString,
                    ),
                    "Shutdown": grpc.unary_unary_rpc_method_handler(
                        cluster.shutdown,
                        request_deserializer=cluster_pb2.ShutdownRequest.FromString,
                        response_serializer=cluster_pb2.ShutdownResponse.SerializeToString,
                    ),
                    "Session": raw_stream(sessions.session),
                },
            ),
        )

    def _listen(self, server: grpc.aio.Server, identity: ClusterIdentity, authority: Authority | None) -> int:
        """Return the port that is bound: the one asked for, else the last one if it is free, else any."""
        bind = self.config.bind
        credentials = None
        if authority is not None:
            names = {bind.strip("[]"), self._advertised_host(), socket.gethostname()} - _address.WILDCARDS
            credentials = server_credentials(
                *authority.issue_server(controller_name(identity.cluster_id), *sorted(names))
            )
        wanted = identity.port if self.config.port is None else self.config.port
        problem = _probe(bind, wanted)
        if problem is not None and self.config.port is None and problem.errno == errno.EADDRINUSE:
            logger.warning("port %d, the last one, is taken by another program: any other will do", wanted)
            wanted, problem = 0, _probe(bind, 0)
        if problem is not None:
            raise _bind_error(bind, wanted, problem)
        name = _address.join(bind, wanted)
        try:
            if credentials is None:
                return server.add_insecure_port(name)
            return server.add_secure_port(name, credentials)
        except RuntimeError as error:
            raise StateDirectoryInUse(f"cannot listen on {name}: {error}") from error

    def _advertised(self) -> str:
        port = _address.split(self.config.advertise)[1] if self.config.advertise else None
        return _address.join(self._advertised_host(), port or self.port)

    def _advertised_host(self) -> str:
        if self.config.advertise:
            return _address.split(self.config.advertise)[0]
        return socket.gethostname() if self.config.bind in _address.WILDCARDS else self.config.bind

    def _write_files(self, identity: ClusterIdentity, authority: Authority | None) -> None:
        """Write the connection files, which is how others know that the controller is ready."""
        for role, token, path, socket_path in (
            ("engine", identity.engine_token, self.state.engine_file, None),
            ("client", identity.client_token, self.state.client_file, self.state.client_socket),
        ):
            info = ConnectionInfo(
                role=role,  # type: ignore[arg-type]  # one of the two
                cluster_id=identity.cluster_id,
                address=self.address,
                server_name=controller_name(identity.cluster_id),
                ca_pem="" if authority is None else authority.ca_pem,
                token=token,
                insecure=authority is None,
                socket_path=socket_path,
                pid=os.getpid(),
                created=time.time(),
            )
            _connection_file.write(path, info)

    def _begin_stop(self, *, dismiss_within: float | None = None) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(dismiss_within))

    async def _stop(self, dismiss_within: float | None) -> None:
        try:
            if self._health is not None:
                await self._health.enter_graceful_shutdown()  # load balancers send nobody here any more
            if dismiss_within is not None:
                await self._dismiss(dismiss_within)
            await self._close()
        finally:
            self._stopped.set()

    async def _dismiss(self, grace: float) -> None:
        """Ask all engines to stop, and wait until they have gone."""
        assert self._switchboard is not None
        empty = asyncio.Event()

        def observe(_event: EngineEvent) -> None:
            if not any(True for _ in self.registry.connected()):
                empty.set()

        self.registry.observers.subscribe(observe)
        self._switchboard.dismiss_all("the cluster is shut down", grace)
        if any(True for _ in self.registry.connected()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(empty.wait(), grace + _LEAVING)
        self.registry.observers.remove(observe)

    async def _close(self) -> None:
        error = DeliveryError("SHUTTING_DOWN", process="controller")
        self._streams.end_all(error)
        self._transfers.end_all(error)
        if self._switchboard is not None:
            self._switchboard.close(error)
        if self._server is not None:
            await self._server.stop(_LAST_WORDS)
        await self._transfers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._any_engine is not None:
            await self._any_engine.stop()
        if self._switchboard is not None:
            await self._switchboard.stop()
        await self.journal.close()
        if self.state.client_socket is not None:
            self.state.client_socket.unlink(missing_ok=True)
        self.state.unlock()
        if self.config.temporary:
            self.state.remove()

    async def _report(self) -> None:
        """Log counts now and then."""
        while True:
            await asyncio.sleep(_REPORT)
            logger.debug("%s, %s, %s", self.registry.statistics(), self._switchboard, self.journal.statistics())


def _guard(identity: ClusterIdentity) -> Guard:
    digests = {CLIENT: token_digest(identity.client_token), ENGINE: token_digest(identity.engine_token)}
    roles = {
        **service_roles(ENGINE_SERVICE, CLIENT),
        **service_roles(CLUSTER_SERVICE, CLIENT),
        **service_roles(CONTROLLER_SERVICE, ENGINE),
    }
    return Guard(Authorizer(digests, socket_role=CLIENT), roles, process="controller")


def _log(event: EngineEvent) -> None:
    if event.kind in (EventKind.PROPERTIES_CHANGED, EventKind.STATE_CHANGED):
        return
    facts = event.engine.facts
    what = event.kind.name.lower().replace("_", " ")
    where = f"ip {facts.ip}, port {facts.port}, pid {facts.pid}"
    reason = f": {event.reason}" if event.reason else ""
    logger.info("%s (%s)%s", what, where, reason, extra=_logs.about(engine=event.engine.engine_id))


def _probe(bind: str, port: int) -> OSError | None:
    """Return why `bind` and `port` cannot be listened on, None if they can; gRPC itself would not say."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            bind.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        return error
    return None


def _bind_error(bind: str, port: int, problem: OSError) -> EngineryError:
    if problem.errno == errno.EADDRINUSE:
        return StateDirectoryInUse(
            f"port {port} of {bind} is taken, perhaps by another controller: use another --port, or 0 for any"
        )
    return EngineryError(f"cannot listen on {_address.join(bind, port)}: {problem.strerror or problem}")
