"""The client's session: batches, order behind uploads, and what ends when."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from enginery import _calls, _room
from enginery._encoded import Codec, Encoded
from enginery._entry import TRANSITIONS, Entry, State
from enginery._methods import ANY_ENGINE
from enginery._reasons import DeliveryError
from enginery._session import Session
from enginery.errors import ControllerLost, DataLoss, OperationCancelled, QueueCleared, QueueFull
from enginery.v1 import cluster_pb2, frame_pb2, value_pb2

BLOB = (value_pb2.Blob(blob_id="b", size=1, part_sizes=[1]), Encoded(Codec.PICKLE, (b"x",)))


def submit(
    session: Session, code: str = "1", engine_id: int = 0, *, upload: bool = False, now: float = 0.0
) -> Entry:
    request = _calls.execute(code)
    if upload:
        request.uploads = (BLOB,)
    entry = session.entry(request, engine_id, "raise", now)
    session.submit([entry], may_wait=False)
    return entry


def calls(session: Session) -> list[frame_pb2.Call]:
    """Take one message and return its calls."""
    return list(cluster_pb2.SessionRequest.FromString(session.take() or b"").calls)


def sent(session: Session) -> list[int]:
    """Take one message and return the ids of its calls."""
    return [call.call_id for call in calls(session)]


def reply(session: Session, entry: Entry) -> None:
    """Answer a call."""
    assert session.replied(entry.call_id) is entry
    session.done(entry)
    entry.operation.fail(DeliveryError("INTERNAL", cause="it is only a test", process="test"))


def refuse(session: Session, entry: Entry, now: float, *, hint: float = 0.0) -> None:
    """Answer a call with QUEUE_FULL."""
    assert session.replied(entry.call_id) is entry
    session.refuse(entry, DeliveryError("QUEUE_FULL", engine_id=0, size=1, option="x"), hint, now)


def test_what_piled_up_goes_in_one_message() -> None:
    """All calls that wait travel together, in the order in which they were submitted."""
    session = Session()
    ids = [submit(session, engine_id=n % 3).call_id for n in range(5)]
    assert session.accept() == []
    assert sent(session) == ids
    assert session.take() is None
    assert (session.unsent_count, session.waiting_count) == (0, 5)


def test_a_message_has_bounds() -> None:
    """At most 256 calls or about 512 KiB to a message; one call that is larger goes alone."""
    session = Session()
    for _ in range(300):
        submit(session)
    submit(session, "#" * (1 << 20))
    submit(session)
    session.accept()
    assert [len(sent(session)) for _ in range(4)] == [256, 45, 1, 0]


def test_a_call_waits_behind_the_upload_of_one_before_it() -> None:
    """Order on one engine holds: what follows a call with uploads is sent after it; other engines go on."""
    session = Session()
    large, behind = submit(session, upload=True), submit(session)
    other = submit(session, engine_id=1)
    assert session.accept() == [large]
    assert sent(session) == [other.call_id]
    assert session.uploaded(large) == []
    assert sent(session) == [large.call_id, behind.call_id]


def test_uploads_of_one_engine_come_one_after_the_other() -> None:
    """The second upload starts when the first call is on its way."""
    session = Session()
    first, second = submit(session, upload=True), submit(session, upload=True)
    assert session.accept() == [first]
    assert session.uploaded(first) == [second]
    assert sent(session) == [first.call_id]
    assert session.uploaded(second) == []
    assert sent(session) == [second.call_id]


def test_control_calls_pass_uploads() -> None:
    """What engines answer at once is not held back."""
    session = Session()
    large = submit(session, upload=True)
    control = session.entry(_calls.queue_status(), 0, "raise", 0.0)
    session.submit([control], may_wait=False)
    assert session.accept() == [large]
    assert sent(session) == [control.call_id]


def test_a_failed_upload_clears_what_was_behind_it() -> None:
    """As with any failure, what the session queued behind it does not run; later calls do."""
    session = Session()
    large, behind = submit(session, upload=True), submit(session)
    session.accept()
    session.upload_failed(large, DeliveryError("CHECKSUM_MISMATCH", offset=0, blob_id="b"))
    assert isinstance(large.operation.exception(), DataLoss)
    assert isinstance(behind.operation.exception(), QueueCleared)
    assert session.unsent_count == 0
    later = submit(session)
    session.accept()
    assert sent(session) == [later.call_id]


def test_what_was_not_answered_is_sent_again() -> None:
    """On the next connection, before what was not sent, in order, with the epoch that its engine had."""
    epochs = {0: 7, 1: 9}
    session = Session(epochs)
    first, other, answered = submit(session), submit(session, engine_id=1), submit(session)
    session.accept()
    assert [call.sent_epoch for call in calls(session)] == [0, 0, 0]
    reply(session, answered)
    second = submit(session)
    session.accept()
    assert session.disconnected("socket closed", 1.0) == 3
    epochs.clear()
    again = calls(session)
    assert [call.call_id for call in again] == [first.call_id, other.call_id, second.call_id]
    assert [call.sent_epoch for call in again] == [7, 9, 7]
    assert again[0].request == first.request.payload
    assert not first.operation.done()
    epochs[0] = 8  # another registration of the same id: what was sent to the old one still says so
    session.disconnected("again", 2.0)
    assert [call.sent_epoch for call in calls(session)] == [7, 9, 7]
    assert session.counters.resent == 5


def test_a_call_means_the_engine_that_was_there_when_it_was_made() -> None:
    """If that is gone when it is sent for the first time, it says so, and never goes to whoever has the id."""
    epochs = {0: 7}
    session = Session(epochs)
    submit(session)
    epochs.clear()  # a restarted controller does not know the engine yet
    submit(session)
    session.accept()
    assert [call.sent_epoch for call in calls(session)] == [7, 0]


def test_a_refusal_says_nothing_of_an_earlier_sending() -> None:
    """A call that is refused when it is sent again may have run: it keeps saying which engine it means."""
    session = Session({0: 7})
    entry = submit(session)
    session.accept()
    assert [call.sent_epoch for call in calls(session)] == [0]
    session.disconnected("socket closed", 1.0)
    session.connected(1.5)
    assert [call.sent_epoch for call in calls(session)] == [7]
    assert session.replied(entry.call_id) is entry
    session.refuse(entry, DeliveryError("ENGINE_AWAY", engine_id=0), 0.1, 2.0)
    session.retry(60.0)
    assert [call.sent_epoch for call in calls(session)] == [7]


def test_what_would_hit_something_else_is_not_sent_again() -> None:
    """An interrupt, or clearing the queue, is about what is there when it is made."""
    session = Session()
    interrupt = session.entry(_calls.interrupt(None), 0, "raise", 0.0)
    session.submit([interrupt, keys := session.entry(_calls.keys(), 0, "raise", 0.0)], may_wait=False)
    session.accept()
    sent(session)
    session.disconnected("socket closed", 1.0)
    assert isinstance(interrupt.operation.exception(), ControllerLost)
    assert sent(session) == [keys.call_id]


def test_calls_wait_for_a_connection_only_so_long() -> None:
    """Counted from when it broke, or from when they were made; the error says whether they may have run."""
    session = Session()
    first = submit(session)
    session.accept()
    sent(session)
    session.disconnected("socket closed", 10.0)
    early, late = submit(session, now=11.0), submit(session, now=15.0)
    session.accept()
    session.expire(19.9, 10.0, "no controller")
    assert not first.operation.done()
    session.expire(22.0, 10.0, "no controller")
    assert "may have run" in str(first.operation.exception())
    assert "was not sent" in str(early.operation.exception())
    assert not late.operation.done()
    assert sent(session) == [late.call_id]
    session.connected(23.0)
    session.expire(99.0, 10.0, "no controller")
    assert session.state_of(late) is State.SENT


def test_closing_ends_everything() -> None:
    """After close every call has ended, and none can be submitted."""
    session = Session()
    entries = [submit(session)]
    session.accept()
    sent(session)
    entries += [submit(session, upload=True), submit(session), submit(session, engine_id=1)]
    session.close()
    assert all(isinstance(entry.operation.exception(), ControllerLost) for entry in entries)
    assert (session.unsent_count, session.waiting_count) == (0, 0)
    with pytest.raises(DeliveryError, match="closed"):
        submit(session)


def test_submitting_waits_while_too_much_is_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of unsent calls has a bound: a thread waits for room, the loop's own is told at once."""
    monkeypatch.setattr(_room, "UNSENT_CALLS", 1)
    session = Session()
    submit(session)
    with pytest.raises(DeliveryError, match="unsent"):
        submit(session)
    entry = session.entry(_calls.keys(), 0, "raise", 0.0)
    thread = threading.Thread(target=session.submit, args=([entry],), kwargs={"may_wait": True})
    thread.start()
    session.accept()
    assert sent(session)
    thread.join(10)
    session.accept()
    assert sent(session) == [entry.call_id]


