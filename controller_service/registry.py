"""The registry: which engines there are, under which ids, and how they are. No I/O; time is an argument.

`now` is seconds of any steady clock, `unix_ms` is milliseconds since 1970. A stream is an integer that rises
with each registration stream, so that it can be told which of two streams of one host is the newer.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from controller_service.events import (
    Admission,
    EngineEvent,
    EventKind,
    Facts,
    HelloReceived,
    Registration,
)
from controller_service.lease import Input, Lease, State
from controller_service.observers import Observers
from enginery import _logs
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from controller_service.events import Kept
    from enginery.v1 import engine_pb2, value_pb2

logger = logging.getLogger(__name__)

_ASLEEP = 3.0  # seconds between two ticks that only a process which did not run can explain
_CONNECTION_LOST = "its connection was lost"
_MAX_EPOCH = 1 << 62
_MAX_ENGINE_ID = (1 << 31) - 1


@dataclass(slots=True)
class _Stream:
    """One registration stream: its host, and the engines that it connects."""

    host_id: str
    engines: dict[int, Registration] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts over the registry's life."""

    registered: int
    away: int
    unresponsive: int
    observers: int
    ever_registered: int
    next_epoch_after: int


class Registry:
    """Engines by id.

    `lease` is how many seconds an engine stays registered without a stream. With `save_ids` the id of an engine
    that left is retired instead of being given to another.
    """

    def __init__(self, *, lease: float, save_ids: bool = False) -> None:
        """Start empty."""
        self.lease = lease
        self.save_ids = save_ids
        self._engines: dict[int, Registration] = {}
        self._slots: dict[tuple[str, int], Registration] = {}
        self._incarnations: dict[str, Registration] = {}
        self._streams: dict[int, _Stream] = {}
        self._newest: dict[str, int] = {}  # stream of each host
        self._retired: set[int] = set()
        self._lowest = 0  # no id below is free
        self._first_epoch = 0
        self._last_epoch = 0
        self._epochs: dict[int, int] = {}  # highest epoch under which each id was held
        self._ever = 0
        self._ticked: float | None = None
        self.observers = Observers()

    def begin(self, controller_epoch: int) -> None:
        """Issue epochs above that of this controller: lower ones were issued by a controller before it."""
        self._first_epoch = self._last_epoch = controller_epoch

    def restore(self, kept: Kept, *, now: float) -> None:
        """Take over what an earlier controller knew: its engines are away, and their leases go on."""
        self._retired |= kept.retired
        self._epochs.update(kept.epochs)
        self._last_epoch = max(self._last_epoch, *kept.epochs.values(), 0)
        for known in kept.engines:
            engine = Registration(
                engine_id=known.engine_id,
                epoch=known.epoch,
                host_id=known.host_id,
                slot=known.slot,
                incarnation=known.incarnation,
                stream=0,
                facts=known.facts,
                properties=known.properties,
                registered_ms=known.registered_ms,
                lease=Lease.kept(self.lease, now, known.lease_used),
                is_first=known.is_first,
            )
            self._add(engine)
            self.observers.tell(EngineEvent(EventKind.REGISTERED, engine, engine.lease.reason))

    def __repr__(self) -> str:
        """Show the ids."""
        return f"Registry({self.ids()}, lease={self.lease}, save_ids={self.save_ids})"

    def __len__(self) -> int:
        """Return how many engines are registered, those that are away included."""
        return len(self._engines)

    def __iter__(self) -> Iterator[Registration]:
        """Iterate over the registered engines by rising id."""
        return iter([self._engines[engine_id] for engine_id in sorted(self._engines)])

    def ids(self) -> list[int]:
        """Return the registered ids, rising."""
        return sorted(self._engines)

    def find(self, engine_id: int) -> Registration | None:
        """Return the engine of that id, None if there is none."""
        return self._engines.get(engine_id)

    def highest_epoch(self, engine_id: int) -> int:
        """Return the highest epoch under which an id is known to have been held; 0 if it was not."""
        return self._epochs.get(engine_id, 0)

    def on_stream(self, stream: int) -> list[Registration]:
        """Return the engines that are connected by `stream`."""
        return list(self._streams[stream].engines.values()) if stream in self._streams else []

    def connected(self) -> Iterator[Registration]:
        """Iterate over the engines that are not away."""
        return (engine for engine in self._engines.values() if engine.lease.is_connected)

    def statistics(self) -> Statistics:
        """Return counts."""
        states = [engine.state for engine in self._engines.values()]
        return Statistics(
            registered=len(states),
            away=states.count(State.AWAY),
            unresponsive=states.count(State.UNRESPONSIVE),
            observers=len(self.observers),
            ever_registered=self._ever,
            next_epoch_after=self._last_epoch,
        )

    # Events

    def hello(self, hello: HelloReceived, *, stream: int, now: float, unix_ms: int) -> Admission:
        """Register an engine, or take it back.

        Raises DeliveryError: PROTOCOL_ERROR and SUPERSEDED mean the end of the stream, FENCED and BAD_REQUEST a
        refusal of this hello.
        """
        self._check(hello, stream)
        superseded = self._enter(hello, stream, now)
        known = self._slot_or_kernel(hello)
        if known is not None:
            self._come_back(known, hello, stream, now)
            return Admission(known, superseded)
        hello = self._settle_claim(hello)
        engine_id = self._choose_id(hello)
        is_first = engine_id not in self._epochs
        engine = Registration(
            engine_id=engine_id,
            epoch=self._choose_epoch(engine_id, hello.epoch, unix_ms),
            host_id=hello.host_id,
            slot=hello.slot,
            incarnation=hello.incarnation,
            stream=stream,
            facts=hello.facts,
            properties=hello.properties or {},
            registered_ms=unix_ms,
            lease=Lease(self.lease, now),
            is_first=is_first,
        )
        self._add(engine)
        self._streams[stream].engines[engine_id] = engine
        self._ever += 1
        self.observers.tell(EngineEvent(EventKind.REGISTERED, engine))
        return Admission(engine, superseded)

    def stream_ended(self, stream: int, *, now: float) -> None:
        """Make the engines of `stream` away; their leases begin. One that brought no engine is ignored."""
        ended = self._streams.pop(stream, None)
        if ended is None:
            return
        if self._newest.get(ended.host_id) == stream:
            del self._newest[ended.host_id]
        for engine in ended.engines.values():
            engine.lease.stream_ended(now, _CONNECTION_LOST)
            self.observers.tell(EngineEvent(EventKind.AWAY, engine, _CONNECTION_LOST))

    def heartbeat(self, stream: int, statuses: Iterable[engine_pb2.EngineStatus], *, now: float) -> None:
        """Note how the engines of `stream` are. Statuses of other engines are ignored."""
        for status in statuses:
            engine = self._mine(stream, status.engine_id)
            if engine is not None:
                before = _look(engine)
                if engine.state is State.UNRESPONSIVE:
                    logger.info("heartbeats come again", extra=_logs.about(engine=engine.engine_id))
                engine.lease.heard(now)
                engine.status = status
                if status.draining and engine.draining_since is None:
                    engine.draining_since = now
                if _look(engine) != before:
                    self.observers.tell(EngineEvent(EventKind.STATE_CHANGED, engine))

    def kernel_changed(self, stream: int, engine_id: int, incarnation: str, pid: int, reason: str) -> None:
        """Note that an engine of `stream` has a new kernel; PROTOCOL_ERROR if it is not new."""
        engine = self._mine(stream, engine_id)
        if engine is not None:
            if incarnation in self._incarnations:
                raise DeliveryError("PROTOCOL_ERROR", cause=f"there is a kernel {incarnation} already")
            self._new_kernel(engine, incarnation, replace(engine.facts, pid=pid), reason)

    def properties_changed(
        self, stream: int, engine_id: int, properties: Mapping[str, value_pb2.Value]
    ) -> None:
        """Take over all properties of an engine of `stream`."""
        engine = self._mine(stream, engine_id)
        if engine is not None:
            engine.properties = properties
            self.observers.tell(EngineEvent(EventKind.PROPERTIES_CHANGED, engine))

    def goodbye(self, stream: int, engine_id: int, reason: str) -> None:
        """Unregister an engine of `stream` that leaves for good."""
        if self._mine(stream, engine_id) is not None:
            error = DeliveryError("ENGINE_STOPPED", engine_id=engine_id, cause=reason or "it said goodbye")
            self.unregister(engine_id, error)

    def unregister(self, engine_id: int, error: DeliveryError | None = None) -> None:
        """Remove an engine; an unknown id is logged. TypeError if the id is not an integer.

        `error` is what calls that still wait for it fail with, by default ENGINE_LOST.
        """
        if type(engine_id) is not int:
            raise TypeError(f"an engine id is an integer, not {type(engine_id).__name__}")
        engine = self._engines.get(engine_id)
        if engine is None:
            logger.warning("engine %d cannot be unregistered: there is none of that id", engine_id)
            return
        self._remove(
            engine, error or DeliveryError("ENGINE_LOST", engine_id=engine_id, cause="it was unregistered")
        )

    def tick(self, now: float) -> None:
        """End leases that have run out, and note who has been silent for too long. At least once a second.

        If it was not called for longer, this process was stopped, or its machine: that time does not count.
        """
        asleep, self._ticked = now - (now if self._ticked is None else self._ticked), now
        for engine in self._engines.values() if asleep > _ASLEEP else ():
            engine.lease.excuse(asleep)
        for engine in list(self._engines.values()):
            match engine.lease.tick(now):
                case Input.EXPIRED:
                    cause = engine.lease.reason
                    self._remove(engine, DeliveryError("ENGINE_LOST", engine_id=engine.engine_id, cause=cause))
                case Input.SILENT:
                    logger.warning("%s", engine.lease.reason, extra=_logs.about(engine=engine.engine_id))
                    self.observers.tell(EngineEvent(EventKind.STATE_CHANGED, engine))
                case _:
                    pass

    def once_n_registered(self, n: int, callback: Callable[[], object]) -> None:
        """Call `callback` once, as soon as `n` engines are registered; at once if they are there already."""
        self.observers.once_registered(self.__len__, n, callback)

    # How it is done

    def _add(self, engine: Registration) -> None:
        self._engines[engine.engine_id] = engine
        self._slots[engine.host_id, engine.slot] = engine
        self._incarnations[engine.incarnation] = engine

    def _remove(self, engine: Registration, cause: DeliveryError, *, fenced: bool = False) -> None:
        engine.lease.left()
        engine_id = engine.engine_id
        del self._engines[engine_id]
        if engine.stream in self._streams:
            self._streams[engine.stream].engines.pop(engine_id, None)
        del self._slots[engine.host_id, engine.slot]
        del self._incarnations[engine.incarnation]
        if self.save_ids:
            self._retired.add(engine_id)
        else:
            self._lowest = min(self._lowest, engine_id)
        reason = cause.metadata.get("cause", cause.text)
        self.observers.tell(EngineEvent(EventKind.GONE, engine, reason, cause, fenced))

    def _mine(self, stream: int, engine_id: int) -> Registration | None:
        """Return the engine if it is connected by `stream`; messages of former holders are late, not wrong."""
        known = self._streams.get(stream)
        engine = known.engines.get(engine_id) if known else None
        if engine is None:
            logger.debug("stream %d speaks of engine %d, which is not its own", stream, engine_id)
        return engine

    def _check(self, hello: HelloReceived, stream: int) -> None:
        """Refuse what no host says; nothing has changed yet."""
        known = self._streams.get(stream)
        if known is not None and known.host_id != hello.host_id:
            raise DeliveryError("PROTOCOL_ERROR", cause="one stream carries the engines of one host_id only")
        if self._newest.get(hello.host_id, -1) > stream:
            raise DeliveryError("SUPERSEDED")
        engine = self._slots.get((hello.host_id, hello.slot))
        if engine is not None and engine.stream == stream and engine.state is not State.AWAY:
            cause = f"a second hello for slot {hello.slot}, which is welcome already"
            raise DeliveryError("PROTOCOL_ERROR", cause=cause)
        if hello.engine_id is not None and not 0 <= hello.engine_id <= _MAX_ENGINE_ID:
            raise DeliveryError("BAD_REQUEST", field="engine_id", cause=f"{hello.engine_id} is out of range")
        if hello.epoch is not None and (hello.engine_id is None or not 0 < hello.epoch < _MAX_EPOCH):
            cause = "an epoch is one of an earlier welcome, and comes with its engine_id"
            raise DeliveryError("BAD_REQUEST", field="epoch", cause=cause)
        holder = self._incarnations.get(hello.incarnation)
        if holder is not None and holder is not engine and (engine or holder.state is not State.AWAY):
            raise DeliveryError("FENCED", engine_id=holder.engine_id, epoch=holder.epoch)

    def _enter(self, hello: HelloReceived, stream: int, now: float) -> int | None:
        """Note whose stream it is; return an older stream of the host that it supersedes."""
        older = self._newest.get(hello.host_id)
        if older == stream:
            return None
        if older is not None:
            self.stream_ended(older, now=now)
        self._newest[hello.host_id] = stream
        self._streams[stream] = _Stream(hello.host_id)
        return older

    def _slot_or_kernel(self, hello: HelloReceived) -> Registration | None:
        """Return the engine that says hello again: the one of its slot, else the one that has its kernel."""
        engine = self._slots.get((hello.host_id, hello.slot))
        return engine if engine is not None else self._incarnations.get(hello.incarnation)

    def _come_back(self, engine: Registration, hello: HelloReceived, stream: int, now: float) -> None:
        del self._slots[engine.host_id, engine.slot]
        engine.host_id, engine.slot, engine.stream = hello.host_id, hello.slot, stream
        self._slots[engine.host_id, engine.slot] = engine
        self._streams[stream].engines[engine.engine_id] = engine
        engine.lease.came_back(now)
        engine.properties = hello.properties or {}
        if engine.incarnation == hello.incarnation:
            engine.facts = hello.facts
            self.observers.tell(EngineEvent(EventKind.BACK, engine))
        else:
            self.observers.tell(EngineEvent(EventKind.BACK, engine))
            self._new_kernel(engine, hello.incarnation, hello.facts, "it died while the engine was away")

    def _new_kernel(self, engine: Registration, incarnation: str, facts: Facts, reason: str) -> None:
        del self._incarnations[engine.incarnation]
        engine.incarnation, engine.facts = incarnation, facts
        self._incarnations[incarnation] = engine
        self.observers.tell(EngineEvent(EventKind.KERNEL_CHANGED, engine, reason))

    def _settle_claim(self, hello: HelloReceived) -> HelloReceived:
        """Decide between a returning engine and the holder of its id: the higher epoch wins.

        But a new engine that was faster to reach a restarted controller must not end one that has a namespace:
        what is returned then claims nothing.
        """
        holder = None if hello.epoch is None else self._engines.get(hello.engine_id or 0)
        if hello.epoch is None or holder is None:
            return hello
        if hello.epoch < self._first_epoch <= holder.epoch:
            logger.warning("engine %d returns, but a new one has its id: it gets another", holder.engine_id)
            return replace(hello, engine_id=None, epoch=None)
        if hello.epoch <= holder.epoch:
            raise DeliveryError("FENCED", engine_id=holder.engine_id, epoch=holder.epoch)
        cause = "an engine with a higher epoch took its id"
        self._remove(holder, DeliveryError("ENGINE_LOST", engine_id=holder.engine_id, cause=cause), fenced=True)
        return hello

    def _choose_id(self, hello: HelloReceived) -> int:
        wanted = hello.engine_id
        # A return may have its own id again even if ids are retired.
        if wanted is not None and wanted not in self._engines:
            if hello.epoch is not None:
                self._retired.discard(wanted)
            if wanted not in self._retired:
                return wanted
        free = next(
            engine_id
            for engine_id in itertools.count(self._lowest)
            if engine_id not in self._engines and engine_id not in self._retired
        )
        self._lowest = free
        return free

    def _choose_epoch(self, engine_id: int, claimed: int | None, unix_ms: int) -> int:
        if claimed is not None and claimed > self._epochs.get(engine_id, 0):
            # Registered by an earlier controller: a return keeps its epoch.
            epoch = claimed
        else:
            epoch = max(self._last_epoch + 1, unix_ms)
        self._last_epoch = max(self._last_epoch, epoch)
        self._epochs[engine_id] = epoch
        return epoch


def _look(engine: Registration) -> tuple[State, bool, bool]:
    """Return what of an engine its shown state goes by."""
    is_busy = engine.status is not None and bool(engine.status.operation_id)
    return engine.state, is_busy, engine.draining_since is not None
