"""Responses that are spelled byte by byte are those that the messages would be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_service import plain_response
from engine_service.kernel_messages import DisplayData, Failure, Reply
from engine_service.responses import Composer
from enginery._encoded import Codec, Encoded
from enginery.errors import RaisedError
from enginery.v1 import engine_pb2, frame_pb2
from tests.unit.made import operation

VALUE = Encoded(Codec.PICKLE, (b"pickle",), "3.11.7")


def _reply(value: Encoded = VALUE, started_at: float = 1.5, duration: float = 0.25) -> Reply:
    return Reply(values={"value": value}, started_at=started_at, duration=duration)


@given(
    st.binary(min_size=1, max_size=300) | st.sampled_from([b"x" * 127, b"x" * 128, b"x" * 40_000]),
    st.text(max_size=20),
    st.floats(0, 1 << 40),
    st.floats(0, 1e6),
)
def test_it_is_what_the_composer_makes(data: bytes, version: str, started_at: float, duration: float) -> None:
    """Whatever the value, the version and the times are."""
    called = operation()
    called.method = frame_pb2.METHOD_APPLY
    reply = _reply(Encoded(Codec.PICKLE, (data,), version), started_at, duration)
    plain = plain_response.compose(called, reply)
    assert plain is not None
    expected = engine_pb2.ApplyResponse.FromString(Composer(3, called).respond(reply))
    assert engine_pb2.ApplyResponse.FromString(plain) == expected


def test_what_has_more_to_say_is_left_to_the_composer() -> None:
    """Output, displays, failures, properties, other codecs, large values, other methods."""
    called = operation()
    assert plain_response.compose(called, _reply()) is None
    called.method = frame_pb2.METHOD_APPLY
    assert plain_response.compose(called, _reply()) is not None
    failure = Failure((RaisedError("m", "E", (), "", ""),), "")
    for reply in (
        Reply(),
        Reply(failure=failure),
        Reply(values={"value": VALUE}, displays=[DisplayData({"text/plain": "x"})]),
        Reply(values={"value": VALUE}, properties={}),
        _reply(Encoded(Codec.JSON, (b"1",))),
        _reply(Encoded(Codec.PICKLE, (b"1", b"2"), "3.11.7")),
        _reply(Encoded(Codec.PICKLE, (bytes(100_000),), "3.11.7")),
    ):
        assert plain_response.compose(called, reply) is None
    called.context = called.context._replace(inline_limit=1)
    assert plain_response.compose(called, _reply()) is None


@pytest.mark.parametrize("kind", ["stdout", "display", "progress"])
def test_what_said_something_is_left_to_the_composer(kind: str) -> None:
    """Whatever it was."""
    called = operation()
    called.method = frame_pb2.METHOD_APPLY
    match kind:
        case "stdout":
            called.log.output("stdout", b"x", 1.0)
        case "display":
            called.log.display(DisplayData({"text/plain": "x"}), 1.0)
        case _:
            called.log.progress(0.5, "", 1.0)
    assert plain_response.compose(called, _reply()) is None
