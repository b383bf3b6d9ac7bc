"""Calls to many engines: their request travels once, and each of them is a call of its own all the same."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from enginery import _calls
from enginery._reasons import DeliveryError
from enginery._session import BATCH_CALLS, Session
from enginery.v1 import cluster_pb2, frame_pb2

if TYPE_CHECKING:
    from enginery._entry import Entry


def submit(session: Session, engine_ids: list[int]) -> list[Entry]:
    entries = session.entries(_calls.push({"a": 1}), engine_ids, "raise", 0.0)
    session.submit(entries, may_wait=False)
    session.accept()
    return entries


def taken(session: Session) -> list[frame_pb2.Call]:
    """Take one message and return its calls."""
    return list(cluster_pb2.SessionRequest.FromString(session.take() or b"").calls)


def targets(call: frame_pb2.Call) -> list[tuple[int, int]]:
    return [(target.engine_id, target.sent_epoch) for target in call.targets]


def end(session: Session, entry: Entry) -> None:
    assert session.replied(entry.call_id) is entry
    session.done(entry)
    entry.operation.fail(DeliveryError("ENGINE_LOST", engine_id=0, cause="it is only a test"))


def test_one_frame_for_many_engines() -> None:
    """Targets in order, ids in a row from the frame's on; a call to one engine is as ever."""
    session = Session({0: 5, 2: 6})
    entries = submit(session, [2, 0])
    (alone,) = submit(session, [0])
    many, one = taken(session)
    assert targets(many) == [(2, 0), (0, 0)]
    assert [entry.call_id for entry in entries] == [many.call_id, many.call_id + 1]
    assert many.request == one.request
    assert (one.call_id, one.engine_id, targets(one)) == (alone.call_id, 0, [])
    assert (session.counters.calls, session.waiting_count) == (3, 3)
    for entry in (*entries, alone):
        end(session, entry)
    assert session.room.kept_bytes == 0
    assert session.entries(_calls.keys(), [], "raise", 0.0) == []


def test_what_was_not_answered_goes_again_as_one() -> None:
    """After a break, with the registration of each engine that was meant; what was answered does not."""
    session = Session({0: 5, 1: 6, 2: 7})
    entries = submit(session, [0, 1, 2])
    taken(session)
    end(session, entries[0])
    session.disconnected("it broke", 1.0)
    session.connected(2.0)
    (again,) = taken(session)
    assert (again.call_id, targets(again)) == (entries[1].call_id, [(1, 6), (2, 7)])
    assert session.counters.resent == 2


def test_an_engine_that_is_another_by_now_is_told() -> None:
    """Before the call was ever sent: it means the namespace that was there when it was made."""
    epochs = {0: 5, 1: 6}
    session = Session(epochs)
    submit(session, [0, 1])
    epochs[1] = 9
    (call,) = taken(session)
    assert targets(call) == [(0, 0), (1, 6)]


def test_calls_that_are_not_in_a_row_go_apart() -> None:
    """One that was refused or withdrawn leaves a gap, and no message has more calls than others have."""
    session = Session()
    entries = submit(session, [0, 1, 2])
    assert session.withdraw(entries[1].operation) == []
    assert [(call.call_id, targets(call)) for call in taken(session)] == [
        (entries[0].call_id, [(0, 0)]),
        (entries[2].call_id, [(2, 0)]),
    ]
    session.replied(entries[2].call_id)
    session.refuse(entries[2], DeliveryError("QUEUE_FULL", engine_id=2, size=1, option="x"), 0.0, 0.0)
    session.retry(10.0)
    assert [targets(call) for call in taken(session)] == [[(2, 0)]]
    session = Session()
    submit(session, list(range(BATCH_CALLS + 1)))
    assert [len(call.targets) for call in taken(session)] == [BATCH_CALLS]
    assert [len(call.targets) for call in taken(session)] == [1]


def test_ids_stay_in_a_row_when_another_thread_takes_one() -> None:
    """Those that were taken in vain are left out."""
    session = Session()
    session._call_ids = itertools.chain([1, 3], itertools.count(4))  # type: ignore[assignment]
    assert session._ids_in_a_row(2) == [4, 5]
