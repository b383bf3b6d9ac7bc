"""The lease of one registration: whether its engine is connected, silent, away for a while, or gone.

A synchronous machine without I/O; `now` is seconds of any steady clock. docs/machines/lease.md tells more.
"""

from __future__ import annotations

import enum
import math

SILENCE = 30.0
"""Seconds without a heartbeat after which a connected engine counts as unresponsive."""
RETURN = 8.0
"""Seconds that a kept lease has left at least: hosts try to reach a controller every 6 s."""


class State(enum.Enum):
    """How a registration is."""

    CONNECTED = "connected"
    UNRESPONSIVE = "unresponsive"
    AWAY = "away"
    GONE = "gone"


class Input(enum.Enum):
    """What happens to a registration."""

    HEARD = "a heartbeat came"
    SILENT = "no heartbeat came for long"
    STREAM_ENDED = "its stream ended"
    CAME_BACK = "it said hello again"
    EXPIRED = "its lease ran out"
    LEFT = "it was unregistered"


TRANSITIONS: dict[tuple[State, Input], State] = {
    (State.CONNECTED, Input.HEARD): State.CONNECTED,
    (State.CONNECTED, Input.SILENT): State.UNRESPONSIVE,
    (State.CONNECTED, Input.STREAM_ENDED): State.AWAY,
    (State.CONNECTED, Input.LEFT): State.GONE,
    (State.UNRESPONSIVE, Input.HEARD): State.CONNECTED,
    (State.UNRESPONSIVE, Input.STREAM_ENDED): State.AWAY,
    (State.UNRESPONSIVE, Input.LEFT): State.GONE,
    (State.AWAY, Input.CAME_BACK): State.CONNECTED,
    (State.AWAY, Input.EXPIRED): State.GONE,
    (State.AWAY, Input.LEFT): State.GONE,
}
"""All that may happen. Anything else is a defect of whoever says that it did."""


class Lease:
    """One registration's standing. The lease itself runs only while the engine is away."""

    __slots__ = ("_duration", "_heard_at", "ends", "reason", "since", "state")

    def __init__(self, duration: float, now: float) -> None:
        """Begin connected; the lease lasts `duration` seconds, which may be infinite."""
        self._duration = duration
        self._heard_at = now
        self.state = State.CONNECTED
        self.since = now
        """When it became connected, silent or away."""
        self.reason = ""
        """Why it is silent, away or without a lease, for people; empty while connected."""
        self.ends = math.inf
        """When the registration ends unless the engine comes back; infinite unless it is away."""

    @classmethod
    def kept(cls, duration: float, now: float, used: float = 0.0) -> Lease:
        """Return the lease of an engine that an earlier controller registered: away, with what is left of it.

        `used` is what of it had passed under the controllers before, in seconds. RETURN is always left.
        """
        lease = cls(duration, now)
        lease.stream_ended(now, "the controller was started again, and it did not come back yet")
        lease.ends = now + max(duration - used, min(duration, RETURN))
        return lease

    def __repr__(self) -> str:
        """Show the state."""
        return f"Lease({self.state.value}{f': {self.reason}' if self.reason else ''})"

    @property
    def is_connected(self) -> bool:
        """Whether it has a stream."""
        return self.state in (State.CONNECTED, State.UNRESPONSIVE)

    def used(self, now: float) -> float:
        """Return the seconds of the lease that have passed."""
        return 0.0 if math.isinf(self.ends) else self._duration - (self.ends - now)

    def heard(self, now: float) -> None:
        """A heartbeat came."""
        self._heard_at = now
        self._take(Input.HEARD, now)

    def stream_ended(self, now: float, reason: str) -> None:
        """The stream ended: the lease begins to run."""
        self._take(Input.STREAM_ENDED, now, reason)
        self.ends = now + self._duration

    def came_back(self, now: float) -> None:
        """The engine said hello on another stream: the lease is whole again."""
        self._heard_at = now
        self.ends = math.inf
        self._take(Input.CAME_BACK, now)

    def left(self) -> None:
        """It was unregistered."""
        if self.state is not State.GONE:  # its lease may just have run out
            self.state = self._after(Input.LEFT)

    def excuse(self, seconds: float) -> None:
        """The controller itself did not run for so long: nobody could be heard, or come back."""
        self._heard_at += seconds
        self.ends += seconds

    def tick(self, now: float) -> Input | None:
        """Return what the passing of time has done to it, if anything: EXPIRED or SILENT."""
        if self.state is State.AWAY and now >= self.ends:
            reason = f"it did not come back within its lease of {self._duration:g} s"
            self._take(Input.EXPIRED, now, reason)
            return Input.EXPIRED
        silent = now - self._heard_at
        if self.state is State.CONNECTED and silent >= SILENCE:
            self._take(Input.SILENT, now, f"no heartbeat for {silent:.0f} s")
            return Input.SILENT
        return None

    def _take(self, what: Input, now: float, reason: str = "") -> None:
        after = self._after(what)
        if after is not self.state:
            self.state, self.since, self.reason = after, now, reason

    def _after(self, what: Input) -> State:
        after = TRANSITIONS.get((self.state, what))
        if after is None:
            raise AssertionError(f"a registration is {self.state.value}, but {what.value}")
        return after
