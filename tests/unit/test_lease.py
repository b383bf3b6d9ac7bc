"""The lease of one registration: every state, every input, and time."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller_service.lease import RETURN, SILENCE, TRANSITIONS, Input, Lease, State

if TYPE_CHECKING:
    from collections.abc import Callable

DURATION = 60.0

ACTIONS: dict[Input, Callable[[Lease, float], object]] = {
    Input.HEARD: lambda lease, now: lease.heard(now),
    Input.SILENT: lambda lease, now: lease.tick(now + SILENCE),
    Input.STREAM_ENDED: lambda lease, now: lease.stream_ended(now, "its connection was lost"),
    Input.CAME_BACK: lambda lease, now: lease.came_back(now),
    Input.EXPIRED: lambda lease, now: lease.tick(now + DURATION),
    Input.LEFT: lambda lease, _now: lease.left(),
}
PASSIVE = {Input.SILENT, Input.EXPIRED}
"""What time does: where it does not apply, nothing happens."""


def lease_in(state: State) -> Lease:
    """Return a lease that came into `state` at second 0."""
    lease = Lease(DURATION, 0.0)
    match state:
        case State.UNRESPONSIVE:
            lease.tick(SILENCE)
        case State.AWAY:
            lease.stream_ended(0.0, "its connection was lost")
        case State.GONE:
            lease.left()
        case _:
            pass
    return lease


@pytest.mark.parametrize(("state", "what"), list(itertools.product(State, Input)))
def test_the_table_is_all_that_happens(state: State, what: Input) -> None:
    """Each input moves each state as the table says; what is not in it is a defect, and is said to be one."""
    lease = lease_in(state)
    assert lease.state is state
    expected = TRANSITIONS.get((state, what))
    if expected is None and (what in PASSIVE or (state, what) == (State.GONE, Input.LEFT)):
        ACTIONS[what](lease, 0.0)
        assert lease.state in {state, TRANSITIONS.get((state, Input.SILENT), state)}
    elif expected is None:
        with pytest.raises(AssertionError, match="but"):
            ACTIONS[what](lease, 0.0)
    else:
        ACTIONS[what](lease, 0.0)
        assert lease.state is expected


def test_a_lease_runs_only_while_away() -> None:
    """It ends `duration` after the stream did, and a return makes it whole again."""
    lease = Lease(DURATION, 0.0)
    assert lease.ends == math.inf
    lease.stream_ended(10.0, "its connection was lost")
    assert lease.tick(69.9) is None
    lease.came_back(69.9)
    lease.stream_ended(100.0, "its connection was lost")
    assert lease.tick(159.9) is None
    assert lease.tick(160.0) is Input.EXPIRED
    assert lease.reason == "it did not come back within its lease of 60 s"


def test_silence_is_counted_from_the_last_heartbeat() -> None:
    """A heartbeat heals silence, and the reason goes with it."""
    lease = Lease(DURATION, 0.0)
    lease.heard(5.0)
    assert lease.tick(5.0 + SILENCE - 0.1) is None
    assert lease.tick(5.0 + SILENCE) is Input.SILENT
    assert lease.tick(6.0 + SILENCE) is None, "it is said once"
    assert lease.reason == "no heartbeat for 30 s"
    lease.heard(40.0)
    assert (lease.state, lease.since, lease.reason) == (State.CONNECTED, 40.0, "")


def test_an_engine_of_an_earlier_controller_has_a_whole_lease() -> None:
    """Whatever time passed while there was no controller."""
    lease = Lease.kept(DURATION, 1_000.0)
    assert (lease.state, lease.ends, lease.is_connected) == (State.AWAY, 1_060.0, False)
    assert "started again" in lease.reason


def test_a_restart_does_not_renew_a_lease() -> None:
    """What had passed of it has passed, but a host gets the time that it takes to come back."""
    lease = lease_in(State.AWAY)
    assert lease.used(25.0) == 25.0
    kept = Lease.kept(DURATION, 1_000.0, used=25.0)
    assert (kept.ends, kept.used(1_001.0)) == (1_035.0, 26.0)
    assert Lease.kept(DURATION, 1_000.0, used=59.0).ends == 1_000.0 + RETURN
    assert Lease.kept(0.5, 1_000.0, used=0.4).ends == 1_000.5, "never more than a whole one"
    assert lease_in(State.CONNECTED).used(25.0) == 0.0
    endless = Lease.kept(math.inf, 0.0)
    assert (endless.used(1e9), endless.tick(1e9)) == (0.0, None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(Input)), st.floats(0, 40)), max_size=30))
def test_nobody_is_gone_who_was_never_away_or_left(steps: list[tuple[Input, float]]) -> None:
    """In any order of events: `ends` is finite exactly while away, gone is for good."""
    lease, now = Lease(DURATION, 0.0), 0.0
    for what, seconds in steps:
        now += seconds
        before = lease.state
        if what in PASSIVE:
            lease.tick(now)
        elif (before, what) in TRANSITIONS:
            ACTIONS[what](lease, now)
        assert (lease.ends < math.inf) is (lease.state is State.AWAY) or lease.state is State.GONE
        assert lease.since <= now
        assert before is not State.GONE or lease.state is State.GONE
        if lease.state is State.GONE and before is not State.GONE:
            assert what is Input.LEFT or before is State.AWAY
