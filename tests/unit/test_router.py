"""The router of one engine, driven by every order of events."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller_service.gates import GATE_SECONDS, MAX_GATES
from controller_service.link import Link
from controller_service.receipts import EVERY, MAX_NOTES, Receipts
from controller_service.router import (
    CALL_OVERHEAD,
    MAX_SUBMITTED,
    RESERVE,
    RoutedCall,
    Router,
)
from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2

EXECUTE, SUBMIT, CANCEL = METHODS["Execute"], METHODS["Submit"], METHODS["Cancel"]
LIMIT = 10_000
_numbers = count(1)


@dataclass
class FakeReceiver:
    """Collects replies; `is_gone` as a stream that has ended."""

    is_gone: bool = False
    replies: list[frame_pb2.Reply] = field(default_factory=list)

    def deliver(self, reply: frame_pb2.Reply) -> None:
        self.replies.append(reply)


class FakeOwner:
    """A reference without the loop: what it is told goes to the router."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.answered: list[RoutedCall] = []

    def answer(self, call: RoutedCall, reply: frame_pb2.Reply) -> None:
        if self.router.answered(call):
            self.answered.append(call)

    def accepted(self, call: RoutedCall) -> None:
        self.router.accepted(call)


def make(
    router: Router,
    *,
    operation: bytes = b"",
    session: bytes = b"sessionA",
    method: int = EXECUTE,
    size: int = 100,
    owner: FakeOwner | None = None,
) -> RoutedCall:
    """Return a call of `size` bytes."""
    number = next(_numbers)
    operation_id = operation or number.to_bytes(16, "big")
    frame = bytes(size)
    return RoutedCall(
        number, owner or FakeOwner(router), FakeReceiver(), number, method, operation_id, session, frame
    )


def submit(router: Router, call: RoutedCall, now: float = 0.0) -> str:
    """Add `call`, or return the reason for which it is refused."""
    if not router.has_room(call):
        error = router.refuse(call, now)
        if error is not None:
            return error.reason
    router.add(call)
    return ""


def parse(frame: bytes) -> frame_pb2.Call:
    """Return the call in a frame for a host."""
    (call,) = engine_pb2.ControllerMessage.FromString(frame).calls
    return call


# ---- what is told again


def test_a_call_is_told_again_until_its_reply_comes() -> None:
    """What has no reply is sent on every new stream, in order; what has is not."""
    router = Router(0, LIMIT)
    calls = [make(router) for _ in range(3)]
    for call in calls:
        submit(router, call)
    assert router.connected(()) == calls
    assert router.answered(calls[1])
    assert router.disconnected() == [calls[0], calls[2]]
    again = router.connected(())
    assert [router.frame(call) for call in again] == [calls[0].frame, calls[2].frame]
    assert not router.answered(calls[1]), "a second reply ends nothing"


@pytest.mark.parametrize("how", ["accepted", "inventory"])
def test_what_the_host_has_is_named_only(how: str) -> None:
    """The request of an operation is dropped once its host has it; then it is told by its id, as known."""
    router = Router(7, LIMIT)
    call = make(router, size=5_000)
    submit(router, call)
    router.connected(())
    if how == "accepted":
        router.accepted(call)
        assert router.statistics().waiting_bytes == CALL_OVERHEAD
    router.disconnected()
    inventory = {call.operation_id} if how == "inventory" else set()
    (again,) = router.connected(inventory)
    frame = router.frame(again, inventory)
    assert again is call
    sent = parse(frame)
    assert (sent.known, sent.request, sent.operation_id) == (True, b"", call.operation_id)
    assert (sent.call_id, sent.engine_id, sent.session_id) == (call.number, 7, b"sessionA")
    assert sent.method == EXECUTE
    assert router.statistics().waiting_bytes == CALL_OVERHEAD


@pytest.mark.parametrize("method", [CANCEL, SUBMIT, 999])
def test_other_calls_keep_their_requests(method: int) -> None:
    """What is no operation cannot be joined by id: it is told again in full."""
    router = Router(0, LIMIT)
    call = make(router, method=method)
    submit(router, call)
    router.connected(())
    router.accepted(call)
    router.disconnected()
    assert router.connected({call.operation_id}) == [call]
    assert router.frame(call, {call.operation_id}) == call.frame != b""
    assert call.frame


def test_loss_ends_every_call() -> None:
    """All that wait are returned, once, and nothing stays."""
    router = Router(0, LIMIT)
    calls = [make(router) for _ in range(3)]
    for call in calls:
        submit(router, call)
    assert router.lose() == (calls, {})
    assert router.lose() == ([], {})
    assert not any(map(router.answered, calls))
    assert (router.statistics().waiting_calls, router.statistics().waiting_bytes) == (0, 0)


