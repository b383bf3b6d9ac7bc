"""What is known of operations, and what happened to them: OperationInfo, Event, EventStream."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, cast

from enginery import _loop, _times, result
from enginery._methods import ANY_ENGINE
from enginery._reasons import DeliveryError, public
from enginery._requests import parse
from enginery.v1 import engine_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from enginery.result import Display

OperationStatus = Literal["queued", "running", "succeeded", "failed", "cancelled", "timed_out", "lost"]
"""How an operation stands."""

_PREFIX = "OPERATION_STATE_"
STATES: dict[int, OperationStatus] = {
    number: cast("OperationStatus", name.removeprefix(_PREFIX).lower())
    for name, number in operation_pb2.OperationState.items()
    if number
}
"""Names of the contract's states."""
ENDED = frozenset(STATES) - {operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_RUNNING}
"""States in which an operation has ended."""


def state_name(number: int) -> OperationStatus:
    """Return the name of a state; one that is not known yet is an end."""
    return STATES.get(number, "failed")


def state_numbers(names: str | list[str]) -> list[operation_pb2.OperationState.ValueType]:
    """Return the numbers of states by name; ValueError, listing the names, if there is no such state."""
    numbers = {name: number for number, name in STATES.items()}
    wanted = [names] if isinstance(names, str) else names
    for name in wanted:
        if name not in numbers:
            raise ValueError(f"no state {name!r}; there are: {', '.join(numbers)}")
    return [operation_pb2.OperationState.ValueType(numbers[cast("OperationStatus", name)]) for name in wanted]


@dataclass(frozen=True, slots=True, repr=False)
class OperationInfo:
    """How one operation stands. Times are UTC, and None for what has not happened or is not known."""

    operation_id: str
    state: OperationStatus
    engine_id: int
    method: str
    arguments: str = ""
    """Its arguments, shortened for people to read."""
    incarnation: str = ""
    """The kernel that ran it; empty until it begins to run."""
    session_id: str = ""
    """The session of the client that submitted it; empty if none did."""
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    progress_fraction: float | None = None
    """The fraction done, from 0 to 1, that it last reported; None if it reported none."""
    progress_text: str = ""
    last_sequence: int = 0
    """Sequence of its newest event."""
    stopping: bool = False
    """Whether it was asked to stop."""
    attempts: int = 0
    """How often it was run, if it is a task; 0 for one that was not placed yet, and for all others."""
    label: str = ""
    """The label of a task."""

    @property
    def id(self) -> str:
        """The same as `operation_id`."""
        return self.operation_id

    def __repr__(self) -> str:
        """Show what it is, where, and how it stands."""
        arguments = f" {result.short(self.arguments)!r}" if self.arguments else ""
        done = ""
        if self.state == "running" and self.progress_fraction is not None:
            done = f", {self.progress_fraction:.0%} {self.progress_text}".rstrip()
        stopping = ", stopping" if self.stopping and self.state == "running" else ""
        where = f"[{'any' if self.engine_id == ANY_ENGINE else self.engine_id}:{self.method}]"
        return f"<OperationInfo {where}{arguments} {self.state}{done}{stopping}, {self.operation_id}>"


def in_order(infos: Iterable[OperationInfo]) -> list[OperationInfo]:
    """Return operations as they were submitted, one caller's together, but for those that nobody has heard of.

    The ids of one caller count up in their second half. The times are those at which hosts heard of them, by
    ways of different length, so they only say which caller began first.
    """
    known = [(info.submitted_at, info) for info in infos if info.submitted_at is not None]
    began: dict[str, datetime] = {}
    for time, info in known:
        caller = info.operation_id[:18]
        began[caller] = min(time, began.get(caller, time))
    return sorted((info for _, info in known), key=lambda one: (began[one.operation_id[:18]], one.operation_id))


def from_message(operation: operation_pb2.Operation) -> OperationInfo:
    """Return what the contract's message says."""
    return OperationInfo(
        operation_id=operation.operation_id,
        state=state_name(operation.state),
        engine_id=operation.engine_id,
        method=operation.method,
        arguments=operation.arguments,
        incarnation=operation.incarnation,
        session_id=operation.session_id,
        submitted_at=_time(operation, "submit_time"),
        started_at=_time(operation, "start_time"),
        ended_at=_time(operation, "end_time"),
        progress_fraction=operation.progress_fraction if operation.HasField("progress_fraction") else None,
        progress_text=operation.progress_text,
        last_sequence=operation.last_sequence,
        stopping=operation.stopping,
        attempts=operation.attempts,
        label=operation.label,
    )


def _time(operation: operation_pb2.Operation, name: str) -> datetime | None:
    stamp: Timestamp = getattr(operation, name)
    return _times.moment(stamp) if operation.HasField(name) else None  # type: ignore[arg-type]


EventKind = Literal["started", "stdout", "stderr", "display", "progress", "dropped", "outcome"]
"""What an event is."""


@dataclass(frozen=True, slots=True, repr=False)
class Event:
    """One thing that happened to an operation; `kind` says which of the other fields matter."""

    sequence: int
    """Rises with each event; a gap is where events were dropped, as the next one says."""
    time: datetime
    """When it happened, UTC."""
    kind: EventKind
    text: str = ""
    """Of `stdout`, `stderr` and `progress`."""
    display: Display | None = None
    """Of `display`; what is larger than a message is left out of it."""
    fraction: float | None = None
    """Of `progress`: the fraction done, from 0 to 1."""
    incarnation: str = ""
    """Of `started`: the kernel that runs it."""
    dropped_events: int = 0
    """Of `dropped`: how many events are missing before this one."""
    dropped_bytes: int = 0
    """Of `dropped`: how many bytes were in them."""
    state: OperationStatus | None = None
    """Of `outcome`, the last event: how it ended."""
    error: str = ""
    """Of `outcome`: what it raised, or why there is no answer; empty if it succeeded."""

    def __repr__(self) -> str:
        """Show what happened in short."""
        what = self.state or result.short(self.text)
        return f"<Event {self.sequence} {self.kind}{f' {what!r}' if what else ''}>"


