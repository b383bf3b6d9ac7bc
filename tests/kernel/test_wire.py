"""Frames and messages between host and kernel: what is written reads back, whatever else comes is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service import kernel_messages as messages
from engine_service import kernel_wire as wire
from engine_service.kernel_answers import check_answer
from engine_service.kernel_frames import MAX_FDS, MAX_SHORT, Frame, FrameReader, WireError, send
from enginery._encoded import Codec, Encoded, Stored
from enginery.errors import RaisedError, RemoteFrame

if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[_socket.socket, _socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def _receive(sock: _socket.socket, reader: FrameReader) -> Frame:
    while (frame := reader.take()) is None:
        assert reader.receive(sock)
    assert isinstance(frame, Frame)
    return frame


def test_frames_in_pieces(pair: tuple[_socket.socket, _socket.socket]) -> None:
    """Frames arrive whole however the stream is cut, each with its own files."""
    read_end, write_end = os.pipe()
    frames = [
        Frame({"n": n, "t": "\u4e16"}, [b"a" * n, b"", memoryview(b"xyz")], [read_end] * (n % 3))
        for n in range(5)
    ]
    for frame in frames:
        send(pair[0], frame)
    reader = FrameReader()
    for frame in frames:
        got = _receive(pair[1], reader)
        assert got.meta == frame.meta
        assert [bytes(part) for part in got.parts] == [bytes(part) for part in frame.parts]
        assert len(got.fds) == len(frame.fds)
        assert all(os.fstat(fd).st_ino == os.fstat(read_end).st_ino for fd in got.fds)
        got.close()
    for fd in (read_end, write_end):
        os.close(fd)


def test_frames_over_the_bounds() -> None:
    """A frame that is too large is refused before a byte of it is sent."""
    for frame in (
        Frame({"a": "x" * (17 << 20)}),
        Frame({}, [b""] * 70_000),
        Frame({}, [bytes(65 << 20)]),
        Frame({}, [], [0] * (MAX_FDS + 1)),
    ):
        with pytest.raises(WireError):
            frame.pack()


@given(st.binary(max_size=200), st.sampled_from([b"", b"1ENG", b"ENGS", b"ENGS\x24\0\0\0"]))
def test_garbage_is_refused_or_waits(data: bytes, magic: bytes) -> None:
    """No bytes make the reader do anything but wait, or raise WireError."""
    one, other = socket.socketpair()
    with one, other, contextlib.suppress(WireError):
        data = magic + data
        one.send(data or b"x")
        reader = FrameReader()
        reader.receive(other)
        while reader.take() is not None:
            pass


def _carried(frame: Frame | bytes) -> Frame:
    """Return a frame as the other side gets it."""
    assert isinstance(frame, Frame)
    return Frame(json.loads(json.dumps(frame.meta)), frame.parts, frame.fds)


def _reply() -> messages.Reply:
    line = RemoteFrame("<execute 1>", 1, "f", "1/0", 1, 0, None)
    errors = (
        RaisedError(
            "builtins",
            "ValueError",
            ("builtins.ValueError",),
            "m",
            "r",
            ("n",),
            (line,),
            2,
            1,
            None,
            True,
            (1,),
        ),
        RaisedError("m", "E", (), "", ""),
    )
    return messages.Reply(
        failure=messages.Failure(errors, "Traceback", "USER", Encoded(Codec.PICKLE, (b"p",), "3.11.7")),
        values={"a": Encoded(Codec.NDARRAY, (b"12345678",), dtype="<f8", shape=(1,), fortran_order=True)},
        text="t",
        pretty="p",
        value_error="none fits",
        keys=("k",),
        displays=[messages.DisplayData({"text/plain": "x", "image/png": b"\x89"}, {"image/png": {"w": [1]}})],
        started_at=1.5,
        duration=0.25,
        properties={"p": Encoded(Codec.JSON, (b"1",))},
    )


def test_a_reply_reads_back() -> None:
    """Everything that a reply can hold survives."""
    reply = _reply()
    assert wire.read_from_kernel(_carried(wire.write_reply(4, reply)), 4) == reply
    ready = messages.Ready("3.11.7", {"p": Encoded(Codec.JSON, (b"1",))}, 3)
    assert wire.read_from_kernel(_carried(wire.write_ready(ready)), 0) == ready
    progress = messages.Progress(0.5, "half")
    assert wire.read_from_kernel(_carried(wire.write_progress(progress)), 4) == progress
    shown = messages.Shown(7, reply.displays[0])
    assert wire.read_from_kernel(_carried(wire.write_shown(shown)), 4) == shown


def test_a_command_reads_back() -> None:
    """Everything that a command can hold survives, but its operation id, which the kernel need not know."""
    command = messages.Command(
        "apply", b"", -1, 5, "code", "name", ("k",), (("v", Encoded(Codec.TEXT, (b"x",))),), (Codec.JSON,), 7
    )
    assert wire.read_command(_carried(wire.write_command(9, command))) == (9, command)
    large = messages.Command("apply", b"", 3, values=_values(b"x" * MAX_SHORT), digest=b"d" * 16, forgets=True)
    assert wire.read_command(_carried(wire.write_command(9, large))) == (9, large)


def _values(arguments: bytes) -> tuple[tuple[str, Encoded | Stored], ...]:
    function = Encoded(Codec.PICKLE, (b"function",), "3.11.7")
    return (("function", function), ("arguments", Encoded(Codec.PICKLE, (arguments,), "3.13.0")))


def test_short_frames_among_others(pair: tuple[_socket.socket, _socket.socket]) -> None:
    """Calls of functions, and answers of one small value, are short; they arrive in order with all others."""
    reply = messages.Reply(
        values={"value": Encoded(Codec.PICKLE, (b"v",), "3.11.7")}, started_at=1.5, duration=0.25
    )
    frames = [wire.write_reply(1, reply), wire.write_reply(2, _reply()), wire.write_reply(3, reply)]
    assert [type(frame) for frame in frames] == [bytes, Frame, bytes]
    for frame in frames:
        send(pair[0], frame)
    reader = FrameReader()
    assert reader.receive(pair[1])
    for serial, expected in enumerate([reply, _reply(), reply], start=1):
        frame_read = reader.take()
        assert frame_read is not None
        assert wire.read_from_kernel(frame_read, serial) == expected
    assert reader.take() is None


@pytest.mark.parametrize("digest", [b"", b"d" * 16])
@pytest.mark.parametrize("accept", [(), (Codec.PICKLE,), (Codec.NDARRAY, Codec.JSON)])
@pytest.mark.parametrize("values", [(), _values(b"")[:1], _values(b"a")[1:], _values(b"arguments")])
def test_a_short_command_reads_back(digest: bytes, accept: tuple[Codec, ...], values: Any) -> None:
    """What a short command can hold survives, whatever of it there is."""
    command = messages.Command(
        "apply", b"", -1, values=values, accept=accept, is_task=True, digest=digest, forgets=bool(digest)
    )
    frame = wire.write_command(9, command)
    assert isinstance(frame, bytes)
    assert wire.read_command(frame) == (9, command)


@pytest.mark.parametrize(
    "value",
    [
        Encoded(Codec.NDARRAY, (b"12345678",), dtype="<f8", shape=(1,)),
        Encoded(Codec.PICKLE, (b"a", b"b"), "3.11.7"),
        Encoded(Codec.TEXT, (bytes(MAX_SHORT),)),
    ],
)
def test_what_is_not_short(value: Encoded) -> None:
    """A value that a short answer cannot hold goes in an ordinary one."""
    reply = messages.Reply(values={"value": value}, started_at=1.5)
    assert wire.read_from_kernel(_carried(wire.write_reply(1, reply)), 1) == reply


@given(st.data())
def test_a_short_answer_with_any_byte_spoilt(data: st.DataObject) -> None:
    """Whatever a kernel puts into a short frame, and however long it is: a reply or WireError."""
    reply = messages.Reply(values={"value": Encoded(Codec.PICKLE, (b"v",), "3.11.7")}, started_at=1.5)
    frame = wire.write_reply(1, reply)
    assert isinstance(frame, bytes)
    spoilt = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(8, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    del spoilt[data.draw(st.integers(8, len(spoilt))) :]
    with contextlib.suppress(WireError):
        read = wire.read_from_kernel(bytes(spoilt), 1)
        assert isinstance(read, messages.Reply)
        assert 0 <= read.started_at < 1 << 62
        assert read.duration >= 0


_JUNK: st.SearchStrategy[object] = st.sampled_from(
    [None, -1, 1 << 70, 1.5, float("nan"), "\ud800", "x", [], [[]], {}, {"a": 1}, [1, 2], True]
)


@given(st.data())
def test_a_reply_with_any_field_spoilt(data: st.DataObject) -> None:
    """Whatever a kernel puts in place of any part of a reply: a reply or WireError, no other error."""
    frame = _carried(wire.write_reply(4, _reply()))
    node: Any = frame.meta
    while True:
        if isinstance(node, dict):
            key: Any = data.draw(st.sampled_from(sorted(node)))
        elif isinstance(node, list) and node:
            key = data.draw(st.integers(0, len(node) - 1))
        else:
            break
        child = node[key]
        if isinstance(child, dict | list) and child and data.draw(st.booleans()):
            node = child
            continue
        if data.draw(st.booleans()) and isinstance(node, dict):
            del node[key]
        else:
            node[key] = data.draw(_JUNK)
        break
    with contextlib.suppress(WireError):
        reply = wire.read_from_kernel(frame, 4)
        assert isinstance(reply, messages.Reply | messages.Progress)
        if isinstance(reply, messages.Reply):
            texts = [reply.text or "", *reply.keys, *(f"{d.data}{d.metadata}" for d in reply.displays)]
            "".join(texts).encode()


def test_files_of_a_kernel_are_checked() -> None:
    """A file must be regular, sealed, and as long as is said; those of refused frames are closed."""
    read_end, write_end = os.pipe()
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(unsealed, b"12345")
    for fd in (read_end, unsealed):
        stored = Stored(Codec.TEXT, os.dup(fd), (5,))
        with pytest.raises(WireError):
            wire.read_from_kernel(wire.write_reply(1, messages.Reply(values={"v": stored})), 1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(stored.fd)
    for fd in (read_end, write_end, unsealed):
        os.close(fd)


@pytest.mark.parametrize(
    "value",
    [
        Encoded(Codec.JSON, ()),
        Encoded(Codec.TEXT, (b"a", b"b")),
        Encoded(Codec.PICKLE, ()),
        Encoded(Codec.NDARRAY, (b"1",)),
        Encoded(Codec.TEXT, (b"a",), dtype="<f8"),
    ],
)
def test_values_without_form(value: Encoded) -> None:
    """A value has as many parts as its codec says, and a dtype if it is an array: the host relies on it."""
    with pytest.raises(WireError, match="no form of"):
        wire.read_from_kernel(wire.write_reply(1, messages.Reply(values={"value": value}), 1), 1)


@pytest.mark.parametrize("times", [{"started_at": 1e12}, {"duration": 1e12}])
@pytest.mark.parametrize("acknowledgement", [0, 1])
def test_times_that_no_message_holds(times: dict[str, float], acknowledgement: int) -> None:
    """Times are within protobuf's bounds, or no client could show the answer."""
    reply = messages.Reply(values={"value": Encoded(Codec.PICKLE, (b"v",), "3.11.7")})
    reply = dataclasses.replace(reply, **times)  # type: ignore[arg-type]  # both are floats
    with pytest.raises(WireError, match="number"):
        wire.read_from_kernel(wire.write_reply(1, reply, acknowledgement), 1)


