"""The registry's rules: ids, leases, epochs, fencing, observers."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller_service.events import EngineEvent, EventKind, Facts, HelloReceived
from controller_service.journal_records import EngineRow, kept
from controller_service.lease import SILENCE, State
from controller_service.registry import Registry
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2

_kernels = itertools.count()


class Floor:
    """A registry, and short words for what happens to it. Time stands until it is set."""

    def __init__(self, *, lease: float = 60.0, save_ids: bool = False) -> None:
        self.events: list[EngineEvent] = []
        self.rows: dict[int, EngineRow] = {}
        self.now = 0.0
        self.unix_ms = 1_000
        self.registry = self.start(lease, save_ids)

    def start(self, lease: float, save_ids: bool) -> Registry:
        """Return the registry of a controller that knows what its journal kept."""
        registry = Registry(lease=lease, save_ids=save_ids)
        registry.restore(kept(self.rows.values()), now=self.now)
        registry.observers.subscribe(self.events.append)
        registry.observers.subscribe(self.keep)
        return registry

    def keep(self, event: EngineEvent) -> None:
        """Do as a journal."""
        engine = event.engine
        if event.kind is EventKind.GONE:
            self.rows[engine.engine_id] = EngineRow.gone(engine, retired=self.registry.save_ids)
        else:
            self.rows[engine.engine_id] = EngineRow.of(engine, self.now)

    def restart(self) -> None:
        """Let the controller die, and start another a second later."""
        self.unix_ms += 1_000
        self.registry = self.start(self.registry.lease, self.registry.save_ids)
        self.registry.begin(self.unix_ms)

    def hello(
        self,
        host: str,
        stream: int,
        *,
        slot: int = 0,
        kernel: str = "",
        engine_id: int | None = None,
        epoch: int | None = None,
    ) -> tuple[int, int]:
        """Return id and epoch."""
        hello = HelloReceived(host, slot, kernel or f"k{next(_kernels)}", engine_id, epoch, Facts(pid=7))
        admission = self.registry.hello(hello, stream=stream, now=self.now, unix_ms=self.unix_ms)
        return admission.engine.engine_id, admission.engine.epoch

    def kinds(self) -> list[str]:
        """Return what happened since the last look."""
        kinds = [event.kind.name for event in self.events]
        self.events.clear()
        return kinds

    def state(self, engine_id: int) -> State | None:
        engine = self.registry.find(engine_id)
        return engine.state if engine else None


def reason(error: pytest.ExceptionInfo[DeliveryError]) -> str:
    return error.value.reason


def test_ids_are_lowest_first() -> None:
    """A new engine gets the lowest free id, and an id that was left is given again."""
    floor = Floor()
    assert [floor.hello(f"h{n}", n)[0] for n in range(1, 5)] == [0, 1, 2, 3]
    floor.registry.unregister(2)
    floor.registry.unregister(0)
    assert [floor.hello(f"i{n}", 10 + n)[0] for n in range(3)] == [0, 2, 4]


def test_requested_id_is_granted_if_free() -> None:
    """The wish for an id is granted if it is free; otherwise the lowest free one is. No limit of 511."""
    floor = Floor()
    assert floor.hello("a", 1, engine_id=5000)[0] == 5000
    assert floor.hello("b", 2, engine_id=5000)[0] == 0


def test_save_ids_retires_ids() -> None:
    """With save_ids no other engine gets the id of one that left, not even on request."""
    floor = Floor(save_ids=True)
    _, epoch = floor.hello("a", 1, kernel="ka")
    floor.registry.unregister(0)
    assert floor.hello("b", 2)[0] == 1
    assert floor.hello("c", 3, engine_id=0)[0] == 2
    assert floor.hello("a", 4, kernel="ka", engine_id=0, epoch=epoch)[0] == 0, "but its own holder may return"


@pytest.mark.parametrize("bad", ["0", 1.0, None, True])
def test_unregister_wants_an_integer(bad: object) -> None:
    """A non-int id is an error; an unknown one is logged and does no harm."""
    floor = Floor()
    floor.registry.unregister(17)
    with pytest.raises(TypeError):
        floor.registry.unregister(bad)  # type: ignore[arg-type]


def test_lost_stream_makes_away_and_return_keeps_all() -> None:
    """The same incarnation back within the lease keeps id and epoch."""
    floor = Floor(lease=60)
    engine_id, epoch = floor.hello("a", 1, kernel="k")
    floor.registry.stream_ended(1, now=10)
    assert floor.state(engine_id) is State.AWAY
    floor.registry.tick(69.9)
    assert floor.hello("a", 2, kernel="k", engine_id=engine_id, epoch=epoch) == (engine_id, epoch)
    assert floor.kinds() == ["REGISTERED", "AWAY", "BACK"]


def test_lost_lease_unregisters() -> None:
    """An engine that does not come back within the lease is unregistered, and its calls are lost."""
    floor = Floor(lease=60)
    floor.hello("a", 1)
    floor.registry.stream_ended(1, now=10)
    floor.registry.tick(70)
    gone = floor.events[-1]
    assert (gone.kind, len(floor.registry)) == (EventKind.GONE, 0)
    assert gone.cause is not None
    assert gone.cause.reason == "ENGINE_LOST"


def test_infinite_lease_never_ends() -> None:
    """A lease of infinity keeps an engine for ever."""
    floor = Floor(lease=math.inf)
    floor.hello("a", 1)
    floor.registry.stream_ended(1, now=10)
    floor.registry.tick(1e12)
    assert floor.state(0) is State.AWAY


def test_hello_without_epoch_of_a_known_host_is_a_return() -> None:
    """A host that never saw its welcome gets the same id again."""
    floor = Floor()
    first = floor.hello("a", 1, kernel="k")
    floor.registry.stream_ended(1, now=1)
    assert floor.hello("a", 2, kernel="k") == first


def test_return_with_a_new_kernel() -> None:
    """A kernel that died while its engine was away: same id, and watchers learn of the new kernel."""
    floor = Floor()
    engine_id, epoch = floor.hello("a", 1)
    floor.registry.stream_ended(1, now=1)
    assert floor.hello("a", 2, kernel="new", engine_id=engine_id, epoch=epoch) == (engine_id, epoch)
    assert floor.kinds() == ["REGISTERED", "AWAY", "BACK", "KERNEL_CHANGED"]


def test_live_id_is_not_given_away() -> None:
    """Another incarnation that wishes for a live id gets the lowest free one; one that claims it is FENCED."""
    floor = Floor()
    _, epoch = floor.hello("a", 1, engine_id=0)
    assert floor.hello("b", 2, engine_id=0)[0] == 1
    with pytest.raises(DeliveryError) as error:
        floor.hello("c", 3, engine_id=0, epoch=epoch)
    assert reason(error) == "FENCED"
    with pytest.raises(DeliveryError) as error:
        floor.hello("d", 4, engine_id=0, epoch=epoch - 1)
    assert reason(error) == "FENCED"


def test_holder_of_an_id_that_was_given_away_is_fenced() -> None:
    """Lease lost, id given to another, and then the first comes back: it is FENCED."""
    floor = Floor(lease=60)
    engine_id, epoch = floor.hello("a", 1, kernel="k")
    floor.registry.stream_ended(1, now=0)
    floor.registry.tick(60)
    assert floor.hello("b", 2)[0] == engine_id
    with pytest.raises(DeliveryError) as error:
        floor.hello("a", 3, kernel="k", engine_id=engine_id, epoch=epoch)
    assert reason(error) == "FENCED"


def test_a_return_to_a_restarted_controller_is_never_stopped_by_a_new_engine() -> None:
    """A new engine was faster and took the id: the one that returns lives on under another, its kernel kept."""
    floor = Floor()
    floor.registry.begin(9_000)
    assert floor.hello("new", 1)[0] == 0
    assert floor.hello("a", 2, kernel="k", engine_id=0, epoch=5_000) == (1, 9_002)
    assert floor.hello("b", 3, engine_id=2, epoch=5_001) == (2, 5_001), "one whose id is free has it back"
    with pytest.raises(DeliveryError) as error:
        floor.hello("c", 4, engine_id=0, epoch=9_000)
    assert reason(error) == "FENCED", "an epoch of this very controller"


def test_after_a_restart_the_higher_epoch_wins() -> None:
    """A controller that knows nothing takes returns at their word, and a later holder over an earlier one."""
    floor = Floor()
    assert floor.hello("old", 1, engine_id=3, epoch=5_000) == (3, 5_000)
    assert floor.hello("true", 2, engine_id=3, epoch=9_000) == (3, 9_000)
    assert floor.kinds() == ["REGISTERED", "GONE", "REGISTERED"]
    assert floor.hello("next", 3) == (0, 9_001), "epochs go on above what returned"


def test_epochs_rise_even_if_the_clock_does_not() -> None:
    """Each registration has an epoch above all before; milliseconds since 1970 if those are."""
    floor = Floor()
    assert [floor.hello(f"h{n}", n)[1] for n in (1, 2)] == [1_000, 1_001]
    floor.unix_ms = 500
    assert floor.hello("x", 3)[1] == 1_002
    floor.unix_ms = 9_000
    assert floor.hello("y", 4)[1] == 9_000


def test_newer_stream_supersedes() -> None:
    """A stream of the same host takes over; a hello on the older one ends that."""
    floor = Floor()
    floor.hello("a", 1, slot=0, kernel="k0")
    floor.hello("a", 1, slot=1, kernel="k1")
    admission = floor.registry.hello(HelloReceived("a", 0, "k0"), stream=2, now=5, unix_ms=1)
    assert admission.superseded == 1
    assert [floor.state(0), floor.state(1)] == [State.CONNECTED, State.AWAY]
    with pytest.raises(DeliveryError) as error:
        floor.hello("a", 1, slot=1, kernel="k1")
    assert reason(error) == "SUPERSEDED"
    floor.hello("a", 2, slot=1, kernel="k1")
    floor.registry.stream_ended(1, now=6)
    assert [floor.state(0), floor.state(1)] == [State.CONNECTED] * 2, "the end of the old stream is no news"


@pytest.mark.parametrize(("host", "slot"), [("a", 0), ("b", 1)])
def test_second_hello_and_second_host_break_the_contract(host: str, slot: int) -> None:
    """A welcome slot says hello once a stream, and one stream has one host."""
    floor = Floor()
    floor.hello("a", 1)
    with pytest.raises(DeliveryError) as error:
        floor.hello(host, 1, slot=slot)
    assert reason(error) == "PROTOCOL_ERROR"


@pytest.mark.parametrize(
    ("engine_id", "epoch"), [(-1, None), (1 << 31, None), (None, 5), (0, 0), (0, (1 << 64) - 1)]
)
def test_impossible_wishes_are_refused(engine_id: int | None, epoch: int | None) -> None:
    """Ids and epochs that no welcome ever held are BAD_REQUEST, and nothing is registered."""
    floor = Floor()
    with pytest.raises(DeliveryError) as error:
        floor.hello("a", 1, engine_id=engine_id, epoch=epoch)
    assert (reason(error), len(floor.registry)) == ("BAD_REQUEST", 0)


def test_a_change_of_state_is_told_once() -> None:
    """Whoever watches hears that an engine is busy, idle, draining or silent when it becomes so, not again."""
    floor = Floor()
    floor.hello("a", 1)
    told: list[EventKind] = []
    floor.registry.observers.subscribe(lambda event: told.append(event.kind))
    idle = engine_pb2.EngineStatus(engine_id=0)
    busy = engine_pb2.EngineStatus(engine_id=0, operation_id="x")
    draining = engine_pb2.EngineStatus(engine_id=0, draining=True)
    for number, (status, changes) in enumerate(((idle, 0), (busy, 1), (busy, 0), (idle, 1), (draining, 1))):
        told.clear()
        floor.registry.heartbeat(1, [status], now=number)
        assert told == [EventKind.STATE_CHANGED] * changes, number
    told.clear()
    for number in range(4, 50):
        floor.registry.tick(number)
    assert told == [EventKind.STATE_CHANGED]


def test_silence_is_reported_and_heals() -> None:
    """No heartbeat for 30 seconds: unresponsive; the next one heals it. Never unregistered for that."""
    floor = Floor()
    floor.hello("a", 1)
    floor.registry.heartbeat(1, [engine_pb2.EngineStatus(engine_id=0)], now=5)
    floor.registry.tick(5 + SILENCE - 0.1)
    assert floor.state(0) is State.CONNECTED
    floor.registry.tick(5 + SILENCE)
    assert floor.state(0) is State.UNRESPONSIVE
    assert floor.registry.statistics().unresponsive == 1
    floor.registry.heartbeat(1, [engine_pb2.EngineStatus(engine_id=0)], now=50)
    assert floor.state(0) is State.CONNECTED


def test_messages_about_engines_of_others_are_ignored() -> None:
    """A stream speaks for its own engines only."""
    floor = Floor()
    floor.hello("a", 1)
    floor.hello("b", 2)
    floor.registry.goodbye(2, 0, "")
    floor.registry.kernel_changed(2, 0, "x", 1, "")
    floor.registry.properties_changed(2, 0, {})
    floor.registry.heartbeat(2, [engine_pb2.EngineStatus(engine_id=0, operation_id="x")], now=1)
    assert floor.kinds() == ["REGISTERED", "REGISTERED"]
    assert next(iter(floor.registry)).status is None


def test_goodbye_unregisters_at_once() -> None:
    """An engine that leaves frees its id; calls that waited for it learn that it stopped."""
    floor = Floor()
    floor.hello("a", 1)
    floor.registry.goodbye(1, 0, "killed")
    gone = floor.events[-1]
    assert gone.kind is EventKind.GONE
    assert gone.cause is not None
    assert (gone.cause.reason, gone.reason) == ("ENGINE_STOPPED", "killed")
    assert floor.hello("b", 2)[0] == 0


def test_observers() -> None:
    """Observers of registration and of its end, with or without the id, until removed."""
    floor = Floor()
    seen: list[object] = []
    floor.registry.observers.on_register(lambda: seen.append("in"))
    floor.registry.observers.on_register(seen.append, include_id=True)

    def left(engine_id: int) -> None:
        seen.append(f"out {engine_id}")

    floor.registry.observers.on_unregister(left, include_id=True)
    floor.hello("a", 1)
    floor.registry.unregister(0)
    floor.registry.observers.remove(left)
    floor.hello("a", 2)
    floor.registry.unregister(0)
    assert seen == ["in", 0, "out 0", "in", 0]


def test_observer_that_raises_is_dropped_and_harms_nobody() -> None:
    """The others hear of the event, registration goes on, and the bad one hears nothing more."""
    floor = Floor()
    calls: list[str] = []

    def bad() -> None:
        calls.append("bad")
        raise RuntimeError("observer")

    floor.registry.observers.on_register(bad)
    floor.registry.observers.on_register(lambda: calls.append("good"))
    floor.hello("a", 1)
    floor.hello("b", 2)
    assert calls == ["bad", "good", "good"]


def test_once_n_registered() -> None:
    """Called once when the n-th engine comes; at once if they are there already; two of them do not mix."""
    floor = Floor()
    seen: list[int] = []
    floor.registry.once_n_registered(2, lambda: seen.append(2))
    floor.registry.once_n_registered(3, lambda: seen.append(3))
    floor.hello("a", 1)
    assert seen == []
    floor.hello("b", 2)
    floor.hello("c", 3)
    floor.hello("d", 4)
    assert seen == [2, 3]
    floor.registry.once_n_registered(4, lambda: seen.append(4))
    assert seen == [2, 3, 4]


def test_engines_of_an_earlier_controller_are_away_and_come_back() -> None:
    """After a restart they keep id, epoch and kernel, have a whole lease, and nobody else gets their ids."""
    floor = Floor(lease=60)
    first = floor.hello("a", 1, kernel="k")
    floor.now = 1_000
    floor.restart()
    assert floor.state(0) is State.AWAY
    assert floor.hello("b", 1)[0] == 1, "the id of one that may come back is not free"
    floor.registry.tick(1_059)
    assert floor.hello("a", 2, kernel="k", engine_id=0, epoch=first[1]) == first
    assert [event.kind for event in floor.events][-1] is EventKind.BACK


def test_an_engine_that_does_not_come_back_to_a_restarted_controller_is_lost() -> None:
    """Its lease runs from the start of the controller."""
    floor = Floor(lease=60)
    floor.hello("a", 1)
    floor.now = 1_000
    floor.restart()
    floor.registry.tick(1_060)
    gone = floor.events[-1]
    assert (gone.kind, len(floor.registry)) == (EventKind.GONE, 0)
    assert gone.reason == "it did not come back within its lease of 60 s"


def test_a_kernel_that_died_while_there_was_no_controller() -> None:
    """The engine comes back with another one: same id and epoch, and watchers learn of it."""
    floor = Floor()
    first = floor.hello("a", 1, kernel="k1")
    floor.restart()
    assert floor.hello("a", 1, kernel="k2", engine_id=0, epoch=first[1]) == first
    assert floor.kinds()[-2:] == ["BACK", "KERNEL_CHANGED"]


def test_an_old_epoch_is_fenced_by_a_restarted_controller_too() -> None:
    """The holder that the journal names stays; who held the id before it is refused."""
    floor = Floor(lease=60)
    _, old = floor.hello("a", 1, kernel="k")
    floor.registry.stream_ended(1, now=0)
    floor.registry.tick(60)
    _, new = floor.hello("b", 2)
    floor.restart()
    with pytest.raises(DeliveryError) as error:
        floor.hello("a", 1, kernel="k", engine_id=0, epoch=old)
    assert reason(error) == "FENCED"
    assert new > old


def test_an_epoch_is_not_used_twice_across_a_restart() -> None:
    """An engine whose registration had ended gets a new one, as without the restart."""
    floor = Floor(lease=60)
    engine_id, old = floor.hello("a", 1, kernel="k")
    floor.registry.stream_ended(1, now=0)
    floor.registry.tick(60)
    floor.restart()
    again = floor.hello("a", 1, kernel="k", engine_id=engine_id, epoch=old)
    assert again[0] == engine_id
    assert again[1] > old


def test_retired_ids_stay_retired_across_a_restart() -> None:
    """save_ids: whoever left before the restart has its id for good."""
    floor = Floor(save_ids=True)
    _, epoch = floor.hello("a", 1, kernel="ka")
    floor.registry.unregister(0)
    floor.restart()
    assert floor.hello("b", 1)[0] == 1
    assert floor.hello("a", 2, kernel="ka", engine_id=0, epoch=epoch)[0] == 0


def test_time_in_which_the_controller_did_not_run_ends_no_lease() -> None:
    """A stopped process, a closed laptop: nobody could come back, or be heard, meanwhile."""
    floor = Floor(lease=60)
    floor.hello("a", 1)
    floor.hello("b", 2)
    floor.registry.stream_ended(1, now=10)
    floor.registry.tick(20)
    floor.registry.tick(1_020)
    assert [floor.state(0), floor.state(1)] == [State.AWAY, State.CONNECTED]
    for now in range(1_021, 1_070):
        floor.registry.tick(now)
    assert floor.state(0) is State.AWAY
    floor.registry.tick(1_070)
    assert floor.state(0) is None, "it had the 50 s that were left"


def test_draining_is_noted_once() -> None:
    """From the first heartbeat that says it."""
    floor = Floor()
    floor.hello("a", 1)
    for now, is_draining in ((1.0, False), (2.0, True), (3.0, True)):
        status = engine_pb2.EngineStatus(engine_id=0, draining=is_draining)
        floor.registry.heartbeat(1, [status], now=now)
    engine = floor.registry.find(0)
    assert engine is not None
    assert engine.draining_since == 2.0


class RegistryMachine(RuleBasedStateMachine):
    """Hosts come, go, return and lie, in any order; the registry stays consistent."""

    def __init__(self) -> None:
        super().__init__()
        self.floor = Floor(lease=10)
        self.streams = itertools.count(1)
        self.open: dict[str, int] = {}
        self.welcomes: dict[tuple[str, int], tuple[int, int]] = {}
        self.mirror: dict[int, str] = {}
        self.last_epoch = 0
        self.floor.registry.observers.subscribe(self.watch)

    def watch(self, event: EngineEvent) -> None:
        """Keep what a watcher would know from events alone."""
        engine_id = event.engine.engine_id
        if event.kind is EventKind.GONE:
            del self.mirror[engine_id]
        elif event.kind is EventKind.REGISTERED:
            assert engine_id not in self.mirror
            self.mirror[engine_id] = event.engine.incarnation
        else:
            assert engine_id in self.mirror
            self.mirror[engine_id] = event.engine.incarnation

    hosts = st.sampled_from("abc")
    slots = st.integers(0, 2)

    @rule(host=hosts)
    def stream_opens(self, host: str) -> None:
        self.open[host] = next(self.streams)

    @rule(host=hosts, slot=slots, wish=st.none() | st.integers(0, 4), claim=st.booleans(), same=st.booleans())
    def says_hello(self, host: str, slot: int, wish: int | None, claim: bool, same: bool) -> None:
        stream = self.open.setdefault(host, next(self.streams))
        epoch = None
        if claim and (host, slot) in self.welcomes:
            wish, epoch = self.welcomes[host, slot]
        before = set(self.floor.registry.ids())
        kernel = f"{host}{slot}" if same else ""
        refused_as = ""
        try:
            welcome = self.floor.hello(host, stream, slot=slot, kernel=kernel, engine_id=wish, epoch=epoch)
        except DeliveryError as error:
            refused_as = error.reason
        if refused_as:
            assert refused_as in {"FENCED", "PROTOCOL_ERROR", "SUPERSEDED"}
            return
        if welcome[0] not in before:
            free = next(n for n in itertools.count() if n not in before)
            assert welcome[0] in {wish, free}
            assert welcome[1] > self.last_epoch
        self.last_epoch = max(self.last_epoch, welcome[1])
        self.welcomes[host, slot] = welcome

    @rule(host=hosts)
    def stream_ends(self, host: str) -> None:
        self.floor.registry.stream_ended(self.open.pop(host, 0), now=self.floor.now)

    @rule(host=hosts, engine_id=st.integers(0, 6))
    def says_goodbye(self, host: str, engine_id: int) -> None:
        self.floor.registry.goodbye(self.open.get(host, 0), engine_id, "bye")

    @rule(host=hosts, engine_id=st.integers(0, 6))
    def changes_kernel(self, host: str, engine_id: int) -> None:
        self.floor.registry.kernel_changed(
            self.open.get(host, 0), engine_id, f"k{next(_kernels)}", 1, "SIGSEGV"
        )

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        self.floor.now += seconds
        self.floor.registry.tick(self.floor.now)

    @rule()
    def controller_restarts(self) -> None:
        self.floor.restart()
        self.floor.registry.observers.subscribe(self.watch)
        self.open.clear()

    @precondition(lambda self: self.mirror)
    @rule(data=st.data())
    def is_unregistered(self, data: st.DataObject) -> None:
        self.floor.registry.unregister(data.draw(st.sampled_from(sorted(self.mirror))))

    @invariant()
    def events_tell_all(self) -> None:
        assert self.mirror == {engine.engine_id: engine.incarnation for engine in self.floor.registry}

    @invariant()
    def nobody_shares(self) -> None:
        engines = list(self.floor.registry)
        for identity in ("engine_id", "epoch", "incarnation"):
            assert len({getattr(engine, identity) for engine in engines}) == len(engines)
        assert len({(engine.host_id, engine.slot) for engine in engines}) == len(engines)

    @invariant()
    def connected_engines_have_their_stream(self) -> None:
        for engine in self.floor.registry:
            mine = engine in self.floor.registry.on_stream(engine.stream)
            assert mine is (engine.state is not State.AWAY)
            if engine.state is State.AWAY:
                assert self.floor.now < engine.lease.ends

    @invariant()
    def statistics_add_up(self) -> None:
        statistics = self.floor.registry.statistics()
        away = sum(engine.state is State.AWAY for engine in self.floor.registry)
        assert (statistics.registered, statistics.away) == (len(self.mirror), away)


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
