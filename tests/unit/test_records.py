"""Records: the last commands by number, with bounds."""

from __future__ import annotations

import pytest

from engine_service.records import Records
from enginery.v1 import engine_pb2


def test_by_number_and_the_latest() -> None:
    """Numbers count from 1; the default is the latest that has finished."""
    records = Records()
    assert [records.take_number() for _ in range(3)] == [1, 2, 3]
    records.add(1, b"one")
    records.add(2, b"two")
    assert records.get() == b"two"
    assert records.get(1) == b"one"
    with pytest.raises(IndexError, match="3 still runs"):
        records.get(3)


def test_every_missing_record_says_why() -> None:
    """Nothing executed, unknown number and released record are told apart."""
    records = Records(max_count=2)
    with pytest.raises(IndexError, match="nothing was executed yet"):
        records.get()
    with pytest.raises(IndexError, match="no command 1: nothing"):
        records.get(1)
    for _ in range(3):
        records.add(records.take_number(), b"x")
    with pytest.raises(IndexError, match="no command 4: those executed are 1 to 3"):
        records.get(4)
    with pytest.raises(IndexError, match="no command 0"):
        records.get(0)
    with pytest.raises(IndexError, match="released"):
        records.get(1)


def test_bytes_are_bounded_too() -> None:
    """Old records go when the bytes are over the limit; the newest always stays."""
    records = Records(max_bytes=10)
    for size in (4, 4, 4, 100):
        records.add(records.take_number(), bytes(size))
    assert len(records) == 1
    assert records.size == 100
    assert records.get() == bytes(100)


def test_clear_counts_from_one_again() -> None:
    """After a reset there are no records, and the next is number 1."""
    records = Records()
    records.add(records.take_number(), b"x")
    records.clear()
    assert (len(records), records.size, records.take_number()) == (0, 0, 1)


def test_an_execute_response_is_a_get_result_response() -> None:
    """Records are kept as ExecuteResponse and returned as GetResultResponse: the same bytes."""
    result = engine_pb2.ExecuteResult(number=3, text="2")
    data = engine_pb2.ExecuteResponse(result=result).SerializeToString()
    assert engine_pb2.GetResultResponse.FromString(data) == engine_pb2.GetResultResponse(result=result)
