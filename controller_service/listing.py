"""How engines are shown to clients: those that are registered, and those that were lost lately."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import TYPE_CHECKING

from controller_service.events import EngineEvent, EventKind, Registration
from controller_service.lease import State
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LOST = 100
_LOST_SHOWN = 3600.0  # seconds
_DRAINING = "it was told to stop: it finishes what it runs, and takes no more"


class LostEngines:
    """The engines that were unregistered within the last hour, at most 100. Told by the registry's events."""

    def __init__(self) -> None:
        """Start with none."""
        self._numbers = itertools.count(1)
        self._lost: deque[tuple[int, float, cluster_pb2.Engine]] = deque(maxlen=_MOST_LOST)

    def observe(self, event: EngineEvent) -> None:
        """Take in an event of the registry."""
        if event.kind is EventKind.GONE:
            shown = show(event.engine, event.reason)
            shown.ClearField("properties")  # they may be large
            self._lost.append((next(self._numbers), time.monotonic(), shown))

    def newest_first(self) -> Iterator[tuple[int, cluster_pb2.Engine]]:
        """Iterate over them, each with a number that rises with each loss."""
        horizon = time.monotonic() - _LOST_SHOWN
        while self._lost and self._lost[0][1] < horizon:
            self._lost.popleft()
        return ((number, engine) for number, _, engine in reversed(self._lost))


def show(engine: Registration, lost_because: str = "") -> cluster_pb2.Engine:
    """Return a registration as the contract shows it; one that is gone as lost, now, and why."""
    facts = engine.facts
    shown = cluster_pb2.Engine(
        engine_id=engine.engine_id,
        incarnation=engine.incarnation,
        epoch=engine.epoch,
        hostname=facts.hostname,
        ip=facts.ip,
        port=facts.port,
        pid=facts.pid,
        python_version=facts.python_version,
        enginery_version=facts.enginery_version,
        direct_addresses=facts.direct_addresses,
        memory_limit=facts.memory_limit,
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
    _show_state(shown, engine, lost_because)
    return shown


def _show_state(shown: cluster_pb2.Engine, engine: Registration, lost_because: str) -> None:
    lease = engine.lease
    shown.reason = lease.reason
    since: float | None = lease.since
    match lease.state:
        case State.GONE:
            shown.state, shown.reason, since = cluster_pb2.ENGINE_STATE_LOST, lost_because, time.monotonic()
        case State.AWAY:
            shown.state = cluster_pb2.ENGINE_STATE_AWAY
        case State.UNRESPONSIVE:
            shown.state = cluster_pb2.ENGINE_STATE_UNRESPONSIVE
        case State.CONNECTED if engine.draining_since is not None:
            shown.state, shown.reason = cluster_pb2.ENGINE_STATE_DRAINING, _DRAINING
            since = engine.draining_since
        case State.CONNECTED:
            is_busy = engine.status is not None and bool(engine.status.operation_id)
            shown.state = cluster_pb2.ENGINE_STATE_BUSY if is_busy else cluster_pb2.ENGINE_STATE_READY
            since = None
    if since is not None:
        # The registry's clock is steady, so that a wall clock that is set ends no lease.
        ago = time.monotonic() - since
        shown.state_time.FromMilliseconds(time.time_ns() // 1_000_000 - int(ago * 1000))
