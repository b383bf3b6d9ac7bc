"""One engine's registration, event by event, against its own table, and against every order of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service import session as session_module
from engine_service.session import Fence, SayGoodbye, SayHello, Session, State, Stop, TakeId
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine_service.session import Action

FENCED = DeliveryError("FENCED", engine_id=3, epoch=9)
LATER = DeliveryError("SHUTTING_DOWN", process="controller")


def welcome(session: Session, *, epoch: int = 7, cluster: str = "c", controller: int = 1) -> list[Action]:
    return session.welcomed(3, epoch, cluster, controller)


def test_hello_welcome_away_back() -> None:
    """A return carries the id and the epoch of the registration, and keeps both."""
    session = Session()
    assert session.opened() == [SayHello(None, None)]
    assert welcome(session) == [TakeId(3)]
    assert session.closed() == []
    assert session.state is State.AWAY
    assert session.opened() == [SayHello(3, 7)]
    assert welcome(session) == [TakeId(3)]
    assert repr(session) == "<Session registered, id 3, epoch 7>"


def test_a_wanted_id_is_asked_for() -> None:
    """Without an epoch it is a wish, not a return."""
    assert Session(5).opened() == [SayHello(5, None)]


def test_a_fenced_engine_stops() -> None:
    """Its id has another holder: it must not run on beside it, and asks no more."""
    session = Session()
    session.opened()
    welcome(session)
    session.closed()
    session.opened()
    (action,) = session.refused(FENCED)
    assert isinstance(action, Stop)
    assert "another holder" in action.reason
    assert session.opened() == []
    assert session.left() == []


def test_a_refusal_for_now_asks_again() -> None:
    """What may be repeated is repeated, with the same hello."""
    session = Session()
    session.opened()
    assert session.refused(LATER) == []
    assert session.opened() == [SayHello(None, None)]


def test_goodbye_is_said_where_one_is_known() -> None:
    """A registered engine that stops says goodbye, once; one that is away just ends."""
    session = Session()
    session.opened()
    welcome(session)
    assert session.left() == [SayGoodbye(3)]
    assert session.left() == []
    away = Session()
    away.opened()
    welcome(away)
    away.closed()
    assert away.left() == []


def test_a_welcome_to_one_that_has_left_is_answered_with_goodbye() -> None:
    """It stopped while its hello was on the way; the controller must not keep it."""
    session = Session()
    session.opened()
    session.left()
    assert welcome(session) == [SayGoodbye(3)]


def test_answers_that_nobody_asked_for_are_refused() -> None:
    """A welcome or a refusal without a hello breaks the protocol."""
    session = Session()
    with pytest.raises(DeliveryError, match="PROTOCOL_ERROR: a welcome"):
        welcome(session)
    with pytest.raises(DeliveryError, match="PROTOCOL_ERROR: a refusal"):
        session.refused(FENCED)


def test_an_older_controller_is_not_obeyed() -> None:
    """1. One that was replaced and lives again changes nothing. 2. It is known by any engine of the host.
    3. The newest may come back, or another cluster, which counts for itself."""
    fence = Fence()
    first, second = Session(fence=fence), Session(fence=fence)
    first.opened()
    welcome(first, controller=6)
    first.closed()
    for session in (first, second):
        session.opened()
        with pytest.raises(DeliveryError, match="this controller has epoch 5, and epoch 6 was obeyed"):
            welcome(session, epoch=1, controller=5)
        assert session.state is State.ASKING
    assert (first.engine_id, first.epoch) == (3, 7)
    assert second.epoch is None
    assert welcome(first, controller=6) == [TakeId(3)]
    assert welcome(second, cluster="another", controller=1) == [TakeId(3)]


EVENTS: dict[str, Callable[[Session], list[Action]]] = {
    "opened": Session.opened,
    "welcomed": welcome,
    "refused for good": lambda session: session.refused(FENCED),
    "refused for now": lambda session: session.refused(LATER),
    "closed": Session.closed,
    "left": Session.left,
}
EPOCHS: dict[State, tuple[int | None, ...]] = {
    State.OFFLINE: (None,),
    State.ASKING: (None, 7),
    State.REGISTERED: (7,),
    State.AWAY: (7,),
    State.GONE: (None, 7),
}


def outcome(state: State, epoch: int | None, event: str) -> str:
    """Return the state to which an event leads, or a dash if it is refused and changes nothing."""
    session = Session()
    session.state, session.engine_id, session.epoch = state, 3, epoch
    try:
        EVENTS[event](session)
    except DeliveryError as error:
        if error.reason != "PROTOCOL_ERROR" or session.state is not state:
            raise
        return "-"
    return session.state.name


def test_the_table_is_what_it_does() -> None:
    """Each state takes each event as the module's table says."""
    assert session_module.__doc__ is not None
    head, *rows = [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in session_module.__doc__.splitlines()
        if line.startswith("    ")
    ]
    assert head == ["state", *EVENTS]
    expected = {
        (name, event): set(cell.split(", "))
        for name, *cells in rows
        for event, cell in zip(EVENTS, cells, strict=True)
    }
    found = {
        (state.name, event): {outcome(state, epoch, event) for epoch in epochs}
        for state, epochs in EPOCHS.items()
        for event in EVENTS
    }
    assert found == expected


@given(st.lists(st.sampled_from(list(EVENTS))))
def test_every_order_of_events_keeps_the_rules(events: list[str]) -> None:
    """Once gone, always gone; registered means an id and an epoch; an epoch is never given up."""
    session = Session()
    gone = False
    for event in events:
        had_epoch = session.epoch is not None
        try:
            actions = EVENTS[event](session)
        except DeliveryError as error:
            if error.reason != "PROTOCOL_ERROR":
                raise
            continue
        gone = gone or session.state is State.GONE
        assert not gone or session.state is State.GONE
        assert not gone or not any(isinstance(action, SayHello | TakeId) for action in actions)
        if session.state in (State.REGISTERED, State.AWAY):
            assert session.epoch is not None
            assert session.engine_id is not None
        assert not had_epoch or session.epoch is not None
