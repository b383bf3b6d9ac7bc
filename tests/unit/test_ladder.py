"""Stopping an operation: interrupt, grace, interrupt, grace, kill; and each step as the call allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.ladder import Action, Ladder, State

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERRUPT, KILL = Action.INTERRUPT, Action.KILL


def test_the_whole_ladder() -> None:
    """Two interrupts and a kill, each a grace after the one before; nothing after that."""
    ladder = Ladder(5.0, interrupt_only=False)
    assert ladder.begin(100.0) == [INTERRUPT]
    assert (ladder.state, ladder.next_at) == (State.INTERRUPTED, 105.0)
    assert ladder.tick(104.9) == []
    assert ladder.tick(105.0) == [INTERRUPT]
    assert (ladder.state, ladder.next_at) == (State.WARNED, 110.0)
    assert ladder.tick(110.0) == [KILL]
    assert (ladder.state, ladder.next_at) == (State.KILLED, None)
    assert ladder.tick(1000.0) == []
    assert ladder.sharpen(1000.0, 0.0, interrupt_only=False) == []


def test_interrupts_only() -> None:
    """Without leave to kill it ends after two interrupts; asked again it interrupts again."""
    ladder = Ladder(5.0, interrupt_only=True)
    assert ladder.begin(0.0) == [INTERRUPT]
    assert ladder.tick(5.0) == [INTERRUPT]
    assert ladder.tick(10.0) == []
    assert ladder.next_at is None
    assert ladder.sharpen(20.0, 5.0, interrupt_only=True) == [INTERRUPT]
    assert ladder.tick(25.0) == []
    assert ladder.next_at is None
    assert ladder.sharpen(30.0, 1.0, interrupt_only=False) == [INTERRUPT]
    assert ladder.tick(31.0) == [KILL]


def test_no_grace() -> None:
    """A grace of zero kills at once; without leave to kill it interrupts."""
    assert Ladder(0.0, interrupt_only=False).begin(7.0) == [INTERRUPT, INTERRUPT, KILL]
    assert Ladder(0.0, interrupt_only=True).begin(7.0) == [INTERRUPT, INTERRUPT]


def test_each_step_has_its_grace() -> None:
    """However late it is asked, as after the machine slept, one step at a time."""
    ladder = Ladder(5.0, interrupt_only=False)
    ladder.begin(0.0)
    assert ladder.tick(3600.0) == [INTERRUPT]
    assert ladder.next_at == 3605.0


def test_a_second_request_never_weakens() -> None:
    """It may shorten the grace, also the one that runs, or allow the kill; not lengthen it or forbid that."""
    ladder = Ladder(5.0, interrupt_only=False)
    ladder.begin(0.0)
    assert ladder.sharpen(1.0, 60.0, interrupt_only=True) == []
    assert (ladder.next_at, ladder.grace, ladder.interrupt_only) == (5.0, 5.0, False)
    assert ladder.sharpen(2.0, 1.0, interrupt_only=False) == []
    assert ladder.next_at == 3.0
    assert ladder.tick(3.0) == [INTERRUPT]
    assert ladder.sharpen(3.5, 0.0, interrupt_only=False) == [KILL]


_ASKS = st.tuples(st.sampled_from([0.0, 0.5, 2.0, 5.0]), st.booleans())


@settings(max_examples=100, deadline=None)
@given(_ASKS, st.lists(st.tuples(st.floats(0, 10), st.none() | _ASKS), max_size=30))
def test_whatever_is_asked_when(
    first: tuple[float, bool], steps: list[tuple[float, tuple[float, bool] | None]]
) -> None:
    """At most one kill, the last action of all, after two interrupts, and only if somebody allowed it."""
    now = 0.0
    ladder = Ladder(first[0], interrupt_only=first[1])
    actions: list[Action] = []
    graces, allowed = [first[0]], [not first[1]]

    def took(new: Iterable[Action]) -> None:
        actions.extend(new)
        assert KILL not in actions[:-1]
        if KILL in actions:
            assert any(allowed)
            assert actions.count(INTERRUPT) >= 2
            assert ladder.state is State.KILLED
        assert ladder.grace == min(graces)
        assert ladder.next_at is None or now < ladder.next_at <= now + ladder.grace

    took(ladder.begin(now))
    for passed, ask in steps:
        now += passed
        if ask is None:
            took(ladder.tick(now))
        else:
            graces.append(ask[0])
            allowed.append(not ask[1])
            took(ladder.sharpen(now, ask[0], interrupt_only=ask[1]))
    for _ in range(3):  # left alone it comes to its end
        now = ladder.next_at if ladder.next_at is not None else now
        took(ladder.tick(now))
    assert ladder.next_at is None
    assert ladder.state is (State.KILLED if any(allowed) else State.SPENT)


def test_beginning_twice_is_a_defect() -> None:
    """Who holds a ladder that has begun sharpens it."""
    ladder = Ladder(1.0, interrupt_only=False)
    ladder.begin(0.0)
    with pytest.raises(AssertionError):
        ladder.begin(1.0)
