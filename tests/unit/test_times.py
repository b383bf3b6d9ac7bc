"""Times that messages tell: they are only shown, so whatever comes is shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from enginery import _times


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (Timestamp(seconds=5, nanos=7_000), datetime(1970, 1, 1, 0, 0, 5, 7, UTC)),
        (Timestamp(seconds=-1, nanos=-1), datetime(1970, 1, 1, tzinfo=UTC)),
        (Timestamp(seconds=1 << 62, nanos=(1 << 31) - 1), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
    ],
)
def test_moments(told: Timestamp, shown: datetime) -> None:
    """One that is no time is the nearest that is."""
    assert _times.moment(told) == shown


def test_durations() -> None:
    """Of any length."""
    assert _times.seconds(Duration(seconds=1, nanos=500_000_000)) == 1.5
    assert _times.seconds(Duration(seconds=(1 << 63) - 1)) == float(1 << 63)
