"""Calls and replies of one client, without I/O: what to send next, and whose answer a reply is.

Calls are submitted by any thread; everything else happens on the loop's thread. Calls of one engine are sent in
the order in which they were submitted: one whose values are still being uploaded, and one that the engine did
not take, hold back those behind them, on their engine alone. Control calls pass. The calls of one engine go one
way, to the controller or to its host, and change over when none is unanswered. A call is kept until it is
answered: when the connection breaks, what was not answered is sent again on the next one, under the same id, in
order. Time is an argument. docs/machines/session.md tells all of it.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from enginery import _call_frame, _ids
from enginery._entry import Entry, State
from enginery._function_window import FunctionWindow
from enginery._lane import Hold, Lane, by_call_id
from enginery._methods import ANY_ENGINE, METHODS, OPERATIONS, PYTHON_NAMES
from enginery._path import Path, Ways
from enginery._reasons import DeliveryError
from enginery._room import Room
from enginery._shared_call import SharedCall
from enginery.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from enginery._calls import Request
    from enginery._decode import Errors

T = TypeVar("T")

BATCH_CALLS = 256
BATCH_BYTES = 512 << 10
"""How much goes into one message: enough to spare most of the cost of a message, too little to delay a call."""
PATIENCE = 60.0
"""Seconds without an answer of an engine after which calls that it does not take fail."""

CONTROL = frozenset(METHODS.values()) - frozenset(OPERATIONS)
"""Calls that engines answer at once: they do not wait for what waits before them."""
ONCE = frozenset({METHODS["Interrupt"], METHODS["ClearQueue"]})
"""Calls that are not sent again, since they would hit what is there by then."""
RETRIED = frozenset({"QUEUE_FULL", "ENGINE_AWAY", "SHUTTING_DOWN"})
"""Reasons for which a call has not run, and is sent again later."""


@dataclass(slots=True)
class Counters:
    """What a session did so far."""

    calls: int = 0
    replies: int = 0
    messages: int = 0
    failures: int = 0
    refusals: int = 0
    resent: int = 0
    direct: int = 0


class Session:
    """Calls out, replies in."""

    def __init__(self, epochs: Mapping[int, int] | None = None, session_id: bytes | None = None) -> None:
        """Begin a session, by default with a new id. `epochs` are those of the engines there are, kept up to
        date by its owner."""
        self.session_id = session_id or _ids.new_session_id()
        self.counters = Counters()
        self._epochs = {} if epochs is None else epochs
        self._call_ids = itertools.count(1)
        self.ways = Ways()
        self.relay = self.ways.relay
        self._lanes: dict[int, Lane] = {}
        self._waiting: dict[int, Entry] = {}
        self.room = Room(self._waiting)
        self._broken_at: float | None = None
        self._controller_epoch = 0

    # ---- any thread

    def entry(self, request: Request[T], engine_id: int, errors: Errors, now: float) -> Entry:
        """Return the call of `request` on an engine, ready to be submitted, with a new operation."""
        call_id = next(self._call_ids)
        operation = Operation(request, engine_id, _ids.operation_id(self.session_id, call_id), errors)
        # The operation id is the session's and the call's, so it need not travel.
        frame = _call_frame.frame(call_id, engine_id, request)
        return Entry(call_id, operation, request, frame, request.uploads, now, self._epochs.get(engine_id, 0))

    def entries(
        self, request: Request[T], engine_ids: Sequence[int], errors: Errors, now: float
    ) -> list[Entry]:
        """Return the calls of one request on engines; on several, ready to be sent as one."""
        if len(engine_ids) == 1:
            return [self.entry(request, engine_ids[0], errors, now)]
        shared = SharedCall(request, len(engine_ids) or 1)
        made = []
        for call_id, engine_id in zip(self._ids_in_a_row(len(engine_ids)), engine_ids, strict=True):
            operation = Operation(request, engine_id, _ids.operation_id(self.session_id, call_id), errors)
            epoch = self._epochs.get(engine_id, 0)
            made.append(Entry(call_id, operation, request, b"", request.uploads, now, epoch, shared))
        return made

    def _ids_in_a_row(self, count: int) -> list[int]:
        while True:
            ids = [next(self._call_ids) for _ in range(count)]
            if not ids or ids[-1] - ids[0] == count - 1:  # else another thread took one between them
                return ids

    def submit(self, entries: list[Entry], *, may_wait: bool, is_urgent: bool = False) -> None:
        """Queue calls. While too much is unsent or unanswered this waits, or raises QUEUE_FULL unless it
        `may_wait`; but not if it `is_urgent`."""
        self.room.enter(entries, may_wait=may_wait, is_urgent=is_urgent)

    # ---- the loop's thread: calls out

    def accept(self) -> list[Entry]:
        """Sort what was submitted; return the calls whose uploads are to be started now."""
        starting = []
        inbox = self.room.inbox
        while inbox:
            entry = inbox.popleft()
            engine_id = entry.operation.target
            self.ways.begin(engine_id)
            if entry.request.method in CONTROL:
                self.ways.of(engine_id).outbox.append(entry)
            elif engine_id in self._lanes:
                self._lanes[engine_id].entries.append(entry)
            elif entry.uploads:
                lane = self._lanes[engine_id] = Lane([entry])
                starting += lane.next_upload()
            else:
                self.ways.of(engine_id).outbox.append(entry)
        return starting

    def uploaded(self, entry: Entry) -> list[Entry]:
        """Send `entry`, whose values are there now, and what waited behind it; return the next one to
        upload."""
        lane = self._lanes.get(entry.operation.target)
        if lane is None or lane.uploading is not entry:
            return []  # it was given up meanwhile
        entry.uploads = ()
        return self._go_on(lane, entry.operation.target)

    def upload_failed(self, entry: Entry, error: DeliveryError) -> list[Entry]:
        """End `entry` with `error`, and return the next one to upload. What waited behind it on its engine is
        cleared, as after any failure, unless the call said otherwise."""
        engine_id = entry.operation.target
        lane = self._lanes.get(engine_id)
        if lane is None or lane.uploading is not entry:
            return []
        place = lane.entries.index(entry)
        behind = lane.entries[place + 1 :]
        self._fail(entry, error)
        if entry.request.options.keep_queue:
            del lane.entries[place]
        else:
            del lane.entries[place:]
            cause = f"the {PYTHON_NAMES[entry.request.method]} before it could not be sent ({error.text})"
            for cleared in behind:
                self._fail(cleared, DeliveryError("QUEUE_CLEARED", engine_id=engine_id, cause=cause))
        return self._go_on(lane, engine_id)

    def _go_on(self, lane: Lane, engine_id: int) -> list[Entry]:
        """Send what may go after an upload has ended, and return the next one to upload."""
        lane.uploading = None
        if lane.hold is not None:
            return []  # the next round does both
        self.ways.of(engine_id).outbox.extend(lane.release())
        if not lane.entries:
            del self._lanes[engine_id]
        return lane.next_upload()

    def take(self, path: Path | None = None) -> bytes | None:
        """Return the next message to send on a path, by default the relay's; None if there is none. Its calls
        wait for their replies from now on."""
        path = path or self.relay
        outbox = path.outbox
        frames: list[bytes] = []
        calls = size = 0
        while outbox and calls < BATCH_CALLS and (not frames or size < BATCH_BYTES):
            entry = outbox.popleft()
            function = entry.request.function
            if function is not None and function not in path.functions:
                path.functions.add(function)
                frames.append(_call_frame.function_frame(function))
                size += len(frames[-1])
            if entry.shared is not None:
                together = self._take_together(entry, entry.shared, outbox)
                calls += len(together)
                frames.append(self._shared_frame(together, entry.shared, path))
                size += len(frames[-1])
                continue
            frame = entry.frame
            if entry.sendings:
                frame = entry.again()
                self.counters.resent += 1
            elif entry.request.task is not None:
                entry.epoch = self._controller_epoch
            elif entry.epoch != self._epochs.get(entry.operation.target, 0):
                frame = entry.again()  # it goes to the engine that was meant, or to none
            entry.sendings += 1
            entry.path = path
            calls += 1
            frames.append(frame)
            size += len(frame)
            self._waiting[entry.call_id] = entry
        if not frames:
            return None
        path.functions.trim()
        self.counters.calls += calls
        if path.is_direct:
            self.counters.direct += calls
        self.counters.messages += 1
        if self.room.has_stalled:
            self.room.wake()
        return b"".join(frames)

    def _take_together(self, entry: Entry, shared: SharedCall, outbox: deque[Entry]) -> list[Entry]:
        """Return `entry` and those behind it in the outbox that are the same call on other engines."""
        together = [entry]
        while (
            outbox
            and len(together) < BATCH_CALLS
            and outbox[0].shared is shared
            and outbox[0].call_id == together[-1].call_id + 1
        ):
            together.append(outbox.popleft())
        return together

    def _shared_frame(self, together: list[Entry], shared: SharedCall, path: Path) -> bytes:
        targets = []
        for entry in together:
            engine_id = entry.operation.target
            is_current = not entry.sendings and entry.epoch == self._epochs.get(engine_id, 0)
            targets.append((engine_id, 0 if is_current else entry.epoch))
            self.counters.resent += bool(entry.sendings)
            entry.sendings += 1
            entry.path = path
            self._waiting[entry.call_id] = entry
        return shared.frame(together[0].call_id, targets)

    def withdraw(self, operation: Operation[Any], *, arrived: bool = True) -> list[Entry] | None:
        """End a call that is not on its way as cancelled, and return uploads to start; None if it is.

        One that was sent on an earlier connection is on its way, unless it is known not to have `arrived`.
        """
        lane = self._lanes.get(operation.target, Lane())
        outbox = self.ways.of(operation.target).outbox
        for entry in (*outbox, *lane.entries):
            if entry.operation is operation and (not entry.sendings or not arrived):
                break
        else:
            return None
        self._fail(entry, entry.withdrawn())
        if entry in outbox:
            outbox.remove(entry)
            return []
        lane.entries.remove(entry)
        return self._go_on(lane, operation.target) if lane.uploading is entry else []

    # ---- the loop's thread: replies in

    def replied(self, call_id: int, path: Path | None = None) -> Entry | None:
        """Return the call that a reply answers, None if nobody waits for it on that path, by default the
        relay's; `done`, `refuse` or `not_there` comes next."""
        self.counters.replies += 1
        entry = self._waiting.get(call_id)
        if entry is None or entry.path is not (path or self.relay):
            return None
        del self._waiting[call_id]
        if self._lanes:
            lane = self._lanes.get(entry.operation.target)
            if lane is not None and lane.hold is not None:
                lane.hold.behind.discard(call_id)
        return entry

    def done(self, entry: Entry) -> None:
        """Let go of a call that was answered."""
        self.room.leave(entry.size)
        self.ways.end(entry.operation.target)
        if self._lanes:
            lane = self._lanes.get(entry.operation.target)
            if lane is not None and lane.hold is not None:
                lane.hold.answer()

    def refuse(self, entry: Entry, error: DeliveryError, hint: float, now: float) -> None:
        """Send a call that was answered with one of RETRIED again, later; and what is behind it after it.

        `hint` is what the answer said of when, in seconds.
        """
        self.counters.refusals += 1
        if entry.sendings == 1:  # it is known not to have run; an earlier sending may have
            entry.sendings = 0
        if entry.operation.is_stopping:
            self._fail(entry, entry.withdrawn())
            return
        engine_id = entry.operation.target
        lane = self._lanes.setdefault(engine_id, Lane())
        if lane.hold is None:
            lane.hold = Hold(error, now)
        if lane.insert(entry):
            self._recall(engine_id, lane)
            if engine_id != ANY_ENGINE:  # tasks have no order
                lane.hold.behind = {
                    call_id
                    for call_id, sent in self._waiting.items()
                    if call_id > entry.call_id
                    and sent.operation.target == engine_id
                    and sent.request.method not in CONTROL
                }
        lane.hold.refuse(error, hint, now)

    def _recall(self, engine_id: int, lane: Lane) -> None:
        """Move what is about to be sent to an engine behind what it refused."""
        path = self.ways.of(engine_id)
        staying: deque[Entry] = deque()
        for entry in path.outbox:
            if entry.operation.target == engine_id and entry.request.method not in CONTROL:
                lane.insert(entry)
            else:
                staying.append(entry)
        path.outbox = staying

    def retry(self, now: float) -> list[Entry]:
        """Send again what is due; return the calls whose uploads are to be started now."""
        starting = []
        for engine_id, lane in list(self._lanes.items()):
            hold = lane.hold
            if hold is None or now < hold.next_at or not self._has_way(engine_id):
                continue
            if now < hold.due:
                self.ways.of(engine_id).outbox.extend(lane.release(hold.room))
                starting += lane.next_upload()
                hold.room = 0
            elif self._is_stuck(engine_id, hold, now):
                del self._lanes[engine_id]
                for entry in lane.entries:
                    self._fail(entry, DeliveryError(hold.refusal.reason, **hold.refusal.metadata))
            elif hold.behind:
                hold.due = now + hold.delay
            elif not lane.entries:
                del self._lanes[engine_id]
            else:
                hold.begin_round(now)
                self.ways.of(engine_id).outbox.extend(lane.release(hold.window))
                starting += lane.next_upload()
        return starting

    def _is_stuck(self, engine_id: int, hold: Hold, now: float) -> bool:
        """Return whether nothing of an engine has come for too long, and nothing is to be expected."""
        if hold.answered:
            hold.since, hold.answered = now, False
        if now - hold.since < PATIENCE:
            return False
        if any(entry.operation.target == engine_id for entry in self._waiting.values()):
            hold.since = now  # it took a call and is at it
            return False
        return True

    def next_retry(self) -> float | None:
        """Return when `retry` is to be called, None if nothing waits for that."""
        holds = [(lane.hold, self._has_way(engine_id)) for engine_id, lane in self._lanes.items()]
        return min((hold.next_at for hold, has_way in holds if hold is not None and has_way), default=None)

    def _has_way(self, engine_id: int) -> bool:
        return self._broken_at is None or self.ways.is_direct(engine_id)

    # ---- the loop's thread: connections

    def disconnected(self, cause: str, now: float) -> int:
        """Queue what was sent by the relay and not answered again, in its order, before all else; return how
        many calls there are now that wait for the next connection."""
        self._broken_at = now
        self._send_again([entry for entry in self._waiting.values() if entry.path is self.relay], cause)
        for engine_id, lane in self._lanes.items():
            if lane.hold is not None and not self.ways.is_direct(engine_id):
                self._recall(engine_id, lane)
        return self.unsent_count

    def _send_again(self, sent: list[Entry], cause: str) -> None:
        """Queue these, which were sent on a stream that is not used any more, for the relay."""
        again = []
        for entry in sorted(sent, key=by_call_id):
            del self._waiting[entry.call_id]
            lane = self._lanes.get(entry.operation.target)
            if entry.request.method in ONCE:
                self._fail(entry, DeliveryError("CONTROLLER_LOST", cause=cause))
            elif lane is not None and lane.hold is not None:
                lane.insert(entry)
            else:
                again.append(entry)
        self.relay.outbox.extendleft(reversed(again))

    # ---- the loop's thread: ways

    def leave(self, engine_ids: Collection[int], cause: str, now: float) -> None:
        """Let the calls of engines go by the relay from now on: those that were sent too, if they are not
        answered."""
        leaving = self.ways.leave(engine_ids)
        sent = [entry for entry in self._waiting.values() if entry.operation.target in leaving]
        for path in set(leaving.values()):
            staying: deque[Entry] = deque()
            for entry in path.outbox:
                (self.relay.outbox if entry.operation.target in leaving else staying).append(entry)
            path.outbox = staying
        self._send_again(sent, cause)
        for engine_id in leaving:
            lane = self._lanes.get(engine_id)
            if lane is not None and lane.hold is not None:
                self._recall(engine_id, lane)
                lane.hold.behind = set()
                lane.hold.due = now

    def not_there(self, entry: Entry, now: float) -> None:
        """Send a call again by the relay, with all others of its engine: the host of its path knows no such
        engine."""
        self._waiting[entry.call_id] = entry
        self.leave([entry.operation.target], "its host does not have the engine", now)

    def connected(self, now: float, controller_epoch: int = 0) -> None:
        """There is a connection again: what was refused on the old one may be taken now."""
        self._broken_at = None
        self._controller_epoch = controller_epoch
        self.relay.functions = FunctionWindow()
        for engine_id, lane in self._lanes.items():
            if lane.hold is not None and not self.ways.is_direct(engine_id):
                lane.hold.behind = set()
                lane.hold.since = lane.hold.due = now

    def expire(self, now: float, timeout: float, cause: str) -> None:
        """End the calls that have waited for a connection for `timeout` seconds; those that wait for an upload
        end with that."""
        if self._broken_at is None or now - self._broken_at < timeout:
            return
        latest = now - timeout
        outbox, self.relay.outbox = self.relay.outbox, deque()
        for entry in outbox:
            if entry.submitted_at <= latest:
                self._fail(entry, entry.lost(cause))
            else:
                self.relay.outbox.append(entry)
        for engine_id, lane in list(self._lanes.items()):
            if self.ways.is_direct(engine_id):
                continue
            while lane.entries and not lane.entries[0].uploads and lane.entries[0].submitted_at <= latest:
                expired = lane.entries.pop(0)
                self._fail(expired, expired.lost(cause))
            if not lane.entries:
                del self._lanes[engine_id]

    def close(self) -> None:
        """End every call and take no more."""
        self.room.close()
        self.accept()
        lanes = itertools.chain.from_iterable(lane.entries for lane in self._lanes.values())
        paths = self.ways.paths()
        outboxes = itertools.chain.from_iterable(path.outbox for path in paths)
        left = [*outboxes, *lanes, *self._waiting.values()]
        for path in paths:
            path.outbox.clear()
        self._lanes.clear()
        self._waiting.clear()
        for entry in left:
            self._fail(entry, entry.lost("this client was closed"))

    # ---- facts

    @property
    def is_holding(self) -> bool:
        """Whether an engine has refused a call that waits, so that `retry` is to be called."""
        return bool(self._lanes) and self.next_retry() is not None

    @property
    def has_submitted(self) -> bool:
        """Whether there are calls that `accept` has not looked at."""
        return bool(self.room.inbox)

    @property
    def unsent_count(self) -> int:
        """Calls that were submitted and are not on their way."""
        return self.room.unsent_count

    @property
    def waiting_count(self) -> int:
        """Calls that were sent and not answered."""
        return len(self._waiting)

    def state_of(self, entry: Entry) -> State:
        """Return where a call is. Slow: for tests and for people."""
        if entry.operation.done():
            return State.ENDED
        if entry.call_id in self._waiting:
            return State.SENT
        if entry in self.ways.of(entry.operation.target).outbox:
            return State.READY
        return State.NEW if entry in self.room.inbox else State.LANE

    def _fail(self, entry: Entry, error: DeliveryError) -> None:
        self.counters.failures += 1
        self.done(entry)
        entry.operation.fail(error)

    def __repr__(self) -> str:
        """Show how much is on its way."""
        return f"<Session {self.session_id.hex()}: {self.unsent_count} unsent, {self.waiting_count} waiting>"