def event_from_message(event: operation_pb2.OperationEvent) -> Event | None:
    """Return what the contract's message says, None for a kind that is not known here."""
    kind = event.WhichOneof("kind")
    if kind is None:
        return None
    made = {"sequence": event.sequence, "time": _times.moment(event.event_time), "kind": kind}
    match kind:
        case "started":
            made["incarnation"] = event.started.incarnation
        case "stdout" | "stderr":
            made["text"] = getattr(event, kind)
        case "display":
            made["display"] = result.display(event.display, {})
        case "progress":
            made |= {"fraction": event.progress.fraction, "text": event.progress.text}
        case "dropped":
            made |= {"dropped_events": event.dropped.event_count, "dropped_bytes": event.dropped.byte_count}
        case "outcome":
            made |= {"state": state_name(event.outcome.state), "error": _error_text(event.outcome)}
    return Event(**made)  # type: ignore[arg-type]


def response_of(outcome: operation_pb2.OperationOutcome) -> object:
    """Return the response that an outcome carries, parsed; None if there is none that is known here.

    MALFORMED_MESSAGE if it is none at all.
    """
    name = outcome.response.type_url.rpartition("/")[2].removeprefix("enginery.v1.")
    kind = getattr(engine_pb2, name, None) if name.endswith("Response") else None
    return None if kind is None else parse(kind, outcome.response.value)


def _error_text(outcome: operation_pb2.OperationOutcome) -> str:
    if outcome.HasField("error"):
        return outcome.error.message
    try:
        response = response_of(outcome)
    except DeliveryError as error:
        return error.text
    response = response.result if isinstance(response, engine_pb2.ExecuteResponse) else response
    remote = getattr(response, "error", None)
    if remote is None or not remote.errors:
        return ""
    first = remote.errors[0]
    return f"{first.type_name}: {first.message}" if first.message else str(first.type_name)


class Feed:
    """Batches of events on their way from the loop's thread to their reader: a few, then the writer waits."""

    def __init__(self, limit: int = 8) -> None:
        """Hold at most `limit` batches."""
        self.limit = limit
        self.batches: deque[operation_pb2.AttachResponse] = deque()
        self.ended = False
        self.error: DeliveryError | None = None
        self.is_closed = False
        self.hang_up: Callable[[], object] = _nothing
        """Ends the stream that is read now, if there is one."""
        self._filled = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, batch: operation_pb2.AttachResponse) -> None:
        """Add a batch when there is room. On the loop's thread."""
        while len(self.batches) >= self.limit and not self.is_closed:
            self._room.clear()
            await self._room.wait()
        self.batches.append(batch)
        self._filled.set()

    def end(self, error: DeliveryError | None) -> None:
        """Say that nothing follows, and why if that is wrong. On the loop's thread."""
        self.error = error
        self.ended = True
        self._filled.set()

    async def filled(self) -> None:
        """Wait until there is a batch, or the end. On the loop's thread; may be cancelled, nothing is lost."""
        while not self.batches and not self.ended:
            self._filled.clear()
            await self._filled.wait()

    def taken(self) -> None:
        """Look again whether there is room. On the loop's thread."""
        self._room.set()

    def close(self) -> None:
        """Let the writer end. On the loop's thread."""
        self.is_closed = True
        self._room.set()
        self.hang_up()


def _nothing() -> None:
    return None


class EventStream:
    """The events of an operation, those that have happened and then each as it happens, up to its outcome.

    An iterator, and an asynchronous one. It attaches again by itself when the connection breaks, and misses and
    repeats nothing. Dropping it, or `close()`, ends the following and changes nothing for the operation.
    OperationNotFound if nobody knows the operation; ControllerLost if the controller stays away.
    """

    def __init__(self, feed: Feed, thread: _loop.LoopThread) -> None:
        """Made by `Operation.events`; somebody fills `feed` on `thread`."""
        self._feed = feed
        self._thread = thread
        self._events: deque[Event] = deque()
        self._close = weakref.finalize(self, _close, thread, feed)
        self._close.atexit = False

    def __iter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __next__(self) -> Event:
        """Wait for the next event and return it."""
        while (event := self._next()) is None:
            if self._ended:
                raise StopIteration
            self._thread.run(self._feed.filled())
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        """Return the stream itself."""
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event without blocking and return it."""
        while (event := self._next()) is None:
            if self._ended:
                raise StopAsyncIteration
            filled = asyncio.run_coroutine_threadsafe(self._feed.filled(), self._thread.loop)
            await asyncio.wrap_future(filled)
        return event

    @property
    def _ended(self) -> bool:
        return self._feed.ended and not self._feed.batches

    def _next(self) -> Event | None:
        """Return an event, None if there is none now."""
        if not self._events and self._feed.batches:
            batch = self._feed.batches.popleft()
            self._thread.loop.call_soon_threadsafe(self._feed.taken)
            self._events.extend(event for raw in batch.events if (event := event_from_message(raw)) is not None)
        if self._events:
            return self._events.popleft()
        if self._ended and self._feed.error is not None:
            raise public(self._feed.error)
        return None

    def close(self) -> None:
        """Stop following; what was not read is gone."""
        self._close()
        self._events.clear()
        self._feed.batches.clear()
        self._feed.end(None)


def _close(thread: _loop.LoopThread, feed: Feed) -> None:
    if not _loop.is_forked() and not thread.loop.is_closed():
        thread.loop.call_soon_threadsafe(feed.close)
