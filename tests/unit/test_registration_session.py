"""One engine's registration, event by event, and against every order of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service.session import SayGoodbye, SayHello, Session, State, Stop, TakeId
from enginery._reasons import DeliveryError

FENCED = DeliveryError("FENCED", engine_id=3, epoch=9)
LATER = DeliveryError("SHUTTING_DOWN", process="controller")


def test_hello_welcome_away_back() -> None:
    """A return carries the id and the epoch of the registration, and keeps both."""
    session = Session()
    assert session.opened() == [SayHello(None, None)]
    assert session.welcomed(3, 7, 60.0) == [TakeId(3)]
    assert session.closed() == []
    assert session.state is State.AWAY
    assert session.opened() == [SayHello(3, 7)]
    assert session.welcomed(3, 7, 60.0) == [TakeId(3)]
    assert repr(session) == "<Session registered, id 3, epoch 7>"


def test_a_wanted_id_is_asked_for() -> None:
    """Without an epoch it is a wish, not a return."""
    assert Session(5).opened() == [SayHello(5, None)]


def test_a_fenced_engine_stops() -> None:
    """Its id has another holder: it must not run on beside it, and asks no more."""
    session = Session()
    session.opened()
    session.welcomed(3, 7, 60.0)
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
    session.welcomed(3, 7, 60.0)
    assert session.left() == [SayGoodbye(3)]
    assert session.left() == []
    away = Session()
    away.opened()
    away.welcomed(3, 7, 60.0)
    away.closed()
    assert away.left() == []


def test_a_welcome_to_one_that_has_left_is_answered_with_goodbye() -> None:
    """It stopped while its hello was on the way; the controller must not keep it."""
    session = Session()
    session.opened()
    session.left()
    assert session.welcomed(3, 7, 60.0) == [SayGoodbye(3)]


def test_answers_that_nobody_asked_for_are_refused() -> None:
    """A welcome or a refusal without a hello breaks the protocol."""
    session = Session()
    with pytest.raises(DeliveryError, match="PROTOCOL_ERROR: a welcome"):
        session.welcomed(1, 1, 1.0)
    with pytest.raises(DeliveryError, match="PROTOCOL_ERROR: a refusal"):
        session.refused(FENCED)


@given(st.lists(st.sampled_from(["opened", "welcomed", "fenced", "later", "closed", "left"])))
def test_every_order_of_events_keeps_the_rules(events: list[str]) -> None:
    """Once gone, always gone; registered means an id and an epoch; an epoch is never given up."""
    session = Session()
    gone = False
    for event in events:
        had_epoch = session.epoch is not None
        try:
            actions = {
                "opened": session.opened,
                "welcomed": lambda: session.welcomed(1, 2, 3.0),
                "fenced": lambda: session.refused(FENCED),
                "later": lambda: session.refused(LATER),
                "closed": session.closed,
                "left": session.left,
            }[event]()
        except DeliveryError as error:
            if error.reason != "PROTOCOL_ERROR" or event not in ("welcomed", "fenced", "later"):
                raise
            continue
        gone = gone or session.state is State.GONE
        assert not gone or session.state is State.GONE
        assert not gone or not any(isinstance(action, SayHello | TakeId) for action in actions)
        if session.state in (State.REGISTERED, State.AWAY):
            assert session.epoch is not None
            assert session.engine_id is not None
        assert not had_epoch or session.epoch is not None
