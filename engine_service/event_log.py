"""What happened to one operation, kept within a bound. No I/O; times are Unix time in seconds, passed in.

Events have sequences that rise by one. Of what is written beyond the limit the first and the last half stay,
and what a reader misses between them is told to it as `Dropped`. A piece of output grows until somebody reads
it, so a million prints that nobody follows are few events. No character is cut in two by the pieces.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine_service.kernel_messages import DisplayData, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Stream = Literal["stdout", "stderr"]
Kind = Literal["started", "stdout", "stderr", "display", "progress", "dropped"]

_PIECE = 64 << 10  # bytes of one piece of output
_LONGEST_CHARACTER = 4
_EVENT_COST = 256  # one event for so many bytes of the limit: small events take more memory than their bytes
_MIN_EVENTS = 64
_MAX_MARKS = 256


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a reader missed: events, and the bytes of output and displays in them."""

    event_count: int
    byte_count: int


Payload = str | bytes | DisplayData | Progress | Dropped


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `payload` is by `kind`:

    the incarnation (str) of `started`, bytes of `stdout` and `stderr`, DisplayData of `display`, Progress of
    `progress`; Dropped of `dropped`, whose sequence is that of the last event that is missing.
    """

    sequence: int
    time: float
    kind: Kind
    payload: Payload


class EventLog:
    """The log of one operation. Costs next to nothing until there is output."""

    __slots__ = ("_ended", "_events", "_incarnation", "_limit", "_started_at", "_watchers")

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes of output and displays together."""
        self._limit = limit
        self._incarnation: str | None = None
        self._started_at = 0.0
        self._ended = False
        self._events: _Events | None = None
        self._watchers: list[Callable[[], None]] | None = None

    # ---- what happens

    def started(self, now: float, incarnation: str) -> None:
        """It began to run in that kernel. Comes before any other event."""
        assert self.last_sequence == 0
        self._started_at = now
        self._incarnation = incarnation
        if self._watchers:
            self._tell()

    def output(self, stream: str, data: bytes, now: float) -> None:
        """It wrote to `stdout` or `stderr`."""
        self._bounded().output(_stream(stream), data, now)
        if self._watchers:
            self._tell()

    def display(self, display: DisplayData, now: float) -> None:
        """It displayed an object."""
        size = sum(map(_size, display.data.values()))
        self._bounded().add("display", display, size, now)
        if self._watchers:
            self._tell()

    def progress(self, fraction: float, text: str, now: float) -> None:
        """It reported progress: in place of the last report, if nobody has read that and it is the newest."""
        self._bounded().progress(Progress(fraction, text), now)
        if self._watchers:
            self._tell()

    def ended(self, now: float) -> None:
        """It ended: its outcome is the event of sequence `last_sequence`, and nothing follows."""
        assert not self._ended
        if self._events is not None:
            self._events.finish(now)
        self._ended = True
        if self._watchers:
            self._tell()

    def _bounded(self) -> _Events:
        assert not self._ended, "an operation that has ended writes nothing"
        if self._events is None:
            self._events = _Events(self.last_sequence, self._limit)
        return self._events

    # ---- what is known

    @property
    def last_sequence(self) -> int:
        """Sequence of the newest event, the outcome included; 0 if there is none."""
        if self._events is not None:
            return self._events.last + self._ended
        return (self._incarnation is not None) + self._ended

    @property
    def is_silent(self) -> bool:
        """Whether there was no output, display or progress."""
        return self._events is None

    @property
    def size(self) -> int:
        """Bytes of memory that it holds, about."""
        return self._events.size if self._events is not None else 0

    @property
    def dropped_bytes(self) -> int:
        """Bytes of output and displays that are not kept."""
        return sum(self._events.dropped.values()) if self._events is not None else 0

    def stdout(self) -> bytes:
        """Return what is kept of standard output, with a mark where something was dropped."""
        return self._events.written("stdout") if self._events is not None else b""

    def stderr(self) -> bytes:
        """Return what is kept of standard error, with a mark where something was dropped."""
        return self._events.written("stderr") if self._events is not None else b""

    def displays(self) -> list[DisplayData]:
        """Return the displays that are kept, in order."""
        return self._events.displays() if self._events is not None else []

    def read(self, after: int, max_bytes: int) -> list[Event]:
        """Return events after that sequence, the outcome left out: at least one if there is any.

        Ends once the events have `max_bytes` of output and displays: then there may be more.
        """
        events: list[Event] = []
        if after < 1 and self._incarnation is not None:
            events.append(Event(1, self._started_at, "started", self._incarnation))
        if self._events is not None:
            events += self._events.read(max(after, len(events)), max_bytes)
        return events

    # ---- who follows it

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` at each event, the outcome included. It must be quick and raise nothing."""
        if self._watchers is None:
            self._watchers = []
        self._watchers.append(callback)

    def unwatch(self, callback: Callable[[], None]) -> None:
        """Call it no more."""
        assert self._watchers is not None
        self._watchers.remove(callback)

    def _tell(self) -> None:
        for callback in tuple(self._watchers or ()):
            callback()


class _Entry:
    """An event as it is kept. Output is a bytearray, which may grow; `start` counts all bytes before it."""

    __slots__ = ("kind", "payload", "sequence", "size", "start", "time")

    def __init__(
        self,
        sequence: int,
        time: float,
        kind: Kind,
        payload: bytearray | DisplayData | Progress,
        size: int,
        start: int,
    ) -> None:
        self.sequence = sequence
        self.time = time
        self.kind: Kind = kind
        self.payload = payload
        self.size = size
        self.start = start

    def event(self) -> Event:
        payload = bytes(self.payload) if isinstance(self.payload, bytearray) else self.payload
        return Event(self.sequence, self.time, self.kind, payload)


class _Events:
    """The events between start and outcome. The head fills first; then the oldest of the tail make room."""

    def __init__(self, base: int, limit: int) -> None:
        """`base` is the sequence before the first, `limit` bytes."""
        self.last = base
        self.dropped: dict[Kind, int] = {"stdout": 0, "stderr": 0, "display": 0}
        self._base = base
        self._head: list[_Entry] = []
        self._tail: deque[_Entry] = deque()
        self._head_size = self._tail_size = 0
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        self._event_limit = max(_MIN_EVENTS, limit // 2 // _EVENT_COST)  # of head and of tail
        self._piece_limit = min(_PIECE, max(limit // 16, 16))  # what goes from the tail goes in whole pieces
        self._head_is_full = False
        self._total = 0  # bytes that came
        self._read = 0  # the highest sequence that somebody has read
        self._dropped_at = 0.0
        self._carried: dict[Stream, bytes] = {}  # the beginning of a character whose rest has not come
        self._marks: deque[tuple[int, int]] = deque(maxlen=_MAX_MARKS)  # where readers stopped: sequence, bytes

    @property
    def size(self) -> int:
        count = len(self._head) + len(self._tail)
        return self._head_size + self._tail_size + _EVENT_COST * count

    # ---- writing

    def output(self, stream: Stream, data: bytes, now: float) -> None:
        if self._carried:
            data = self._carried.pop(stream, b"") + data
        end = _whole_length(data)
        if end < len(data):
            self._carried[stream] = data[end:]
        self._write(stream, data[:end], now)

    def _write(self, stream: Stream, data: bytes, now: float) -> None:
        position = 0
        while position < len(data):
            entry = self._growing(stream)
            room = self._piece_limit - (entry.size if entry is not None else 0)
            if not self._head_is_full:
                room = min(room, self._head_limit - self._head_size)
                if room < _LONGEST_CHARACTER:
                    self._head_is_full = True
                    continue
            piece = data[position : _boundary(data, position + room)]
            position += len(piece)
            if entry is None:
                self.add(stream, bytearray(piece), len(piece), now)
            else:
                assert isinstance(entry.payload, bytearray)
                entry.payload += piece
                entry.size += len(piece)
                self._count(len(piece))

    def _growing(self, stream: Stream) -> _Entry | None:
        """Return the newest event if more output of `stream` may join it."""
        entry = self._newest()
        if entry is None or entry.kind != stream or entry.size + _LONGEST_CHARACTER > self._piece_limit:
            return None
        return entry

    def _newest(self) -> _Entry | None:
        """Return the newest event, unless somebody has read it or it cannot change any more."""
        entries = self._tail if self._head_is_full else self._head
        return entries[-1] if entries and entries[-1].sequence > self._read else None

    def progress(self, progress: Progress, now: float) -> None:
        entry = self._newest()
        if entry is not None and entry.kind == "progress":
            entry.payload = progress
            entry.time = now
        else:
            self.add("progress", progress, 0, now)

    def add(self, kind: Kind, payload: bytearray | DisplayData | Progress, size: int, now: float) -> None:
        if self._head_size + size > self._head_limit or len(self._head) >= self._event_limit:
            self._head_is_full = True
        self.last += 1
        entry = _Entry(self.last, now, kind, payload, size, self._total)
        (self._tail if self._head_is_full else self._head).append(entry)
        self._count(size)

    def _count(self, size: int) -> None:
        """Count bytes that came, and drop what is too much."""
        self._total += size
        if not self._head_is_full:
            self._head_size += size
            return
        self._tail_size += size
        while self._tail and (self._tail_size > self._tail_limit or len(self._tail) > self._event_limit):
            entry = self._tail.popleft()
            self._tail_size -= entry.size
            self._dropped_at = entry.time
            if entry.kind in self.dropped:
                self.dropped[entry.kind] += entry.size

    def finish(self, now: float) -> None:
        """Take what was thought to begin a character for what it is."""
        for stream, data in self._carried.items():
            self._write(stream, data, now)
        self._carried.clear()

    # ---- reading

    def read(self, after: int, max_bytes: int) -> list[Event]:
        events: list[Event] = []
        position = 0
        for entry in self._after(after):
            if entry.sequence > after + 1:  # it is the first of the tail
                missing = Dropped(entry.sequence - after - 1, entry.start - self._position_of(after))
                events.append(Event(entry.sequence - 1, self._dropped_at, "dropped", missing))
            events.append(entry.event())
            after = entry.sequence
            position = entry.start + entry.size
            max_bytes -= entry.size
            if max_bytes <= 0:
                break
        else:
            if after < self.last:
                missing = Dropped(self.last - after, self._total - self._position_of(after))
                events.append(Event(self.last, self._dropped_at, "dropped", missing))
                position = self._total
        if events:
            self._read = max(self._read, events[-1].sequence)
            self._marks.append((events[-1].sequence, position))
        return events

    def _after(self, after: int) -> Iterator[_Entry]:
        for index in range(max(0, after - self._base), len(self._head)):
            yield self._head[index]
        if self._tail:  # by index, which is cheap near both ends: a reader is mostly close behind
            for index in range(max(0, after + 1 - self._tail[0].sequence), len(self._tail)):
                yield self._tail[index]

    def _position_of(self, sequence: int) -> int:
        """Return how many bytes came up to an event before the gap or in it.

        Of one in it that is where a reader stopped; if too many have since, this is further back.
        """
        return max(self._head_size, *(end for known, end in self._marks if known <= sequence), 0)

    def written(self, stream: Stream) -> bytes:
        dropped = self.dropped[stream]
        mark = b"\n[... %d bytes dropped ...]\n" % dropped if dropped else b""
        head, tail = (
            b"".join(
                entry.payload
                for entry in entries
                if isinstance(entry.payload, bytearray) and entry.kind == stream
            )
            for entries in (self._head, self._tail)
        )
        return head + mark + tail + self._carried.get(stream, b"")

    def displays(self) -> list[DisplayData]:
        entries = (*self._head, *self._tail)
        return [entry.payload for entry in entries if isinstance(entry.payload, DisplayData)]


def _stream(name: str) -> Stream:
    return "stdout" if name == "stdout" else "stderr"


def _size(form: str | bytes) -> int:
    return len(form) if isinstance(form, bytes) or form.isascii() else len(form.encode())


def _boundary(data: bytes, end: int) -> int:
    """Return where to cut so that no character is cut in two: `end`, or up to three bytes before it."""
    if end >= len(data):
        return len(data)
    for back in range(min(_LONGEST_CHARACTER, end)):
        if data[end - back] & 0xC0 != 0x80:
            return end - back
    return end  # no UTF-8


def _whole_length(data: bytes) -> int:
    """Return the length of `data` without the beginning of a character whose rest is missing."""
    for back in range(1, min(_LONGEST_CHARACTER, len(data) + 1)):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1
            return len(data) - back if length > back else len(data)
    return len(data)