def test_operation_ids_follow_from_session_and_call() -> None:
    """The id that an operation shows is the one that the controller derives, so it need not travel."""
    session = Session(session_id=b"\x01\x02\x03\x04\x05\x06\x87\x08")
    entry = submit(session)
    assert entry.operation.operation_id == "01020304-0506-8708-8000-000000000001"


def test_the_client_keeps_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that wait for their answers have a bound in bytes; an answer makes room, nothing else does."""
    monkeypatch.setattr(_room, "KEPT_BYTES", 500)
    session = Session()
    first = submit(session, "#" * 100)
    session.accept()
    sent(session)
    with pytest.raises(DeliveryError, match="QUEUE_FULL"):
        submit(session)
    second = session.entry(_calls.keys(), 0, "raise", 0.0)
    threads = [
        threading.Thread(target=session.submit, args=([entry],), kwargs={"may_wait": True})
        for entry in (second, session.entry(_calls.keys(), 1, "raise", 0.0))
    ]
    for thread in threads:
        thread.start()
    session.disconnected("socket closed", 1.0)
    sent(session)
    assert session.waiting_count == 1
    reply(session, first)
    deadline = time.monotonic() + 10
    while session.unsent_count < 1:  # one of them; the other waits for the next answer
        assert time.monotonic() < deadline
        time.sleep(0.001)
    session.accept()
    (went,) = calls(session)
    entry = session.replied(went.call_id)
    assert entry is not None
    session.done(entry)
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


# ---- engines that do not take calls


def test_a_refused_call_goes_again_before_what_is_behind_it() -> None:
    """A full queue: the call and all later ones of its engine wait and go in order; other engines' pass."""
    session = Session()
    first, second = submit(session), submit(session)
    session.accept()
    sent(session)
    behind, other = submit(session), submit(session, engine_id=1)
    session.accept()
    refuse(session, first, 1.0, hint=0.5)
    late = submit(session)
    session.accept()
    assert sent(session) == [other.call_id]
    assert session.next_retry() == 1.5
    assert session.retry(1.4) == []
    assert session.take() is None
    session.retry(1.5)
    assert session.take() is None, (
        "the second was sent and not answered: sending the first now would reorder them"
    )
    refuse(session, second, 1.55)
    session.retry(2.1)
    assert sent(session) == [entry.call_id for entry in (first, second, behind, late)]
    session.retry(9.0)
    session.retry(18.0)
    assert session.next_retry() is None
    assert not session.is_holding


