"""One call of a session, and where it may be on its way."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enginery._reasons import DeliveryError
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from enginery._calls import Request, Uploads
    from enginery._path import Path
    from enginery._shared_call import SharedCall
    from enginery.operation import Operation

_CALL_COST = 512  # bytes that a call takes besides its request


class State(enum.Enum):
    """Where a call is."""

    NEW = "submitted, not looked at"
    LANE = "waits for an upload, or for its engine to take calls"
    READY = "goes with the next message"
    SENT = "waits for its answer"
    ENDED = "is answered, or has failed"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.READY, State.LANE, State.ENDED}),
    # An upload is there, or its engine may take it now; failed upload, cancelled, too late.
    State.LANE: frozenset({State.READY, State.ENDED}),
    # Sent; a call before it was refused; cancelled, too late.
    State.READY: frozenset({State.SENT, State.LANE, State.ENDED}),
    # Answered; refused; the connection broke: to be sent again, or not if it is not to be repeated.
    State.SENT: frozenset({State.ENDED, State.LANE, State.READY}),
    State.ENDED: frozenset(),
}
"""Where a call may go from where it is. Each is the doing of one method of Session."""


@dataclass(slots=True, eq=False)
class Entry:
    """One call, kept until it is answered."""

    call_id: int
    operation: Operation[Any]
    request: Request[Any]
    frame: bytes
    """A serialized SessionRequest that holds this call alone; joined, such messages are one with all calls.
    Empty if it is one of a `shared` call."""
    uploads: Uploads
    """What must be uploaded first; empty once it was."""
    submitted_at: float
    epoch: int
    """The registration of its engine that is meant: the one that was known when it was made. 0 if none was. Of
    a task, the controller to which it was sent first."""
    shared: SharedCall | None = None
    """What it has in common with the same call on other engines; those with call ids in a row go as one."""
    sendings: int = 0
    """How often it was sent; 0 while the engine cannot have it."""
    path: Path | None = None
    """The one on which it was sent last."""

    @property
    def size(self) -> int:
        """How much it takes, in bytes."""
        if self.shared is not None:
            return _CALL_COST + self.shared.size
        return _CALL_COST + len(self.frame) + self.request.function_size

    def again(self) -> bytes:
        """Return the frame of a call that says which registration of its engine it means."""
        message = cluster_pb2.SessionRequest.FromString(self.frame)
        message.calls[0].sent_epoch = self.epoch
        return message.SerializeToString()

    def withdrawn(self) -> DeliveryError:
        """Return the failure of a call that was taken back before it was sent."""
        return DeliveryError(
            "OPERATION_CANCELLED",
            engine_id=self.operation.target,
            operation_id=self.operation.operation_id,
            cause="it was taken out of the queue before it was sent",
            namespace="kept",
        )

    def lost(self, cause: str) -> DeliveryError:
        """Return the failure of a call for which there is no connection."""
        return DeliveryError("CONTROLLER_LOST" if self.sendings else "NOT_SENT", cause=cause)
