"""The reply to a call that has no response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery._outcomes import outcome_of
from enginery._status import to_bytes
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from enginery._reasons import DeliveryError


def undelivered(call_id: int, error: DeliveryError) -> frame_pb2.Reply:
    """Return the reply to a call that ended with `error` in the place of a response."""
    return frame_pb2.Reply(call_id=call_id, outcome=outcome_of(error), error=to_bytes(error))
