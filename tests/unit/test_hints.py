"""What a client is told beside an answer or an error is taken if it can be, and never ends a connection."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2, status_pb2

from enginery import _status, _values, result
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2


def _told(pause: bytes) -> bytes:
    status = _status.to_proto(DeliveryError("SUPERSEDED"))
    detail = status.details.add()
    detail.Pack(error_details_pb2.RetryInfo())
    detail.value = pause
    data: bytes = status.SerializeToString()
    return data


def _pause(seconds: int) -> bytes:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.seconds = seconds
    data: bytes = info.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("pause", "seconds"),
    [(_pause(3), 3), (_pause((1 << 63) - 1), 60), (_pause(-5), 0), (b"\xff", 0), (b"", 0)],
)
def test_how_long_to_wait(pause: bytes, seconds: float) -> None:
    """A hint is within a minute; one that cannot be read is none."""
    assert _status.retry_delay(_told(pause)) == seconds
    assert _status.retry_delay(status_pb2.Status().SerializeToString()) == 0


def test_hints_of_displays() -> None:
    """Those that hold no value are left out."""
    struct = struct_pb2.Struct()
    struct["size"] = {"width": 5, "far": float("inf")}
    struct.fields["none"].SetInParent()
    assert _values.hints(struct) == {"size": {"width": 5, "far": float("inf")}}


def test_a_record_of_an_error_that_is_empty() -> None:
    """It is shown as one of which the engine did not say what it was."""
    message = engine_pb2.ExecuteResult(engine_id=1, number=2)
    message.error.SetInParent()
    record = result.ExecuteResult(message, (), lambda _: None, "wrap")  # type: ignore[arg-type, return-value]
    assert repr(record).startswith("<ExecuteResult [1:2] raised Exception")