def test_a_queue_that_stays_full_is_asked_for_less_and_less_often() -> None:
    """Each round that ends in a refusal halves what is sent and lengthens the wait, up to two seconds."""
    session = Session()
    entries = [submit(session) for _ in range(100)]
    session.accept()
    sent(session)
    for entry in entries:
        refuse(session, entry, 0.0)
    sizes, delays, now = [], [], 0.0
    for _ in range(9):
        due = session.next_retry()
        assert due is not None
        delays.append(round(due - now, 2))
        now = due
        session.retry(now)
        ids = sent(session)
        assert ids == [entry.call_id for entry in entries[: len(ids)]]
        sizes.append(len(ids))
        for entry in entries[: len(ids)]:
            refuse(session, entry, now)
    assert sizes == [64, 32, 16, 8, 4, 2, 1, 1, 1]
    assert delays[0] == 0.1
    assert delays[-1] == 2.0
    session.retry(now + 2.0)
    assert len(sent(session)) == 1
    for step, size in ((2.0, 2), (2.1, 4), (2.2, 8)):  # nothing is refused any more
        session.retry(now + 2.0 + step)
        assert len(sent(session)) == size


def test_an_answer_makes_room_in_a_full_queue() -> None:
    """One more may go at once, without waiting for the hint; where an engine is away it says nothing."""
    for reason, due in (("QUEUE_FULL", 0.0), ("ENGINE_AWAY", 2.0)):
        session = Session()
        running, first, second = (submit(session) for _ in range(3))
        session.accept()
        sent(session)
        for refused in (first, second):
            assert session.replied(refused.call_id) is refused
            session.refuse(refused, DeliveryError(reason, engine_id=0), 1.0, 1.0)
        reply(session, running)
        assert session.next_retry() == due
        session.retry(1.1)
        assert sent(session) == ([first.call_id] if due == 0.0 else [])
        assert session.next_retry() == 2.0


