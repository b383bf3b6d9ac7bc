"""ClusterService but for Session: which engines there are, facts about the cluster, and its end."""

from __future__ import annotations

import base64
import binascii
import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import timestamp_pb2

from controller_service.engine_endpoint import lease_duration
from controller_service.events import EngineEvent, Registration, State
from controller_service.stream import Stream
from enginery._reasons import DeliveryError
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import grpc.aio

    from controller_service.registry import Registry
    from controller_service.streams import OpenStreams

_DEFAULT_PAGE = 100
_LARGEST_PAGE = 1_000
_PAGE_BYTES = 1 << 20  # properties may be large, and a message stays below 4 MiB
_MAX_UNREAD = 64 << 20  # bytes of changes that a watcher may leave unread
_PREFIX = "after:"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What GetClusterInfo tells beside the registry."""

    cluster_id: str
    controller_epoch: int
    value_limit: int


class ClusterEndpoint:
    """Serves ListEngines, WatchEngines, GetClusterInfo and Shutdown."""

    def __init__(
        self, registry: Registry, cluster: Cluster, streams: OpenStreams, shut_down: Callable[[bool], None]
    ) -> None:
        """Speak of the engines of `registry`; `shut_down(keep_engines)` begins the end of the cluster."""
        self._registry = registry
        self._cluster = cluster
        self._streams = streams
        self._shut_down = shut_down
        self._started = timestamp_pb2.Timestamp()
        self._started.FromNanoseconds(time.time_ns())

    async def list_engines(
        self, request: cluster_pb2.ListEnginesRequest, _context: object
    ) -> cluster_pb2.ListEnginesResponse:
        """Return a page."""
        size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
        after = _read_token(request.page_token)
        response = cluster_pb2.ListEnginesResponse()
        total = 0
        for engine in self._registry:
            if engine.engine_id <= after:
                continue
            if len(response.engines) == size or total > _PAGE_BYTES:
                response.next_page_token = _token(response.engines[-1].engine_id)
                break
            shown = show(engine)
            total += shown.ByteSize()
            response.engines.append(shown)
        return response

    async def watch_engines(self, _request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Send the whole list, and then every change until the caller ends it. Writes serialized messages."""
        stream = Stream(context, limit=_MAX_UNREAD)

        def observe(event: EngineEvent) -> None:
            change = cluster_pb2.EngineEvent(kind=_KINDS[event.kind.name], engine=show(event.engine))
            change.reason = event.reason
            stream.send(cluster_pb2.WatchEnginesResponse(events=(change,)).SerializeToString())

        snapshot, rest = _snapshot(self._registry)
        for change in rest:
            stream.send(cluster_pb2.WatchEnginesResponse(events=(change,)).SerializeToString())
        self._registry.observers.subscribe(observe)
        try:
            # Before the stream's writer starts, since a batch would merge changes into the snapshot.
            await context.write(snapshot.SerializeToString())
            async with self._streams.opened(stream):
                await stream.until_over()
        finally:
            self._registry.observers.remove(observe)

    async def get_cluster_info(self, _request: object, _context: object) -> cluster_pb2.GetClusterInfoResponse:
        """Return the facts."""
        return cluster_pb2.GetClusterInfoResponse(
            cluster_id=self._cluster.cluster_id,
            controller_epoch=self._cluster.controller_epoch,
            enginery_version=importlib.metadata.version("enginery"),
            python_version=platform.python_version(),
            start_time=self._started,
            engine_count=len(self._registry),
            lease=lease_duration(self._registry.lease),
            value_limit=self._cluster.value_limit,
            pid=os.getpid(),
        )

    async def shutdown(
        self, request: cluster_pb2.ShutdownRequest, _context: object
    ) -> cluster_pb2.ShutdownResponse:
        """Begin to stop."""
        self._shut_down(request.keep_engines)
        return cluster_pb2.ShutdownResponse()


def _snapshot(
    engines: Iterable[Registration],
) -> tuple[cluster_pb2.WatchEnginesResponse, list[cluster_pb2.EngineEvent]]:
    """Return the whole list, and the properties that have no room in its message as changes to follow it."""
    snapshot = cluster_pb2.WatchEnginesResponse(snapshot=True)
    rest = []
    total = 0
    for engine in engines:
        shown = show(engine)
        size = shown.ByteSize()
        if total + size > _PAGE_BYTES and shown.properties:
            rest.append(cluster_pb2.EngineEvent(kind=_KINDS["PROPERTIES_CHANGED"], engine=shown))
            shown = cluster_pb2.Engine()
            shown.CopyFrom(rest[-1].engine)
            shown.ClearField("properties")
            size = shown.ByteSize()
        total += size
        snapshot.events.add(kind=_KINDS["REGISTERED"], engine=shown)
    return snapshot, rest


_KINDS = {name.removeprefix("ENGINE_EVENT_KIND_"): value for name, value in cluster_pb2.EngineEventKind.items()}


def show(engine: Registration) -> cluster_pb2.Engine:
    """Return a registration as the contract shows it."""
    facts = engine.facts
    shown = cluster_pb2.Engine(
        engine_id=engine.engine_id,
        incarnation=engine.incarnation,
        epoch=engine.epoch,
        state=_state(engine),
        hostname=facts.hostname,
        ip=facts.ip,
        port=facts.port,
        pid=facts.pid,
        python_version=facts.python_version,
        direct_addresses=facts.direct_addresses,
    )
    shown.register_time.FromMilliseconds(engine.registered_ms)
    for key, value in engine.properties.items():
        shown.properties[key].CopyFrom(value)
    status = engine.status
    if status is not None:
        shown.queued_count = status.queued_count
        shown.resident_bytes = status.resident_bytes
        shown.operation_id = status.operation_id
        shown.operation_method = status.method
        shown.last_failure = status.last_failure
        if status.HasField("start_time"):
            shown.operation_start_time.CopyFrom(status.start_time)
    return shown


def _state(engine: Registration) -> cluster_pb2.EngineState.ValueType:
    if engine.state is State.AWAY:
        return cluster_pb2.ENGINE_STATE_AWAY
    if engine.state is State.UNRESPONSIVE:
        return cluster_pb2.ENGINE_STATE_UNRESPONSIVE
    if engine.status is not None and engine.status.operation_id:
        return cluster_pb2.ENGINE_STATE_BUSY
    return cluster_pb2.ENGINE_STATE_READY


def _token(last: int) -> str:
    return base64.urlsafe_b64encode(f"{_PREFIX}{last}".encode()).decode()


def _read_token(token: str) -> int:
    if not token:
        return -1
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        return int(text.removeprefix(_PREFIX)) if text.startswith(_PREFIX) else _refuse_token()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return _refuse_token()


def _refuse_token() -> int:
    raise DeliveryError("BAD_PAGE_TOKEN")
