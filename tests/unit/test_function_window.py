"""Functions that a stream has carried: sender and receiver keep the same ones."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginery import _function_window
from enginery._function_window import MAX_PICKLE, Function, FunctionWindow, digest
from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2


def function(pickle: bytes = b"pickle") -> Function:
    """Return a function of that pickle."""
    return Function(digest(pickle), pickle)


def call(named: bytes, method: str = "Apply") -> frame_pb2.Call:
    """Return a call that names a function."""
    return frame_pb2.Call(method=METHODS[method], function_digest=named)  # type: ignore[arg-type]


def test_a_call_finds_what_came() -> None:
    """By digest; a call that names none has none."""
    window = FunctionWindow()
    window.take_in(*function())
    assert window.named_by(call(digest(b"pickle"))) == function()
    assert window.named_by(frame_pb2.Call()) is None


@pytest.mark.parametrize(
    "wrong", [call(digest(b"other")), call(b"short"), call(digest(b"pickle"), "Execute")], ids=str
)
def test_a_call_is_refused(wrong: frame_pb2.Call) -> None:
    """What did not come, and a digest on a call that applies nothing, are errors of the call."""
    window = FunctionWindow()
    window.take_in(*function())
    with pytest.raises(DeliveryError) as caught:
        window.named_by(wrong)
    assert (caught.value.reason, caught.value.metadata["field"]) == ("BAD_REQUEST", "function_digest")


@pytest.mark.parametrize(("named", "pickle"), [(b"x" * 16, b"y"), (digest(b""), b"x" * (MAX_PICKLE + 1))])
def test_a_peer_that_lies_breaks_the_contract(named: bytes, pickle: bytes) -> None:
    """Another digest, or too large: the stream cannot go on."""
    with pytest.raises(DeliveryError) as caught:
        FunctionWindow().take_in(named, pickle)
    assert caught.value.reason == "PROTOCOL_ERROR"


@given(st.lists(st.lists(st.integers(0, 7), max_size=12), max_size=8))
def test_a_sender_need_not_know_where_its_messages_end(messages: list[list[int]]) -> None:
    """A sender that drops the oldest after each call, and a receiver that does so after each message:
    each call finds its function, and behind each message both keep the same."""
    sender, receiver = FunctionWindow(), FunctionWindow()
    made = [function(bytes(1 + number)) for number in range(8)]
    with mock.patch.multiple(_function_window, MAX_BYTES=20, MAX_FUNCTIONS=4):
        for message in messages:
            sent = []
            for needed in (made[number] for number in message):
                if needed not in sender:
                    sent.append(needed)
                    sender.add(needed)
                    sender.trim()
            for one in sent:
                receiver.take_in(*one)
            for needed in (made[number] for number in message):
                assert receiver.find(needed.digest) == needed
            receiver.trim()
            assert [one in receiver for one in made] == [one in sender for one in made]