def test_submitted_operations_are_lost_too() -> None:
    """What the host has without a call, by a Submit or by its inventory, is lost unless it has ended."""
    router = Router(0, LIMIT)
    call = make(router, operation=b"c" * 16)
    submit(router, call)
    router.submitted(b"s" * 16, b"sessionA")
    router.submitted(b"e" * 16, b"sessionA")
    router.connected([b"c" * 16, b"s" * 16, b"i" * 16])
    router.ended(b"e" * 16)
    assert router.lose() == ([call], {b"s" * 16: b"sessionA", b"i" * 16: b""})


def test_submitted_operations_that_were_released_are_not_lost() -> None:
    """The host does not say how they end, so nobody may be told that they were lost."""
    router = Router(0, LIMIT)
    router.submitted(b"s" * 16, b"sessionA")
    router.released([b"s" * 16, b"unknown" * 2])
    assert router.lose() == ([], {})


def test_submitted_operations_are_bounded() -> None:
    """Of too many the oldest are forgotten."""
    router = Router(0, LIMIT)
    for number in range(MAX_SUBMITTED + 1):
        router.submitted(number.to_bytes(16, "big"), b"")
    _, submitted = router.lose()
    assert len(submitted) == MAX_SUBMITTED
    assert bytes(16) not in submitted


# ---- taking over


def test_a_call_sent_again_takes_over_from_a_deserted_one() -> None:
    """The same operation of the same session, left by its receiver, gets the new one: nothing is sent."""
    router = Router(0, LIMIT)
    first = make(router, operation=b"o" * 16)
    submit(router, first)
    again = make(router, operation=b"o" * 16)
    assert not router.adopt(again), "somebody waits for it"
    assert isinstance(first.receiver, FakeReceiver)
    first.receiver.is_gone = True
    assert not router.adopt(make(router, operation=b"o" * 16, session=b"sessionB"))
    assert not router.adopt(make(router, operation=b"o" * 16, method=SUBMIT))
    assert not router.adopt(make(router, operation=b"p" * 16))
    assert router.adopt(again)
    assert (first.receiver, first.given_id) == (again.receiver, again.given_id)
    assert router.statistics().waiting_calls == 1


def test_the_latest_call_of_an_operation_is_found() -> None:
    """Two calls may wait for one operation; the end of the older does not hide the newer."""
    router = Router(0, LIMIT)
    older, newer = make(router, operation=b"o" * 16), make(router, operation=b"o" * 16)
    for call in (older, newer):
        submit(router, call)
    router.answered(older)
    assert router.find(b"o" * 16) is newer
    router.answered(newer)
    assert router.find(b"o" * 16) is None


# ---- the bound


def test_a_full_router_refuses() -> None:
    """QUEUE_FULL while connected, ENGINE_AWAY while not; too large a call is refused whatever room there is."""
    router = Router(3, LIMIT)
    submit(router, make(router, size=9_000))
    assert submit(router, make(router, size=9_000)) == "ENGINE_AWAY"
    router.connected(())
    assert submit(router, make(router, size=9_000)) == "QUEUE_FULL"
    assert submit(Router(3, 1 << 30), make(router, size=9 << 20)) == "VALUE_TOO_LARGE"


def test_accepted_requests_make_room() -> None:
    """What the host has does not count against the limit but for its overhead."""
    router = Router(0, LIMIT)
    router.connected(())
    calls = [make(router, size=5_000, session=b"") for _ in range(2)]
    assert [submit(router, call) for call in calls] == ["", "QUEUE_FULL"]
    router.accepted(calls[0])
    assert submit(router, calls[1]) == ""


def test_control_calls_have_a_reserve() -> None:
    """A full router can still be told to cancel; but the reserve has an end, too."""
    router = Router(0, LIMIT)
    submit(router, make(router, size=9_000))
    assert submit(router, make(router, size=9_000, method=CANCEL)) == ""
    assert submit(router, make(router, size=RESERVE, method=CANCEL)) == "ENGINE_AWAY"


