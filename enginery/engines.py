"""What a client knows of the cluster's engines, kept up to date by the controller's events."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enginery import _codec, _loop, _times, _values
from enginery._encoded import Codec
from enginery._reasons import DeliveryError
from enginery.errors import SerializationError
from enginery.serialized import Serialized
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True, repr=False)
class EngineInfo:
    """One registered engine as it last was."""

    engine_id: int
    incarnation: str
    """Its kernel; a new one means a new namespace."""
    state: str
    """`ready`, `busy`, `unresponsive`, `away` or `draining`, as of its last heartbeat; or `lost`."""
    hostname: str
    ip: str
    port: int
    pid: int
    """Process id of its kernel on its machine."""
    registered_at: datetime
    """When it was registered, UTC."""
    python_version: str
    properties: Mapping[str, object] = field(default_factory=dict)
    """Its properties; one that was pickled is a Serialized, which `load()` decodes."""
    queued_count: int = 0
    """Operations that wait, as of its last heartbeat."""
    resident_bytes: int = 0
    """Memory of its kernel, as of its last heartbeat."""
    operation_id: str = ""
    """What runs, as of its last heartbeat; empty if it is idle."""
    operation_method: str = ""
    """Its method, such as `execute`."""
    operation_started_at: datetime | None = None
    """When it began to run, UTC."""
    last_failure: str = ""
    """How its last kernel died; empty if none did."""
    epoch: int = 0
    """Its registration: a new one means that its calls from before are lost."""
    reason: str = ""
    """Why it is away, draining or lost; empty if it is not."""
    state_since: datetime | None = None
    """Since when it is away, draining or lost, UTC."""
    memory_limit: int = 0
    """Memory in bytes at which its kernel is killed; 0 for no limit."""
    enginery_version: str = ""
    """Version of its host's Enginery; empty if that is not known."""

    @property
    def id(self) -> int:
        """The same as `engine_id`."""
        return self.engine_id

    def __repr__(self) -> str:
        """Show what tells it from the others, not every field."""
        running = f" {self.operation_method}" if self.operation_method else ""
        return f"<EngineInfo {self.engine_id}: {self.state}{running}, {self.hostname} pid {self.pid}>"


def from_message(engine: cluster_pb2.Engine) -> EngineInfo:
    """Return what the contract's message says."""
    return EngineInfo(
        engine_id=engine.engine_id,
        incarnation=engine.incarnation,
        state=_STATES.get(engine.state, "away"),
        hostname=engine.hostname,
        ip=engine.ip,
        port=engine.port,
        pid=engine.pid,
        registered_at=_times.moment(engine.register_time),
        python_version=engine.python_version,
        properties=_properties(engine),
        queued_count=engine.queued_count,
        resident_bytes=engine.resident_bytes,
        operation_id=engine.operation_id,
        operation_method=engine.operation_method,
        operation_started_at=(
            _times.moment(engine.operation_start_time) if engine.HasField("operation_start_time") else None
        ),
        last_failure=engine.last_failure,
        epoch=engine.epoch,
        reason=engine.reason,
        state_since=_times.moment(engine.state_time) if engine.HasField("state_time") else None,
        memory_limit=engine.memory_limit,
        enginery_version=engine.enginery_version,
    )


_STATES: dict[int, str] = {
    number: name.removeprefix("ENGINE_STATE_").lower()
    for name, number in cluster_pb2.EngineState.items()
    if number
}


def _properties(engine: cluster_pb2.Engine) -> dict[str, object]:
    """Return the properties that can be read: what one host says wrong must not hide all engines."""
    properties: dict[str, object] = {}
    for key, value in engine.properties.items():
        with contextlib.suppress(DeliveryError, SerializationError):
            encoded = _values.from_value(value)
            properties[key] = Serialized(encoded) if encoded.codec is Codec.PICKLE else _codec.decode(encoded)
    return properties


class Roster:
    """The engines there are. The loop's thread writes, any thread reads and waits."""

    def __init__(self) -> None:
        """Begin without engines."""
        self._changed = threading.Condition()
        self._engines: dict[int, cluster_pb2.Engine] = {}
        self.epochs: dict[int, int] = {}
        """The registration of each engine there is. For the loop's thread."""

    def apply(self, response: cluster_pb2.WatchEnginesResponse) -> None:
        """Take a batch of changes."""
        with self._changed:
            if response.snapshot:
                self._engines.clear()
                self.epochs.clear()
            for event in response.events:
                if event.kind == cluster_pb2.ENGINE_EVENT_KIND_GONE:
                    self._engines.pop(event.engine.engine_id, None)
                    self.epochs.pop(event.engine.engine_id, None)
                else:
                    self._engines[event.engine.engine_id] = event.engine
                    self.epochs[event.engine.engine_id] = event.engine.epoch
            self._changed.notify_all()

    @property
    def ids(self) -> list[int]:
        """Ids of all engines, those that are away included, rising."""
        _loop.check_fork()  # a lock that a thread held at the fork would never be free here
        with self._changed:
            return sorted(self._engines)

    @property
    def engines(self) -> list[EngineInfo]:
        """All engines by rising id."""
        with self._changed:
            return [from_message(self._engines[engine_id]) for engine_id in sorted(self._engines)]

    def reachable(self) -> list[cluster_pb2.Engine]:
        """Return the engines whose hosts have a port of their own. On the loop's thread."""
        return [engine for engine in self._engines.values() if engine.direct_addresses]

    def incarnations(self, ids: list[int]) -> dict[int, str]:
        """Return the kernels of those of `ids` that are there."""
        with self._changed:
            return {
                engine_id: self._engines[engine_id].incarnation
                for engine_id in ids
                if engine_id in self._engines
            }

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition()` holds, at most `timeout` seconds; return whether it does."""
        deadline = time.monotonic() + timeout
        with self._changed:
            return self._changed.wait_for(condition, max(0.0, deadline - time.monotonic()))
