"""The log of an operation: rising sequences, bounded bytes, and readers who know what they missed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_service.event_log import Dropped, Event, EventLog
from engine_service.kernel_messages import DisplayData, Progress

UNBOUNDED = 1 << 30


def _log(limit: int = 1 << 20) -> EventLog:
    log = EventLog(limit)
    log.started(1.0, "incarnation")
    return log


def _kinds(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.sequence, event.kind) for event in events]


def test_events_in_order() -> None:
    """Every kind of event has its sequence, time and payload; the outcome is the one after the last."""
    log = _log()
    log.output("stdout", b"one", 2.0)
    log.output("stderr", b"two", 3.0)
    shown = DisplayData({"text/plain": "x"})
    log.display(shown, 4.0)
    log.progress(0.5, "half", 5.0)
    log.ended(6.0)
    assert log.read(0, UNBOUNDED) == [
        Event(1, 1.0, "started", "incarnation"),
        Event(2, 2.0, "stdout", b"one"),
        Event(3, 3.0, "stderr", b"two"),
        Event(4, 4.0, "display", shown),
        Event(5, 5.0, "progress", Progress(0.5, "half")),
    ]
    assert log.last_sequence == 6
    assert log.read(4, UNBOUNDED) == log.read(0, UNBOUNDED)[4:]
    assert log.read(6, UNBOUNDED) == log.read(99, UNBOUNDED) == []
    assert (log.stdout(), log.stderr(), log.displays(), log.dropped_bytes) == (b"one", b"two", [shown], 0)


def test_an_operation_that_says_nothing() -> None:
    """It has a start and an outcome, or an outcome alone if it never began."""
    log = EventLog(10)
    assert log.last_sequence == log.size == 0
    log.started(1.0, "incarnation")
    assert _kinds(log.read(0, 0)) == [(1, "started")]
    log.ended(2.0)
    assert log.last_sequence == 2
    assert (log.stdout(), log.stderr(), log.displays(), log.dropped_bytes) == (b"", b"", [], 0)
    never = EventLog(10)
    never.ended(1.0)
    assert (never.last_sequence, never.read(0, UNBOUNDED)) == (1, [])


def test_what_nobody_has_read_merges() -> None:
    """Pieces of one stream are one event until they are read, and progress replaces progress."""
    log = _log()
    for _ in range(100_000):
        log.output("stdout", b"line\n", 2.0)
    assert log.last_sequence < 20
    assert log.size < 600_000
    assert log.stdout() == b"line\n" * 100_000
    log.progress(0.1, "", 3.0)
    log.progress(0.2, "", 4.0)
    last = log.last_sequence
    assert log.read(last - 1, UNBOUNDED) == [Event(last, 4.0, "progress", Progress(0.2, ""))]
    log.progress(0.3, "", 5.0)
    log.output("stdout", b"a", 6.0)
    assert _kinds(log.read(last, UNBOUNDED)) == [(last + 1, "progress"), (last + 2, "stdout")]
    log.output("stdout", b"b", 7.0)
    assert log.read(last + 2, UNBOUNDED) == [Event(last + 3, 7.0, "stdout", b"b")]


def test_reading_in_portions() -> None:
    """A portion ends once it has the bytes that were asked for, and has at least one event."""
    log = _log()
    for n in range(10):
        log.output("stdout" if n % 2 else "stderr", b"x" * 100, 2.0)
    assert [len(log.read(after, 250)) for after in (0, 4, 7)] == [4, 3, 3]
    assert len(log.read(5, 1)) == 1


def test_characters_stay_whole() -> None:
    """A character is in one piece, however it was written; what is no character comes at the end at last."""
    log = _log()
    for byte in "aé世🎉".encode():
        log.output("stdout", bytes([byte]), 2.0)
        log.output("stderr", b".", 2.0)
        log.read(0, UNBOUNDED)
    pieces = [event.payload for event in log.read(0, UNBOUNDED) if event.kind == "stdout"]
    assert pieces == [c.encode() for c in "aé世🎉"]
    log.output("stdout", b"\xf0\x9f", 3.0)
    assert log.stdout() == "aé世🎉".encode() + b"\xf0\x9f"
    assert log.read(log.last_sequence, UNBOUNDED) == []
    before = log.last_sequence
    log.ended(4.0)
    assert log.read(before, UNBOUNDED) == [Event(before + 1, 4.0, "stdout", b"\xf0\x9f")]
    big = _log()
    big.output("stdout", "世".encode() * 100_000, 2.0)
    for event in big.read(1, UNBOUNDED):
        assert isinstance(event.payload, bytes)
        event.payload.decode()


def test_over_the_limit() -> None:
    """The first and the last half stay, with a mark in the output and an event for those who read."""
    log = _log(1 << 20)
    log.output("stdout", b"first\n", 2.0)
    for _ in range(1000):
        log.output("stdout", b"x" * 99_999 + b"\n", 3.0)
    log.output("stdout", b"last\n", 4.0)
    log.ended(5.0)
    kept = log.stdout()
    mark = b"\n[... %d bytes dropped ...]\n" % log.dropped_bytes
    assert kept.startswith(b"first\nxxx")
    assert kept.endswith(b"xxx\nlast\n")
    assert mark in kept
    assert len(kept) - len(mark) + log.dropped_bytes == 100_000_000 + len(b"first\nlast\n")
    assert (7 << 20) // 8 < len(kept) <= (1 << 20) + len(mark)
    events = log.read(0, UNBOUNDED)
    (gap,) = (n for n, event in enumerate(events) if event.kind == "dropped")
    dropped = events[gap].payload
    assert isinstance(dropped, Dropped)
    assert dropped.byte_count == log.dropped_bytes
    assert events[gap].sequence == events[gap - 1].sequence + dropped.event_count
    assert events[gap + 1].sequence == events[gap].sequence + 1


def test_a_display_over_the_limit() -> None:
    """One that alone is too large is dropped, and who reads is told so even if nothing follows."""
    log = _log(1000)
    log.display(DisplayData({"image/png": bytes(2000)}), 2.0)
    assert log.displays() == []
    assert log.read(0, UNBOUNDED)[1:] == [Event(2, 2.0, "dropped", Dropped(1, 2000))]
    log.display(DisplayData({"text/html": "é" * 100}), 3.0)
    assert _kinds(log.read(2, UNBOUNDED)) == [(3, "display")]
    assert log.dropped_bytes == 2000


def test_small_events_are_bounded() -> None:
    """Events that hold few bytes are bounded by their number."""
    log = _log(1 << 20)
    for n in range(50_000):
        log.progress(0.5, "p", 2.0)
        log.output("stdout", b"x", n)
    assert log.size < 4 << 20
    assert len(log.read(0, UNBOUNDED)) < 10_000
    assert log.stdout().count(b"x") + log.dropped_bytes == 50_000


def test_watchers() -> None:
    """Who watches is called at every event, the outcome included, and not any more once it unwatches."""
    log = EventLog(1000)
    calls: list[int] = []

    def note() -> None:
        calls.append(log.last_sequence)

    log.watch(note)
    log.started(1.0, "i")
    log.output("stdout", b"a", 2.0)
    log.progress(0.1, "", 2.0)
    log.display(DisplayData({"text/plain": "x"}), 2.0)
    log.ended(3.0)
    assert calls == [1, 2, 3, 4, 5]
    other = EventLog(1000)
    other.watch(note)
    other.unwatch(note)
    other.started(1.0, "i")
    assert len(calls) == 5


def test_nothing_follows_the_end() -> None:
    """Writing to the log of an operation that has ended is a defect."""
    log = _log()
    log.ended(2.0)
    with pytest.raises(AssertionError):
        log.output("stdout", b"late", 3.0)


@dataclass
class _Reader:
    """Follows a log, and checks that it misses nothing without being told."""

    log: EventLog
    after: int = 0
    seen: int = 0
    missed: int = 0
    text: dict[str, bytes] = field(default_factory=lambda: {"stdout": b"", "stderr": b""})

    def read(self, max_bytes: int) -> None:
        for event in self.log.read(self.after, max_bytes):
            payload = event.payload
            if isinstance(payload, Dropped):
                assert payload.event_count > 0
                assert event.sequence == self.after + payload.event_count
                self.missed += payload.byte_count
            else:
                assert event.sequence == self.after + 1
            if isinstance(payload, bytes):
                self.seen += len(payload)
                self.text[event.kind] += payload
                payload.decode()
            elif isinstance(payload, DisplayData):
                self.seen += sum(map(len, payload.data.values()))
            self.after = event.sequence


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["stdout", "stderr"]), st.text("aé世🎉", max_size=300), st.integers(1, 7)),
        st.tuples(st.just("display"), st.integers(0, 900)),
        st.tuples(st.just("progress"), st.floats(0, 1)),
        st.tuples(st.just("read"), st.integers(0, 2), st.sampled_from([1, 100, UNBOUNDED])),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([16, 100, 1000, 3000, UNBOUNDED]), _STEPS)
def test_readers_miss_nothing_unsaid(limit: int, steps: list[tuple[object, ...]]) -> None:
    """Whatever comes and whoever reads when: sequences have no gap but those that are told, bytes add up."""
    log = _log(limit)
    readers = [_Reader(log) for _ in range(3)]
    written = {"stdout": b"", "stderr": b""}
    total = 0
    for step in steps:
        match step:
            case (("stdout" | "stderr") as stream, str(text), int(size)):
                data = text.encode()
                for start in range(0, len(data), size * 10):
                    log.output(stream, data[start : start + size * 10], 2.0)
                written[stream] += data
                total += len(data)
            case ("display", int(size)):
                log.display(DisplayData({"image/png": bytes(size)}), 2.0)
                total += size
            case ("progress", float(fraction)):
                log.progress(fraction, "", 2.0)
            case ("read", int(which), int(max_bytes)):
                readers[which].read(max_bytes)
            case _:
                raise AssertionError(step)
        assert max(reader.after for reader in readers) <= log.last_sequence
    log.ended(3.0)
    late = _Reader(log)
    for reader in (*readers, late):
        while reader.after < log.last_sequence - 1:
            reader.read(100)
        assert reader.seen + reader.missed == total
        assert reader.missed <= log.dropped_bytes
        if not reader.missed:
            assert reader.text == written
    kept = {"stdout": log.stdout(), "stderr": log.stderr()}
    if log.dropped_bytes:
        assert late.missed == log.dropped_bytes
        assert late.seen <= limit
    else:
        assert total <= limit
        assert kept == written