def test_an_engine_that_takes_nothing_for_long_is_given_up() -> None:
    """After a minute without any answer of it; not while it is at a call of this session."""
    session = Session()
    running, refused = submit(session), submit(session)
    session.accept()
    sent(session)
    refuse(session, refused, 0.0)
    session.retry(100.0)
    assert not refused.operation.done()
    reply(session, running)
    session.retry(101.0)
    now = 101.0
    while not refused.operation.done():
        assert now < 300
        if session.waiting_count:
            sent(session)
            refuse(session, refused, now)
        now = session.next_retry() or now
        session.retry(now)
        sent(session)
    assert isinstance(refused.operation.exception(), QueueFull)
    assert 160 < now < 170


def test_cancel_takes_back_what_was_not_sent() -> None:
    """It never reaches the engine: cancelled, the namespace kept; what was sent is the engine's to stop."""
    session = Session()
    first, uploading, behind = submit(session), submit(session, upload=True), submit(session)
    assert session.accept() == [uploading]
    sent(session)
    assert session.withdraw(first.operation) is None
    assert session.withdraw(uploading.operation) == []
    error = uploading.operation.exception()
    assert isinstance(error, OperationCancelled)
    assert not error.namespace_lost
    assert session.uploaded(uploading) == []
    assert sent(session) == [behind.call_id]
    ready = submit(session)
    session.accept()
    assert session.withdraw(ready.operation) == []
    assert session.take() is None
    first.operation.is_stopping = True
    refuse(session, first, 1.0)
    assert isinstance(first.operation.exception(), OperationCancelled)
    assert session.unsent_count == 0


def test_what_may_have_arrived_is_taken_back_only_if_it_has_not() -> None:
    """After a broken connection the engine decides, until it says that it does not know the call."""
    session = Session()
    entry = submit(session)
    session.accept()
    sent(session)
    session.disconnected("socket closed", 0.0)
    assert session.withdraw(entry.operation) is None
    assert session.withdraw(entry.operation, arrived=False) == []
    assert isinstance(entry.operation.exception(), OperationCancelled)


# ---- all of it


def task(session: Session) -> Entry:
    """Submit a task."""
    request = _calls.execute("1")
    request.task = frame_pb2.TaskOptions(retries=1).SerializeToString()
    entry = session.entry(request, ANY_ENGINE, "raise", 0.0)
    session.submit([entry], may_wait=False)
    return entry


def test_a_task_that_is_sent_again_names_the_controller_that_it_was_sent_to_first() -> None:
    """The next one cannot know whether it ran; of one that was refused it is known that it did not."""
    session = Session()
    session.connected(0.0, controller_epoch=5)
    entry, refused = task(session), task(session)
    session.accept()
    assert [(call.task.retries, call.sent_epoch) for call in calls(session)] == [(1, 0), (1, 0)]
    refuse(session, refused, 0.0)
    session.disconnected("it broke", 1.0)
    session.connected(2.0, controller_epoch=6)
    session.retry(2.0)
    epochs = {call.call_id: call.sent_epoch for call in calls(session)}
    assert epochs == {entry.call_id: 5, refused.call_id: 0}
    session.disconnected("it broke", 3.0)
    session.connected(4.0, controller_epoch=7)
    session.retry(4.0)
    epochs = {call.call_id: call.sent_epoch for call in calls(session)}
    assert epochs == {entry.call_id: 5, refused.call_id: 6}


def test_a_task_that_was_refused_waits_for_no_other() -> None:
    """Those that were sent after it may take long, and tasks have no order."""
    session = Session()
    session.connected(0.0)
    first, second = task(session), task(session)
    session.accept()
    assert sent(session) == [first.call_id, second.call_id]
    refuse(session, first, 0.0)
    session.retry(1.0)
    assert sent(session) == [first.call_id]


