"""Calls and replies of one client, without I/O: what to send next, and whose answer a reply is.

Calls are submitted by any thread; everything else happens on the loop's thread. Calls of one engine are sent in
the order in which they were submitted: one whose values are still being uploaded holds back those behind it, on
its engine alone. Control calls pass. Time is an argument.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from enginery import _ids
from enginery._methods import METHODS, PYTHON_NAMES
from enginery._reasons import DeliveryError
from enginery.operation import Operation
from enginery.v1 import cluster_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enginery._calls import Request, Uploads
    from enginery._decode import Errors

T = TypeVar("T")

BATCH_CALLS = 256
BATCH_BYTES = 512 << 10
"""How much goes into one message: enough to spare most of the cost of a message, too little to delay a call."""
UNSENT_BYTES = 64 << 20
UNSENT_CALLS = 20_000
"""How much may wait to be sent before submitting waits too."""

CONTROL = frozenset(
    METHODS[name]
    for name in (
        "GetId",
        "GetResult",
        "GetProperties",
        "HasProperties",
        "Interrupt",
        "QueueStatus",
        "ClearQueue",
        "Kill",
    )
)
"""Calls that engines answer at once: they do not wait for the uploads of calls before them."""


@dataclass(slots=True, eq=False)
class Entry:
    """One call on its way out."""

    call_id: int
    operation: Operation[Any]
    request: Request[Any]
    frame: bytes
    """A serialized SessionRequest that holds this call alone; joined, such messages are one with all calls.
    Empty once it was sent."""
    uploads: Uploads
    """What must be uploaded first; empty once it was."""
    submitted_at: float


@dataclass(slots=True)
class Counters:
    """What a session did so far."""

    calls: int = 0
    replies: int = 0
    messages: int = 0
    failures: int = 0


class Session:
    """Calls out, replies in."""

    def __init__(self, session_id: bytes | None = None) -> None:
        """Begin a session, by default with a new id."""
        self.session_id = session_id or _ids.new_session_id()
        self.counters = Counters()
        self._call_ids = itertools.count(1)
        self._room = threading.Condition()
        self._unsent_bytes = 0
        self._unsent_calls = 0
        self._closed = False
        self._inbox: deque[Entry] = deque()
        self._outbox: deque[Entry] = deque()
        self._lanes: dict[int, deque[Entry]] = {}  # by engine: one that uploads, then those behind it
        self._waiting: dict[int, Entry] = {}

    # ---- any thread

    def entry(self, request: Request[T], engine_id: int, errors: Errors, now: float) -> Entry:
        """Return the call of `request` on an engine, ready to be submitted, with a new operation."""
        call_id = next(self._call_ids)
        operation = Operation(request, engine_id, _ids.operation_id(self.session_id, call_id), errors)
        # The operation id is the session's and the call's, so it need not travel.
        call = frame_pb2.Call(
            call_id=call_id,
            engine_id=engine_id,
            method=frame_pb2.Method.ValueType(request.method),
            request=request.payload,
        )
        frame = cluster_pb2.SessionRequest(calls=[call]).SerializeToString()
        return Entry(call_id, operation, request, frame, request.uploads, now)

    def submit(self, entries: list[Entry], *, may_wait: bool) -> None:
        """Queue calls. While too much is unsent this waits, or raises QUEUE_FULL unless it `may_wait`."""
        with self._room:
            while not self._closed and (
                self._unsent_bytes >= UNSENT_BYTES or self._unsent_calls >= UNSENT_CALLS
            ):
                if not may_wait:
                    raise DeliveryError(
                        "QUEUE_FULL",
                        engine_id=entries[0].operation.engine_id,
                        size=f"{self._unsent_calls} calls of this client are unsent",
                        option="nothing: this is a done-callback, which must not wait",
                    )
                self._room.wait()
            if self._closed:
                raise DeliveryError("NOT_SENT", cause="this client was closed")
            self._unsent_bytes += sum(len(entry.frame) for entry in entries)
            self._unsent_calls += len(entries)
            self._inbox.extend(entries)

    # ---- the loop's thread

    def accept(self) -> list[Entry]:
        """Sort what was submitted; return the calls whose uploads are to be started now."""
        starting = []
        while self._inbox:
            entry = self._inbox.popleft()
            engine_id = entry.operation.engine_id
            if entry.request.method in CONTROL:
                self._outbox.append(entry)
            elif engine_id in self._lanes:
                self._lanes[engine_id].append(entry)
            elif entry.uploads:
                self._lanes[engine_id] = deque([entry])
                starting.append(entry)
            else:
                self._outbox.append(entry)
        return starting

    def uploaded(self, entry: Entry) -> Entry | None:
        """Send `entry`, whose values are there now, and what waited behind it; return the next one to
        upload."""
        lane = self._lanes.get(entry.operation.engine_id)
        if lane is None or lane[0] is not entry:
            return None  # it was given up meanwhile
        entry.uploads = ()
        self._outbox.append(lane.popleft())
        while lane and not lane[0].uploads:
            self._outbox.append(lane.popleft())
        if lane:
            return lane[0]
        del self._lanes[entry.operation.engine_id]
        return None

    def upload_failed(self, entry: Entry, error: DeliveryError) -> None:
        """End `entry` with `error`; what waited behind it on its engine is cleared, as after any failure."""
        lane = self._lanes.get(entry.operation.engine_id)
        if lane is None or lane[0] is not entry:
            return
        del self._lanes[entry.operation.engine_id]
        self._free(lane)
        self._fail(entry.operation, error)
        for behind in list(lane)[1:]:
            cause = f"the {PYTHON_NAMES[entry.request.method]} before it could not be sent ({error.text})"
            self._fail(
                behind.operation,
                DeliveryError("QUEUE_CLEARED", engine_id=entry.operation.engine_id, cause=cause),
            )

    def take(self) -> bytes | None:
        """Return the next message to send, None if there is none. Its calls wait for their replies from now
        on."""
        batch: list[Entry] = []
        size = 0
        while self._outbox and len(batch) < BATCH_CALLS and (not batch or size < BATCH_BYTES):
            entry = self._outbox.popleft()
            batch.append(entry)
            size += len(entry.frame)
            self._waiting[entry.call_id] = entry
        if not batch:
            return None
        self._free(batch)
        self.counters.calls += len(batch)
        self.counters.messages += 1
        message = b"".join([entry.frame for entry in batch])
        for entry in batch:
            entry.frame = b""
        return message

    def replied(self, call_id: int) -> Entry | None:
        """Return the call that a reply ends, None if nobody waits for it."""
        self.counters.replies += 1
        return self._waiting.pop(call_id, None)

    def disconnected(self, cause: str) -> None:
        """End the calls that were sent and not answered; those that were not sent stay."""
        lost, self._waiting = self._waiting, {}
        for entry in lost.values():
            self._fail(entry.operation, DeliveryError("CONTROLLER_LOST", cause=cause))

    def expire(self, before: float, cause: str) -> None:
        """End the calls that were submitted before `before` and never sent."""
        expired = [entry for entry in self._outbox if entry.submitted_at < before]
        if not expired:
            return
        self._outbox = deque(entry for entry in self._outbox if entry.submitted_at >= before)
        self._free(expired)
        for entry in expired:
            self._fail(entry.operation, DeliveryError("NOT_SENT", cause=cause))

    def close(self) -> None:
        """End every call and take no more."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self.accept()
        unsent = [*self._outbox, *itertools.chain.from_iterable(self._lanes.values())]
        self._outbox.clear()
        self._lanes.clear()
        self._free(unsent)
        cause = "this client was closed"
        for entry in unsent:
            self._fail(entry.operation, DeliveryError("NOT_SENT", cause=cause))
        self.disconnected(cause)

    @property
    def unsent_count(self) -> int:
        """Calls that were submitted and not sent."""
        return self._unsent_calls

    @property
    def waiting_count(self) -> int:
        """Calls that were sent and not answered."""
        return len(self._waiting)

    def _fail(self, operation: Operation[Any], error: DeliveryError) -> None:
        self.counters.failures += 1
        operation.fail(error)

    def _free(self, entries: Iterable[Entry]) -> None:
        with self._room:
            for entry in entries:
                self._unsent_calls -= 1
                self._unsent_bytes -= len(entry.frame)
            self._room.notify_all()

    def __repr__(self) -> str:
        """Show how much is on its way."""
        return f"<Session {self.session_id.hex()}: {self.unsent_count} unsent, {self.waiting_count} waiting>"