def test_hints_that_no_json_holds() -> None:
    """Numbers that protobuf's JSON cannot hold exactly come as their text."""
    hints = {"a": [float("nan"), float("-inf"), 1 << 60], "b": {"c": 1 << 53, "d": True}}
    shown = messages.Shown(7, messages.DisplayData({"text/plain": "x"}, hints))
    read = wire.read_from_kernel(wire.write_shown(shown), 4)
    assert isinstance(read, messages.Shown)
    assert read.display.metadata == {"a": ["nan", "-inf", str(1 << 60)], "b": {"c": 1 << 53, "d": True}}


_PICKLED = Encoded(Codec.PICKLE, (b"p",), "3.11.7")


@pytest.mark.parametrize(
    ("method", "keys", "reply"),
    [
        ("pull", ("x",), messages.Reply()),
        ("pull", ("x",), messages.Reply(values={"value": _PICKLED})),
        ("pull_serialized", ("x", "y"), messages.Reply(values={"x": _PICKLED})),
        ("apply", (), messages.Reply()),
        ("keys", (), messages.Reply(values={"x": _PICKLED})),
        ("execute", (), messages.Reply(values={"x": _PICKLED})),
        ("apply", (), messages.Reply(values={"value": _PICKLED}, was_revoked=True)),
        ("apply", (), messages.Reply(values={"value": _PICKLED}, failure=messages.Failure((), ""))),
    ],
)
def test_an_answer_brings_what_was_asked_for(method: str, keys: tuple[str, ...], reply: messages.Reply) -> None:
    """Nothing that nobody would close, and all that the response is made of."""
    with pytest.raises(WireError, match="other values"):
        check_answer(method, keys, reply)


@pytest.mark.parametrize("method", ["execute", "push", "reset"])
def test_an_answer_without_a_value(method: str) -> None:
    """What runs has no value, or one that fits no codec that was asked for."""
    check_answer(method, (), messages.Reply())
    check_answer(method, (), messages.Reply(failure=messages.Failure((), "")))


@pytest.mark.parametrize(
    "value",
    [
        Encoded(Codec.JSON, (b"{",)),
        Encoded(Codec.JSON, (b"[" * 1000,)),
        Encoded(Codec.TEXT, (b"x",)),
        Encoded(Codec.PICKLE, (bytes(1 << 20),), "3.11.7"),
    ],
)
def test_properties_that_cannot_be_told(value: Encoded) -> None:
    """Each hello tells the properties: those with which none could be made are no properties."""
    with pytest.raises(WireError, match="propert"):
        check_answer("reset", (), messages.Reply(properties={"key": value}))
