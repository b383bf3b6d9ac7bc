"""The client's session: batches, order behind uploads, and what ends when."""

from __future__ import annotations

import threading

import pytest

from enginery import _calls, _session
from enginery._encoded import Codec, Encoded
from enginery._reasons import DeliveryError
from enginery._session import Entry, Session
from enginery.errors import ControllerLost, DataLoss, QueueCleared
from enginery.v1 import cluster_pb2, value_pb2

BLOB = (value_pb2.Blob(blob_id="b", size=1, part_sizes=[1]), Encoded(Codec.PICKLE, (b"x",)))


def submit(
    session: Session, code: str = "1", engine_id: int = 0, *, upload: bool = False, now: float = 0.0
) -> Entry:
    request = _calls.execute(code)
    if upload:
        request.uploads = (BLOB,)
    entry = session.entry(request, engine_id, "raise", now)
    session.submit([entry], may_wait=False)
    return entry


def sent(session: Session) -> list[int]:
    """Take one message and return the ids of its calls."""
    message = session.take()
    if message is None:
        return []
    return [call.call_id for call in cluster_pb2.SessionRequest.FromString(message).calls]


def test_what_piled_up_goes_in_one_message() -> None:
    """All calls that wait travel together, in the order in which they were submitted."""
    session = Session()
    ids = [submit(session, engine_id=n % 3).call_id for n in range(5)]
    assert session.accept() == []
    assert sent(session) == ids
    assert session.take() is None
    assert (session.unsent_count, session.waiting_count) == (0, 5)


def test_a_message_has_bounds() -> None:
    """At most 256 calls or about 512 KiB to a message; one call that is larger goes alone."""
    session = Session()
    for _ in range(300):
        submit(session)
    submit(session, "#" * (1 << 20))
    submit(session)
    session.accept()
    assert [len(sent(session)) for _ in range(4)] == [256, 45, 1, 0]


def test_a_call_waits_behind_the_upload_of_one_before_it() -> None:
    """Order on one engine holds: what follows a call with uploads is sent after it; other engines go on."""
    session = Session()
    large, behind = submit(session, upload=True), submit(session)
    other = submit(session, engine_id=1)
    assert session.accept() == [large]
    assert sent(session) == [other.call_id]
    assert session.uploaded(large) is None
    assert sent(session) == [large.call_id, behind.call_id]


def test_uploads_of_one_engine_come_one_after_the_other() -> None:
    """The second upload starts when the first call is on its way."""
    session = Session()
    first, second = submit(session, upload=True), submit(session, upload=True)
    assert session.accept() == [first]
    assert session.uploaded(first) is second
    assert sent(session) == [first.call_id]
    assert session.uploaded(second) is None
    assert sent(session) == [second.call_id]


def test_control_calls_pass_uploads() -> None:
    """What engines answer at once is not held back."""
    session = Session()
    large = submit(session, upload=True)
    control = session.entry(_calls.queue_status(), 0, "raise", 0.0)
    session.submit([control], may_wait=False)
    assert session.accept() == [large]
    assert sent(session) == [control.call_id]


def test_a_failed_upload_clears_what_was_behind_it() -> None:
    """As with any failure, what the session queued behind it does not run; later calls do."""
    session = Session()
    large, behind = submit(session, upload=True), submit(session)
    session.accept()
    session.upload_failed(large, DeliveryError("CHECKSUM_MISMATCH", offset=0, blob_id="b"))
    assert isinstance(large.operation.exception(), DataLoss)
    assert isinstance(behind.operation.exception(), QueueCleared)
    assert session.unsent_count == 0
    later = submit(session)
    session.accept()
    assert sent(session) == [later.call_id]


def test_a_broken_connection_ends_what_was_sent_only() -> None:
    """Calls in flight are lost, since they may have run; those that wait go out on the next connection."""
    session = Session()
    first = submit(session)
    session.accept()
    sent(session)
    second = submit(session)
    session.accept()
    session.disconnected("socket closed")
    error = first.operation.exception()
    assert isinstance(error, ControllerLost)
    assert "may have run" in str(error)
    assert "socket closed" in str(error)
    assert not second.operation.done()
    assert sent(session) == [second.call_id]
    assert session.replied(first.call_id) is None


def test_calls_that_cannot_be_sent_expire() -> None:
    """Without a connection a call waits only so long, and its error says that it was not sent."""
    session = Session()
    early, late = submit(session, now=1.0), submit(session, now=5.0)
    session.accept()
    session.expire(2.0, "no controller")
    assert "was not sent" in str(early.operation.exception())
    assert not late.operation.done()
    assert sent(session) == [late.call_id]


def test_closing_ends_everything() -> None:
    """After close every call has ended, and none can be submitted."""
    session = Session()
    entries = [submit(session)]
    session.accept()
    sent(session)
    entries += [submit(session, upload=True), submit(session), submit(session, engine_id=1)]
    session.close()
    assert all(isinstance(entry.operation.exception(), ControllerLost) for entry in entries)
    assert (session.unsent_count, session.waiting_count) == (0, 0)
    with pytest.raises(DeliveryError, match="closed"):
        submit(session)


def test_submitting_waits_while_too_much_is_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of unsent calls has a bound: a thread waits for room, the loop's own is told at once."""
    monkeypatch.setattr(_session, "UNSENT_CALLS", 1)
    session = Session()
    submit(session)
    with pytest.raises(DeliveryError, match="unsent"):
        submit(session)
    entry = session.entry(_calls.keys(), 0, "raise", 0.0)
    thread = threading.Thread(target=session.submit, args=([entry],), kwargs={"may_wait": True})
    thread.start()
    session.accept()
    assert sent(session)
    thread.join(10)
    session.accept()
    assert sent(session) == [entry.call_id]


def test_operation_ids_follow_from_session_and_call() -> None:
    """The id that an operation shows is the one that the controller derives, so it need not travel."""
    session = Session(b"\x01\x02\x03\x04\x05\x06\x87\x08")
    entry = submit(session)
    assert entry.operation.operation_id == "01020304-0506-8708-8000-000000000001"
