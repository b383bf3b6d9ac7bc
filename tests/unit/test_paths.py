"""The ways of a session's calls: to the controller, or to the host of their engine."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from enginery import _calls
from enginery._path import Path
from enginery._reasons import DeliveryError
from enginery._session import Session
from enginery.errors import ControllerLost
from enginery.v1 import cluster_pb2, frame_pb2
from tests.unit.test_session import reply, submit

if TYPE_CHECKING:
    from enginery._entry import Entry


def calls(session: Session, path: Path | None = None) -> list[frame_pb2.Call]:
    """Take one message of a path and return its calls."""
    return list(cluster_pb2.SessionRequest.FromString(session.take(path) or b"").calls)


def sent(session: Session, path: Path | None = None) -> list[int]:
    """Take one message of a path and return the ids of its calls."""
    return [call.call_id for call in calls(session, path)]


def answer(session: Session, entry: Entry, path: Path) -> None:
    """Answer a call on a path."""
    assert session.replied(entry.call_id, path) is entry
    session.done(entry)
    entry.operation.fail(DeliveryError("INTERNAL", cause="it is only a test", process="test"))


def on_a_direct_path(epochs: dict[int, int] | None = None, engines: int = 1) -> tuple[Session, Path]:
    """Return a session whose next calls of its engines go to their host."""
    session, path = Session(epochs), Path(is_direct=True)
    for engine_id in range(engines):
        entry = submit(session, engine_id=engine_id)
        session.accept()
        session.take()
        reply(session, entry)
        session.ways.offer(engine_id, path)
    return session, path


def test_the_way_changes_when_nothing_is_unanswered() -> None:
    """Calls go on by the relay while one of their engine is there; the first after the last goes directly."""
    session, path = Session(), Path(is_direct=True)
    first = submit(session)
    session.accept()
    assert sent(session) == [first.call_id]
    session.ways.offer(0, path)
    second = submit(session)
    session.accept()
    assert (sent(session), session.take(path)) == ([second.call_id], None)
    reply(session, first)
    third = submit(session)
    session.accept()
    assert sent(session) == [third.call_id]
    reply(session, second)
    reply(session, third)
    fourth, control = submit(session), session.entry(_calls.queue_status(), 0, "raise", 0.0)
    session.submit([control], may_wait=False)
    session.accept()
    assert (sent(session, path), session.take()) == ([fourth.call_id, control.call_id], None)
    assert len(session.ways) == 1


def test_each_engine_has_its_own_way() -> None:
    """Engines that were not offered one, and tasks, stay with the relay."""
    session, path = on_a_direct_path()
    here, there = submit(session), submit(session, engine_id=1)
    session.accept()
    assert (sent(session, path), sent(session)) == ([here.call_id], [there.call_id])


def test_a_reply_counts_on_the_path_of_its_call_alone() -> None:
    """A host cannot answer for the controller, or for another host."""
    session, path = on_a_direct_path()
    entry = submit(session)
    session.accept()
    session.take(path)
    assert session.replied(entry.call_id) is None
    assert session.replied(entry.call_id, Path(is_direct=True)) is None
    answer(session, entry, path)
    assert session.waiting_count == 0


def test_what_was_sent_on_a_path_that_broke_goes_by_the_relay() -> None:
    """First and in order, with the epoch that its engine had; then what was not sent. Interrupts end."""
    session, path = on_a_direct_path({0: 7})
    entries = [submit(session) for _ in range(3)]
    interrupt = session.entry(_calls.interrupt(None), 0, "raise", 0.0)
    session.submit([interrupt], may_wait=False)
    session.accept()
    session.take(path)
    answer(session, entries[1], path)
    unsent = submit(session)
    session.accept()
    session.leave([0], "it broke", 1.0)
    later = submit(session)
    session.accept()
    assert session.take(path) is None
    again = calls(session)
    assert [call.call_id for call in again] == [one.call_id for one in (entries[0], entries[2], unsent, later)]
    assert [call.sent_epoch for call in again] == [7, 7, 0, 0]
    assert isinstance(interrupt.operation.exception(), ControllerLost)
    assert session.replied(entries[0].call_id, path) is None  # too late
    assert len(session.ways) == 0


def test_one_engine_leaves_alone() -> None:
    """The others of its host go on there."""
    session, path = on_a_direct_path(engines=2)
    first, second = submit(session), submit(session, engine_id=1)
    session.accept()
    session.take(path)
    session.leave([0], "it is registered anew", 1.0)
    assert sent(session) == [first.call_id]
    answer(session, second, path)
    reply(session, first)


def test_a_host_that_does_not_have_the_engine_is_left() -> None:
    """The call that it refused for that goes by the relay, before those behind it."""
    session, path = on_a_direct_path()
    first, second = submit(session), submit(session)
    session.accept()
    session.take(path)
    assert session.replied(first.call_id, path) is first
    session.not_there(first, 1.0)
    assert sent(session) == [first.call_id, second.call_id]


def test_direct_calls_do_not_need_the_controller() -> None:
    """While it is away they are sent and answered, and sent again if they were refused; none expires."""
    session, path = on_a_direct_path()
    waiting, relayed = submit(session), submit(session, engine_id=1)
    session.accept()
    session.take(path)
    session.take()
    assert session.disconnected("socket closed", 0.0) == 1
    refused = submit(session)
    session.accept()
    assert sent(session, path) == [refused.call_id]
    answer(session, waiting, path)
    assert session.replied(refused.call_id, path) is refused
    session.refuse(refused, DeliveryError("QUEUE_FULL", engine_id=0, size=1, option="x"), 0.0, 1.0)
    session.expire(100.0, 50.0, "socket closed")
    assert isinstance(relayed.operation.exception(), ControllerLost)
    due = session.next_retry()
    assert due is not None
    session.retry(due)
    assert sent(session, path) == [refused.call_id]


def test_what_a_full_queue_refused_moves_along() -> None:
    """Its lane is sent again by the relay, in order."""
    session, path = on_a_direct_path({0: 7})
    first, second, third = (submit(session) for _ in range(3))
    session.accept()
    session.take(path)
    assert session.replied(first.call_id, path) is first
    session.refuse(first, DeliveryError("QUEUE_FULL", engine_id=0, size=1, option="x"), 0.0, 1.0)
    session.leave([0], "it broke", 2.0)
    assert session.take() is None
    session.retry(2.0)
    assert sent(session) == [first.call_id, second.call_id, third.call_id]


def test_a_session_that_closes_ends_calls_of_all_ways() -> None:
    """None waits for ever."""
    session, path = on_a_direct_path()
    waiting = submit(session)
    session.accept()
    session.take(path)
    unsent = submit(session)
    session.accept()
    session.close()
    assert isinstance(waiting.operation.exception(), ControllerLost)
    assert isinstance(unsent.operation.exception(), ControllerLost)
    assert session.unsent_count == session.waiting_count == 0


@pytest.mark.parametrize("seed", range(20))
def test_order_holds_whatever_way(seed: int) -> None:
    """An engine that takes calls from both streams, each in its order and once, begins them in their order."""
    chance = random.Random(seed)
    session, path, ran = Session({0: 7}), Path(is_direct=True), list[int]()
    ways: dict[Path, list[int]] = {session.relay: []}
    waiting: dict[int, Entry] = {}

    def take(way: Path) -> None:
        ways.setdefault(way, []).extend(sent(session, way))

    def run(way: Path) -> None:
        for call_id in ways.get(way, [])[: chance.randrange(4)]:
            ways[way].remove(call_id)
            if call_id not in ran:
                ran.append(call_id)
            if session.replied(call_id, way) is not None:
                session.done(waiting.pop(call_id))

    for _ in range(400):
        match chance.randrange(8):
            case 0 | 1:
                entry = submit(session)
                waiting[entry.call_id] = entry
                session.accept()
            case 2 | 3:
                take(chance.choice([session.relay, path]))
            case 4 | 5:
                run(chance.choice(list(ways)))
            case 6 if session.ways.direct(0) is None:
                path = Path(is_direct=True)
                session.ways.offer(0, path)
            case 7 if chance.random() < 0.3:
                session.leave([0], "it broke", 0.0)
    assert ran == sorted(ran)
    assert ran
