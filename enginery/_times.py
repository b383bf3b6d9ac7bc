"""Times that a caller gives, in seconds, and those that messages tell."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = 253_402_300_799  # of the year 9999


def check(name: str, value: float, most: float = math.inf) -> float:
    """Return a time; TypeError if it is no number, ValueError if it is not within 0 and `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} of {value:g} s is not within 0 and {most:g}")
    return float(value)


def moment(told: Timestamp) -> datetime:
    """Return the time of a message, UTC; one that is none as the nearest that is: it is only shown."""
    seconds = min(max(told.seconds, 0), _LAST_SECOND)
    return _EPOCH + timedelta(seconds=seconds, microseconds=min(max(told.nanos, 0), 999_999_999) // 1000)


def seconds(told: Duration) -> float:
    """Return the duration of a message in seconds, whatever it is."""
    return told.seconds + told.nanos / 1e9
