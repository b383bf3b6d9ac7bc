"""What a task calls: as it is sent, as it is kept, and when two are the same."""

from __future__ import annotations

import itertools

import pytest

from controller_service.task_call import TaskCall
from enginery._function_window import Function, digest
from enginery._methods import ANY_ENGINE
from enginery.v1 import engine_pb2, frame_pb2, value_pb2

PICKLE = value_pb2.Pickle(data=b"function").SerializeToString()
FUNCTION = Function(digest(PICKLE), PICKLE)
ARGUMENTS = value_pb2.Pickle(data=b"arguments")


def made(
    *,
    label: str = "",
    by_digest: bool = True,
    arguments: bytes = b"arguments",
    options: frame_pb2.CallOptions | None = None,
) -> TaskCall:
    """Return that of an Apply."""
    request = engine_pb2.ApplyRequest(pickled_arguments=value_pb2.Pickle(data=arguments))
    if not by_digest:
        request.pickled_function.data = b"function"
    call = frame_pb2.Call(
        method=frame_pb2.METHOD_APPLY,
        options=options,
        request=request.SerializeToString(),
        function_digest=FUNCTION.digest if by_digest else b"",
    )
    return TaskCall.of(call, label, FUNCTION if by_digest else None)


@pytest.mark.parametrize(
    ("label", "by_digest", "options"),
    list(itertools.product(["", "name"], [False, True], [None, frame_pb2.CallOptions(interrupt_only=True)])),
)
def test_an_engine_is_sent_all_of_it(
    label: str, by_digest: bool, options: frame_pb2.CallOptions | None
) -> None:
    """Under the ids of the attempt: as a task, on whatever kernel, with its options and its label."""
    frame = made(label=label, by_digest=by_digest, options=options).frame(77, 300, b"o" * 16)
    (call,) = engine_pb2.ControllerMessage.FromString(frame).calls
    assert (call.call_id, call.engine_id, call.operation_id) == (77, 300, b"o" * 16)
    assert (call.method, call.session_id) == (frame_pb2.METHOD_APPLY, b"")
    assert (call.HasField("task"), call.task) == (True, frame_pb2.TaskOptions(label=label))
    interrupts = options is not None
    assert call.options == frame_pb2.CallOptions(any_incarnation=True, interrupt_only=interrupts)
    assert call.function_digest == (FUNCTION.digest if by_digest else b"")
    request = engine_pb2.ApplyRequest.FromString(call.request)
    assert (request.pickled_arguments, request.HasField("pickled_function")) == (ARGUMENTS, not by_digest)


@pytest.mark.parametrize("by_digest", [False, True])
def test_what_is_kept_stands_alone(by_digest: bool) -> None:
    """With the function in the request, and the options as its client gave them."""
    options = frame_pb2.TaskOptions(retries=3, label="name")
    kept = made(label="name", by_digest=by_digest).kept(b"t" * 16, b"sessionA", options)
    call = frame_pb2.Call.FromString(kept)
    assert (call.engine_id, call.operation_id, call.session_id) == (ANY_ENGINE, b"t" * 16, b"sessionA")
    assert (call.task, call.function_digest) == (options, b"")
    assert engine_pb2.ApplyRequest.FromString(call.request).pickled_function.data == b"function"


def test_the_same_is_told_from_another() -> None:
    """By method, request and function, whichever way the function comes; its mark tells others, if it can."""
    one = made()
    spliced = TaskCall.of(frame_pb2.Call.FromString(one.kept(b"t" * 16, b"", frame_pb2.TaskOptions())), "")
    other, execute = made(arguments=b"others"), one._replace(method=frame_pb2.METHOD_EXECUTE)
    assert [one.asks_the_same_as(call) for call in (made(), spliced)] == [True, True]
    assert not any(one.asks_the_same_as(call) for call in (other, execute))
    assert [one.is_another_than(call.mark) for call in (made(), spliced)] == [False, False]
    assert all(one.is_another_than(call.mark) for call in (other, execute))
    assert one.size == spliced.size - 2  # tag and length of the function
