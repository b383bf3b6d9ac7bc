"""What the registry is told and what it tells: plain data, without I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller_service.lease import Lease, State
    from enginery._reasons import DeliveryError
    from enginery.v1 import engine_pb2, value_pb2


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine says about itself in its hello, and where it connected from."""

    pid: int = 0
    hostname: str = ""
    ip: str = ""
    port: int = 0
    python_version: str = ""
    enginery_version: str = ""
    direct_addresses: tuple[str, ...] = ()
    memory_limit: int = 0
    """Bytes at which its kernel is killed; 0 means no limit."""


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """An engine asks to be registered; see `Hello` in the contract."""

    host_id: str
    slot: int
    incarnation: str
    engine_id: int | None = None
    epoch: int | None = None
    facts: Facts = Facts()
    properties: Mapping[str, value_pb2.Value] | None = None


@dataclass(slots=True, eq=False)
class Registration:
    """One registered engine. Changed by its registry alone."""

    engine_id: int
    epoch: int
    host_id: str
    slot: int
    incarnation: str
    stream: int
    facts: Facts
    properties: Mapping[str, value_pb2.Value]
    registered_ms: int
    lease: Lease
    is_first: bool = False
    """Whether it is known that nobody held its id before."""
    status: engine_pb2.EngineStatus | None = None
    """The last heartbeat's, None before the first."""
    draining_since: float | None = None
    """When a heartbeat first said that it was told to stop; None if none did."""

    @property
    def state(self) -> State:
        """How the registration is."""
        return self.lease.state


@dataclass(frozen=True, slots=True)
class KeptEngine:
    """An engine that an earlier controller registered."""

    engine_id: int
    epoch: int
    host_id: str
    slot: int
    incarnation: str
    facts: Facts
    properties: Mapping[str, value_pb2.Value]
    registered_ms: int
    is_first: bool = False
    lease_used: float = 0.0
    """Seconds of its lease that had passed, if it was away."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a registry knows again after a restart."""

    engines: tuple[KeptEngine, ...] = ()
    epochs: Mapping[int, int] = field(default_factory=dict)
    """The highest epoch under which each id was held."""
    retired: frozenset[int] = frozenset()
    """Ids that are given to nobody."""


class EventKind(enum.Enum):
    """What happened to an engine, named as the contract's EngineEventKind."""

    REGISTERED = enum.auto()
    AWAY = enum.auto()
    BACK = enum.auto()
    GONE = enum.auto()
    KERNEL_CHANGED = enum.auto()
    PROPERTIES_CHANGED = enum.auto()
    STATE_CHANGED = enum.auto()


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One change of one engine.

    For GONE, `cause` is what the calls that waited for it fail with; `fenced` says that another engine has its
    id now, so that it is to be told to stop.
    """

    kind: EventKind
    engine: Registration
    reason: str = ""
    cause: DeliveryError | None = None
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a hello: the registration, and what else it brought about."""

    engine: Registration
    superseded: int | None = None
    """An older stream of the same host, which is to be ended."""