def test_nothing_overtakes_what_was_refused() -> None:
    """Once an operation is refused, later ones of its session are, until it comes again; others are not."""
    router = Router(0, LIMIT)
    router.connected(())
    waiting, big = make(router, size=7_000), make(router, size=5_000)
    small, other = make(router), make(router, session=b"sessionB")
    assert submit(router, waiting) == ""
    assert submit(router, big) == "QUEUE_FULL"
    assert submit(router, small) == "QUEUE_FULL"
    assert submit(router, other) == ""
    assert submit(router, make(router, session=b"")) == ""
    assert submit(router, make(router, method=CANCEL)) == ""
    router.answered(waiting)
    assert submit(router, small) == "QUEUE_FULL", "there is room, but it must not overtake"
    assert submit(router, big) == ""
    assert submit(router, small) == ""
    assert router.statistics().gated_sessions == 0


def test_a_refused_operation_that_never_comes_again_holds_nobody_back_for_long() -> None:
    """Its session goes on after GATE_SECONDS; each try of the refused one begins them anew."""
    router = Router(0, LIMIT)
    router.connected(())
    waiting, big, small = make(router, size=7_000), make(router, size=5_000), make(router)
    submit(router, waiting)
    assert submit(router, big, now=0.0) == "QUEUE_FULL"
    assert submit(router, big, now=5.0) == "QUEUE_FULL"
    assert submit(router, small, now=GATE_SECONDS + 1) == "QUEUE_FULL"
    assert submit(router, small, now=GATE_SECONDS + 5) == ""


def test_gates_are_bounded() -> None:
    """With too many sessions held back, the one that was refused first is let go."""
    router = Router(0, LIMIT)
    router.connected(())
    submit(router, make(router, size=9_400))
    for number in range(MAX_GATES + 1):
        call = make(router, session=number.to_bytes(8, "big"), size=1_000)
        assert submit(router, call) == "QUEUE_FULL"
    assert router.statistics().gated_sessions == MAX_GATES


# ---- the stream


def test_a_host_cannot_accept_what_was_not_sent() -> None:
    """A count beyond what was sent is PROTOCOL_ERROR; one that was told already changes nothing."""
    router = Router(0, LIMIT)
    sent: list[bytes] = []
    link = Link(1, sent.append, lambda _error: None)
    owner = FakeOwner(router)
    calls = [make(router, owner=owner) for _ in range(3)]
    for call in calls:
        submit(router, call)
        link.post(call, call.frame)
    for counted in (2, 1, 2):
        link.accepted(counted)
        assert [bool(call.frame) for call in calls] == [False, False, True]
    with pytest.raises(DeliveryError) as caught:
        link.accepted(4)
    assert caught.value.reason == "PROTOCOL_ERROR"
    link.withdraw(calls)
    link.answer(frame_pb2.Reply(call_id=calls[0].number))
    assert not owner.answered, "a stream that was left answers nothing"


# ---- receipts


def test_hosts_are_told_what_is_committed() -> None:
    """A count is told once all that the journal had been given by then is committed, and only once."""
    receipts = Receipts()
    assert receipts.settle(appended=5, committed=5) is None
    receipts.take(3)
    assert receipts.settle(appended=8, committed=5) is None
    receipts.take(1)
    assert receipts.settle(appended=9, committed=8) == 3
    assert receipts.settle(appended=9, committed=8) is None
    assert receipts.settle(appended=9, committed=9) == 4


def test_without_a_journal_all_is_told_at_once() -> None:
    """Nothing is given to it, so nothing is waited for."""
    receipts = Receipts()
    receipts.take(7)
    assert receipts.settle(appended=0, committed=0) == 7


def test_receipts_are_bounded_and_due_after_many() -> None:
    """While the journal stands still few notes are kept, and what is told is never too much."""
    receipts = Receipts()
    for step in range(1, 3 * MAX_NOTES):
        receipts.take(EVERY)
        assert receipts.is_due
        assert receipts.settle(appended=step, committed=0) is None
        assert not receipts.is_due
    assert repr(receipts).endswith(f"notes={MAX_NOTES})")
    assert receipts.settle(appended=3 * MAX_NOTES, committed=1) == EVERY
    assert receipts.settle(appended=3 * MAX_NOTES, committed=3 * MAX_NOTES) == receipts.taken


def test_what_the_journal_missed_is_never_told_to_be_safe() -> None:
    """Nothing from there on counts on this stream; once the journal goes on, only another one helps."""
    receipts = Receipts()
    receipts.take(3)
    receipts.miss(appended=5)
    receipts.take(2)
    receipts.miss(appended=7)
    assert receipts.settle(appended=9, committed=4) is None
    assert (receipts.is_stuck, receipts.settle(appended=9, committed=5)) == (False, 3)
    assert receipts.is_stuck, "the disk takes records again"
    assert receipts.settle(appended=9, committed=9) is None