class Lossy(RuleBasedStateMachine):
    """A session, and a controller that runs each call at most once, refuses, answers late, and is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session({0: 1, 1: 1})
        self.entries: list[Entry] = []
        self.states: dict[int, State] = {}
        self.order: dict[int, list[int]] = {0: [], 1: []}
        self.wire: list[frame_pb2.Call] = []
        self.taken: dict[int, int] = {}  # engine by call id: accepted by the host, in order
        self.gate: dict[int, int] = {}
        self.answers: list[int] = []
        self.refusals: list[int] = []
        self.uploading: list[Entry] = []
        self.now = 0.0
        self.up = True

    def watch(self) -> None:
        for entry in self.entries:
            state = self.session.state_of(entry)
            before = self.states.get(entry.call_id, State.NEW)
            assert state is before or state in TRANSITIONS[before], (before, state)
            self.states[entry.call_id] = state

    @rule(engine_id=st.sampled_from([0, 1]), upload=st.booleans())
    def call(self, engine_id: int, upload: bool) -> None:
        self.entries.append(submit(self.session, engine_id=engine_id, upload=upload, now=self.now))
        self.watch()
        self.uploading += self.session.accept()
        self.watch()

    @precondition(lambda self: self.uploading)
    @rule()
    def upload_ends(self) -> None:
        self.uploading += self.session.uploaded(self.uploading.pop(0))
        self.watch()

    @precondition(lambda self: self.up)
    @rule()
    def write(self) -> None:
        self.wire += calls(self.session)
        self.watch()

    @precondition(lambda self: self.wire)
    @rule(full=st.booleans())
    def arrive(self, full: bool) -> None:
        call = self.wire.pop(0)
        gate = self.gate.get(call.engine_id)
        if call.call_id in self.taken:
            return  # joins what it began; its answer comes when that one's does
        if gate is not None and gate != call.call_id:
            full = True
        if full:
            self.gate.setdefault(call.engine_id, call.call_id)
            self.refusals.append(call.call_id)
        else:
            self.gate.pop(call.engine_id, None)
            self.taken[call.call_id] = call.engine_id
            self.order[call.engine_id].append(call.call_id)
            self.answers.append(call.call_id)

    def entry_of(self, call_id: int) -> Entry:
        return next(entry for entry in self.entries if entry.call_id == call_id)

    @precondition(lambda self: self.up and self.answers)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        call_id = data.draw(st.sampled_from(self.answers))
        entry = self.entry_of(call_id)
        if self.session.state_of(entry) is State.SENT:  # else it is not on this connection yet
            self.answers.remove(call_id)
            reply(self.session, entry)
        self.watch()

    @precondition(lambda self: self.up and self.refusals)
    @rule()
    def refused(self) -> None:
        refuse(self.session, self.entry_of(self.refusals.pop(0)), self.now)
        self.watch()

    @rule()
    def time_passes(self) -> None:
        self.now += 0.5
        if self.up:
            self.uploading += self.session.retry(self.now)
        self.watch()

    @precondition(lambda self: self.up)
    @rule(arrives=st.integers(0, 3))
    def connection_breaks(self, arrives: int) -> None:
        for _ in range(min(arrives, len(self.wire))):
            self.arrive(full=False)
        self.wire.clear()
        self.refusals.clear()
        self.up = False
        self.session.disconnected("cut", self.now)
        self.watch()

    @precondition(lambda self: not self.up)
    @rule()
    def connects(self) -> None:
        self.gate.clear()
        self.up = True
        self.session.connected(self.now)

    @invariant()
    def runs_in_order(self) -> None:
        for order in self.order.values():
            assert order == sorted(order)

    def teardown(self) -> None:
        """Whatever happened, with a network that works every call runs once and is answered once."""
        if not self.up:
            self.connects()
        for _ in range(1000):
            while self.uploading:
                self.upload_ends()
            self.time_passes()
            self.write()
            while self.wire:
                self.arrive(full=False)
            while self.refusals:
                self.refused()
            for call_id in list(self.answers):
                entry = self.entry_of(call_id)
                if self.session.state_of(entry) is State.SENT:
                    self.answers.remove(call_id)
                    reply(self.session, entry)
            if all(entry.operation.done() for entry in self.entries):
                break
        assert all(entry.operation.done() for entry in self.entries)
        assert sorted(self.taken) == [entry.call_id for entry in self.entries]
        assert (self.session.unsent_count, self.session.waiting_count) == (0, 0)
        self.runs_in_order()


TestLossy = Lossy.TestCase
TestLossy.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
