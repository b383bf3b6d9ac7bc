"""What the journal keeps: results and engines, and how they wait to be written. Plain data, without I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from controller_service.events import Facts, Kept, KeptEngine
from enginery._methods import ANY_ENGINE
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from collections.abc import Collection

    from controller_service.events import Registration
    from controller_service.task_call import TaskCall
    from enginery.v1 import frame_pb2

_MOST_HELLO = 64 << 10  # bytes

NamedCall: TypeAlias = tuple[bytes, int]
"""An operation that its caller named, and the id of the engine that was to run it."""
Pending: TypeAlias = tuple[int, int, bytes, int, int, bytes, bytes, int, str]
"""The fields of a Result behind its id, as they wait: a tuple, since one is made for every reply."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an operation ended. `response` and `error` are those of its Reply; a page leaves both empty."""

    operation_id: bytes
    engine_id: int
    method: int
    session_id: bytes
    outcome: int
    ended_ms: int
    """Milliseconds since 1970."""
    response: bytes = b""
    error: bytes = b""
    attempts: int = 0
    """Of a task, how often it was begun; 0 of what is none, and if nobody knew that it is one."""
    label: str = ""
    """Of a task."""
    number: int = 0
    """Rises with each result that is kept; 0 while it waits to be written."""


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine id: who holds it, if anybody does, and what must be known of it when nobody does."""

    engine_id: int
    epoch: int
    """The highest under which it was held."""
    retired: bool = False
    hello: bytes = b""
    """What the engine would say; empty if it is gone."""
    ip: str = ""
    port: int = 0
    registered_ms: int = 0
    is_first: bool = False
    """Whether it is known that nobody held the id before."""
    lease_used: float = 0.0
    """Seconds of its lease that have passed, if it is away."""

    @classmethod
    def gone(cls, engine: Registration, *, retired: bool) -> Self:
        """Return the row of an id that nobody holds any more."""
        return cls(engine.engine_id, engine.epoch, retired)

    @classmethod
    def of(cls, engine: Registration, now: float) -> Self:
        """Return the row of a registered engine; large properties are left out, and come back with it.

        `now` is by the clock of leases.
        """
        facts = engine.facts
        hello = engine_pb2.Hello(
            slot=engine.slot,
            host_id=engine.host_id,
            incarnation=engine.incarnation,
            pid=facts.pid,
            hostname=facts.hostname,
            python_version=facts.python_version,
            enginery_version=facts.enginery_version,
            direct_addresses=facts.direct_addresses,
            memory_limit=facts.memory_limit,
        )
        for key, value in engine.properties.items():
            hello.properties[key].CopyFrom(value)
        if hello.ByteSize() > _MOST_HELLO:
            hello.ClearField("properties")
        return cls(
            engine.engine_id,
            engine.epoch,
            hello=hello.SerializeToString(),
            ip=facts.ip,
            port=facts.port,
            registered_ms=engine.registered_ms,
            is_first=engine.is_first,
            lease_used=engine.lease.used(now),
        )

    def engine(self) -> KeptEngine:
        """Return the engine that holds the id."""
        hello = engine_pb2.Hello.FromString(self.hello)
        facts = Facts(
            pid=hello.pid,
            hostname=hello.hostname,
            ip=self.ip,
            port=self.port,
            python_version=hello.python_version,
            enginery_version=hello.enginery_version,
            direct_addresses=tuple(hello.direct_addresses),
            memory_limit=hello.memory_limit,
        )
        return KeptEngine(
            engine_id=self.engine_id,
            epoch=self.epoch,
            host_id=hello.host_id,
            slot=hello.slot,
            incarnation=hello.incarnation,
            facts=facts,
            properties=dict(hello.properties),
            registered_ms=self.registered_ms,
            is_first=bool(self.is_first),
            lease_used=self.lease_used,
        )


class KeptTask(NamedTuple):  # two are made for each task that waits for long; a frozen dataclass takes longer
    """A task that has not ended."""

    task_id: bytes
    session_id: bytes
    call: TaskCall
    """What is sent for it."""
    options: frame_pb2.TaskOptions
    submitted_ns: int
    arrival: int
    attempts: int
    engine_id: int = ANY_ENGINE
    """The engine that it is on."""
    epoch: int = 0
    """Of that engine's registration; 0 if it is on none."""
    excluded: frozenset[int] = frozenset()
    """Engines that rejected it."""

    def frame(self) -> bytes:
        """Return its call as its client sent it, serialized; but for a function by digest, which is put in."""
        return self.call.kept(self.task_id, self.session_id, self.options)


@dataclass(slots=True)
class Batch:
    """Records that are written together: first what is forgotten, then the rest."""

    count: int = 0
    """Records that it stands for, those included that had no room."""
    size: int = 0
    results: dict[bytes, Pending] = field(default_factory=dict)
    forgotten: set[bytes] = field(default_factory=set)
    engines: dict[int, EngineRow] = field(default_factory=dict)
    called: dict[NamedCall, int] = field(default_factory=dict)
    """Calls that go to their engine now, with its epoch."""
    answered: list[NamedCall] = field(default_factory=list)
    """Such calls that need not be kept any more."""
    tasks: dict[bytes, KeptTask | None] = field(default_factory=dict)
    """Tasks as they are now; None for those that have ended."""


def kept(rows: Collection[EngineRow]) -> Kept:
    """Return what a registry knows again from these rows."""
    return Kept(
        engines=tuple(row.engine() for row in rows if row.hello),
        epochs={row.engine_id: row.epoch for row in rows},
        retired=frozenset(row.engine_id for row in rows if row.retired),
    )
