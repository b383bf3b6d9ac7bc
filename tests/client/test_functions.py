"""Functions travel once on a connection: their calls name them by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery import _calls
from enginery._function_window import MAX_FUNCTIONS, MAX_PICKLE, FunctionWindow
from enginery._session import Session
from enginery.v1 import cluster_pb2, engine_pb2

if TYPE_CHECKING:
    import enginery
    from tests.client.fake import FakeController


def submit(session: Session, *requests: _calls.Request[object]) -> cluster_pb2.SessionRequest:
    """Submit calls and return the message that they go in."""
    entries = [session.entry(request, 0, "raise", 0.0) for request in requests]
    session.submit(entries, may_wait=False)
    session.accept()
    return cluster_pb2.SessionRequest.FromString(session.take() or b"")


def calling(part: object) -> _calls.Request[object]:
    """Return a call of a function that holds `part`."""
    return _calls.apply(lambda: part, (), {})


def test_a_function_travels_once(client: enginery.Client, controller: FakeController) -> None:
    """By calls of one engine and of several, tasks, maps and chunks of maps; and again on the next stream."""
    digests = controller.functions

    def double(x: int) -> int:
        return 2 * x

    assert client[0].apply(double, 1) == 2
    assert client[:].apply(double, 2) == [4, 4]
    assert client.submit(double, 3).result(10) == 6
    assert list(client.map(double, range(5), chunksize=1)) == [0, 2, 4, 6, 8]
    assert len(digests) == 1
    assert list(client.map(double, range(5), chunksize=2)) == [0, 2, 4, 6, 8]
    assert len(digests) == 2
    controller.stop()
    controller.start()
    assert client[0].apply(double, 4) == 8
    assert (len(digests), digests[2]) == (3, digests[0])


def test_calls_name_what_their_message_or_one_before_has() -> None:
    """Two of one message share it; the next message does without; a new connection begins anew."""
    session = Session()
    request = calling(1)
    first = submit(session, request, request)
    assert request.function is not None
    assert [function.digest for function in first.functions] == [request.function.digest]
    assert {call.function_digest for call in first.calls} == {request.function.digest}
    assert not engine_pb2.ApplyRequest.FromString(first.calls[0].request).HasField("pickled_function")
    assert not submit(session, request).functions
    session.disconnected("it broke", 1.0)
    session.connected(2.0)
    again = cluster_pb2.SessionRequest.FromString(session.take() or b"")
    assert (len(again.functions), len(again.calls)) == (1, 3)
    session.close()


def test_a_function_that_the_controller_dropped_is_sent_again() -> None:
    """Client and controller count the same: no call ever names what is not kept."""
    session, window = Session(), FunctionWindow()
    requests = [calling(number) for number in range(MAX_FUNCTIONS + 10)]
    sent = 0
    for request in (*requests, *requests[-100:], requests[0]):
        message = submit(session, request)
        for function in message.functions:
            window.take_in(function.digest, function.pickle)
            sent += 1
        assert all(window.named_by(call) == request.function for call in message.calls)
        window.trim()
    assert sent == len(requests) + 1
    session.close()


def test_small_and_very_large_functions_go_within_their_calls() -> None:
    """As do names: a digest would spare nothing, or nobody would keep it."""
    large = calling("x" * MAX_PICKLE)
    requests = [large, _calls.apply(abs, (), {}), _calls.apply("abs", (), {})]
    assert [request.function for request in requests] == [None] * 3
    kinds = [engine_pb2.ApplyRequest.FromString(request.payload).WhichOneof("function") for request in requests]
    assert kinds == ["pickled_function", "pickled_function", "function_name"]


def test_what_waits_counts_with_its_function() -> None:
    """So that calls of many large functions are bounded as any others."""
    session = Session()
    (alone,) = session.entries(calling("x" * 100_000), [0], "raise", 0.0)
    shared, _ = session.entries(calling("x" * 100_000), [0, 1], "raise", 0.0)
    assert 100_000 < alone.size < 102_000
    assert 50_000 < shared.size < 51_500
