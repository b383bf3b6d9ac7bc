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
from controller_service.listing import LostEngines, show
from enginery._engine import MAX_SECONDS
from enginery._reasons import DeliveryError
from enginery._server_stream import Stream
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import grpc.aio

    from controller_service.events import EngineEvent, Registration
    from controller_service.registry import Registry
    from controller_service.scheduler import Scheduler
    from enginery._open_streams import OpenStreams

_DEFAULT_PAGE = 100
_LARGEST_PAGE = 1_000
_PAGE_BYTES = 1 << 20  # properties may be large, and a message stays below 4 MiB
_MAX_UNREAD = 64 << 20  # bytes of changes that a watcher may leave unread
_AFTER, _LOST = "after", "lost"  # where a page begins: behind an id, or a loss before another


@dataclass(frozen=True, slots=True)
class Cluster:
    """What GetClusterInfo tells beside the registry."""

    cluster_id: str
    controller_epoch: int
    value_limit: int


class ClusterEndpoint:
    """Serves ListEngines, WatchEngines, GetClusterInfo and Shutdown."""

    def __init__(
        self,
        registry: Registry,
        cluster: Cluster,
        tasks: Scheduler,
        streams: OpenStreams,
        shut_down: Callable[[bool, float], None],
    ) -> None:
        """Speak of engines and tasks; `shut_down(keep_engines, grace)` begins the end of the controller."""
        self._registry = registry
        self._cluster = cluster
        self._tasks = tasks
        self._streams = streams
        self._shut_down = shut_down
        self._lost = LostEngines()
        registry.observers.subscribe(self._lost.observe)
        self._started = _now()

    async def list_engines(
        self, request: cluster_pb2.ListEnginesRequest, _context: object
    ) -> cluster_pb2.ListEnginesResponse:
        """Return a page."""
        size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
        response = cluster_pb2.ListEnginesResponse()
        total = 0
        last = ""
        for position, shown in self._listed(request):
            if len(response.engines) == size or total > _PAGE_BYTES:
                response.next_page_token = _token(last)
                break
            total += shown.ByteSize()
            response.engines.append(shown)
            last = position
        return response

    def _listed(self, request: cluster_pb2.ListEnginesRequest) -> Iterator[tuple[str, cluster_pb2.Engine]]:
        """Iterate over what remains to be listed, each with its position."""
        phase, last = _read_token(request.page_token)
        if phase == _AFTER:
            for engine in self._registry:
                if engine.engine_id > last:
                    yield f"{_AFTER}:{engine.engine_id}", show(engine)
        if request.include_lost:
            for number, shown in self._lost.newest_first():
                if phase == _AFTER or number < last:
                    yield f"{_LOST}:{number}", shown

    async def watch_engines(self, _request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Send the whole list, and then every change until the caller ends it. Writes serialized messages."""
        stream = Stream(context, limit=_MAX_UNREAD)

        def observe(event: EngineEvent) -> None:
            shown = show(event.engine, event.reason)
            change = cluster_pb2.EngineEvent(kind=_KINDS[event.kind.name], engine=shown)
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
        tasks = self._tasks.statistics()
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
            waiting_task_count=tasks.waiting,
            placed_task_count=tasks.placed,
            current_time=_now(),
        )

    async def shutdown(
        self, request: cluster_pb2.ShutdownRequest, _context: object
    ) -> cluster_pb2.ShutdownResponse:
        """Begin to stop. BAD_REQUEST if the grace makes no sense."""
        grace = request.grace.ToNanoseconds() / 1e9
        if not 0 <= grace <= MAX_SECONDS:
            raise DeliveryError(
                "BAD_REQUEST", field="grace", cause=f"{grace:g} s is not within 0 and {MAX_SECONDS:g}"
            )
        self._shut_down(request.keep_engines, grace)
        return cluster_pb2.ShutdownResponse()


def _now() -> timestamp_pb2.Timestamp:
    now = timestamp_pb2.Timestamp()
    now.FromNanoseconds(time.time_ns())
    return now


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


def _token(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode()


def _read_token(token: str) -> tuple[str, int]:
    """Return what the position of a page counts, and the last that was on the page before."""
    if not token:
        return _AFTER, -1
    try:
        phase, _, last = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").partition(":")
        if phase in (_AFTER, _LOST):
            return phase, int(last)
    except (binascii.Error, UnicodeDecodeError, ValueError):
        pass  # refused as any other that is not ours
    raise DeliveryError("BAD_PAGE_TOKEN")