# ---- every order of events


class Life(RuleBasedStateMachine):
    """Clients submit and try again, streams break and lose what was on its way, a host runs and answers.

    Each call is answered once; the host begins the operations of a session in the order in which they were
    accepted here, none twice; what it has need not come again in full.
    """

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(0, 4_000)
        self.link: Link | None = None
        self.wire: list[bytes] = []  # on its way down
        self.owner = FakeOwner(self.router)
        self.calls: dict[int, RoutedCall] = {}
        self.retry: dict[bytes, list[RoutedCall]] = {}
        self.order: dict[bytes, list[bytes]] = {}  # by session, as submitted
        self.begun: list[tuple[bytes, bytes]] = []  # at the host
        self.received = 0
        self.unanswered: dict[int, bytes] = {}  # at the host, by call id on this stream
        self.now = 0.0

    def _submit(self, call: RoutedCall) -> bool:
        if submit(self.router, call, self.now):
            return False
        self.calls[call.number] = call
        if self.link is not None:
            self.link.post(call, call.frame)
        return True

    @rule(session=st.sampled_from([b"sessionA", b"sessionB"]), size=st.sampled_from([10, 900, 1_500]))
    def call(self, session: bytes, size: int) -> None:
        call = make(self.router, session=session, owner=self.owner)
        request = frame_pb2.Call(
            call_id=call.number,
            method=frame_pb2.METHOD_EXECUTE,
            operation_id=call.operation_id,
            session_id=session,
        )
        request.request = bytes(size)
        call.frame = engine_pb2.ControllerMessage(calls=[request]).SerializeToString()
        self.order.setdefault(session, []).append(call.operation_id)
        if not self._submit(call):
            self.retry.setdefault(session, []).append(call)

    @precondition(lambda self: any(self.retry.values()))
    @rule()
    def come_again(self) -> None:
        self.now += 0.5
        for calls in self.retry.values():
            calls[:] = [call for call in calls if not self._submit(call)]

    @precondition(lambda self: self.link is None)
    @rule(knows=st.booleans())
    def connect(self, knows: bool) -> None:
        self.link = Link(1, self.wire.append, lambda _error: None)
        self.received = 0
        inventory = {operation for _, operation in self.begun} if knows else set()
        for call in self.router.connected(inventory):
            frame = self.router.frame(call, inventory)
            self.link.post(call, frame)

    @precondition(lambda self: self.link is not None)
    @rule()
    def disconnect(self) -> None:
        assert self.link is not None
        self.link.withdraw(self.router.disconnected())
        self.link = None
        self.wire.clear()
        self.unanswered.clear()

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, len(self.wire)))):
            call = parse(self.wire.pop(0))
            self.received += 1
            identity = (call.session_id, call.operation_id)
            if identity not in self.begun:
                assert not call.known, "the host was never sent its request"
                assert call.request
                self.begun.append(identity)
            self.unanswered[call.call_id] = call.operation_id

    @precondition(lambda self: self.link is not None)
    @rule()
    def accept(self) -> None:
        assert self.link is not None
        self.link.accepted(self.received)

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        assert self.link is not None
        number = data.draw(st.sampled_from(sorted(self.unanswered)))
        del self.unanswered[number]
        self.link.answer(frame_pb2.Reply(call_id=number))

    @invariant()
    def counts_are_true(self) -> None:
        waiting = [call for call in self.calls.values() if call not in self.owner.answered]
        statistics = self.router.statistics()
        assert statistics.waiting_calls == len(waiting)
        assert statistics.waiting_bytes == sum(len(call.frame) + CALL_OVERHEAD for call in waiting)

    @invariant()
    def nothing_overtakes_and_nothing_runs_twice(self) -> None:
        for session, order in self.order.items():
            begun = [operation for one, operation in self.begun if one == session]
            assert begun == order[: len(begun)]

    def teardown(self) -> None:
        """Whatever happened, the rest is answered once the network is whole."""
        if self.link is None:
            self.connect(knows=True)
        while any(self.retry.values()) or self.router.statistics().waiting_calls:
            while self.wire:
                call = parse(self.wire.pop(0))
                assert self.link is not None
                self.link.answer(frame_pb2.Reply(call_id=call.call_id))
            assert self.link is not None
            for number in list(self.unanswered):
                self.link.answer(frame_pb2.Reply(call_id=number))
            self.unanswered.clear()
            self.come_again()
        answered = [call.operation_id for call in self.owner.answered]
        assert len(answered) == len(set(answered)) == sum(map(len, self.order.values()))


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
