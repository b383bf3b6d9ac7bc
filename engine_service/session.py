"""The registration of one engine with its controller, as a synchronous machine: events in, actions out.

    state        opened       welcomed     refused for good   refused for now   closed          left
    OFFLINE      ASKING       -            -                  -                 OFFLINE         GONE
    ASKING       ASKING       REGISTERED   GONE               OFFLINE, AWAY     OFFLINE, AWAY   GONE
    REGISTERED   REGISTERED   -            -                  -                 AWAY            GONE
    AWAY         ASKING       -            -                  -                 AWAY            GONE
    GONE         GONE         GONE         GONE               GONE              GONE            GONE

Where there are two, an engine that had been welcomed before becomes AWAY, any other OFFLINE. The hello of one
that is AWAY is a return, with the id and the epoch of its registration. What is not in the table is a defect of
the controller. So is the welcome of a controller older than one that was obeyed: it changes nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from enginery._reasons import TABLE, DeliveryError, Retry


class Fence:
    """Knows the newest controller that a host has obeyed. All engines of the host share one."""

    def __init__(self) -> None:
        """Begin with none."""
        self._cluster_id = ""
        self._epoch = 0

    def admit(self, cluster_id: str, controller_epoch: int) -> None:
        """Obey this controller from now on; PROTOCOL_ERROR if a newer one of the same cluster was obeyed.

        Another cluster has a count of its own: a host follows its connection file.
        """
        if cluster_id == self._cluster_id and controller_epoch < self._epoch:
            raise DeliveryError(
                "PROTOCOL_ERROR",
                cause=f"this controller has epoch {controller_epoch}, and epoch {self._epoch} was obeyed: "
                "it has been replaced, stop it",
            )
        self._cluster_id, self._epoch = cluster_id, controller_epoch


class State(enum.Enum):
    """Where an engine stands."""

    OFFLINE = "offline"
    ASKING = "asking"
    REGISTERED = "registered"
    AWAY = "away"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class SayHello:
    """Ask to be registered: with an epoch it is a return."""

    engine_id: int | None
    epoch: int | None


@dataclass(frozen=True, slots=True)
class TakeId:
    """The engine is registered under this id."""

    engine_id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The engine must stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class SayGoodbye:
    """Tell the controller that the engine leaves."""

    engine_id: int


Action = SayHello | TakeId | Stop | SayGoodbye


class Session:
    """One engine's registration."""

    def __init__(self, wanted_id: int | None = None, fence: Fence | None = None) -> None:
        """Ask for `wanted_id` at first, if given. `fence` is the host's; by default the engine has its own."""
        self._fence = fence or Fence()
        self.state = State.OFFLINE
        self.engine_id = wanted_id
        self.epoch: int | None = None

    def __repr__(self) -> str:
        """Show state, id and epoch."""
        return f"<Session {self.state.value}, id {self.engine_id}, epoch {self.epoch}>"

    def opened(self) -> list[Action]:
        """A stream is open, or it is time to ask once more on it."""
        if self.state in (State.GONE, State.ASKING, State.REGISTERED):
            return []
        self.state = State.ASKING
        return [SayHello(self.engine_id, self.epoch)]

    def welcomed(self, engine_id: int, epoch: int, cluster_id: str, controller_epoch: int) -> list[Action]:
        """The controller, of that cluster and epoch, registered the engine under this id and epoch."""
        if self.state is State.GONE:
            return [SayGoodbye(engine_id)]  # it left while its hello was on the way
        self._expect_answer("welcome")
        self._fence.admit(cluster_id, controller_epoch)
        self.state = State.REGISTERED
        self.engine_id, self.epoch = engine_id, epoch
        return [TakeId(engine_id)]

    def refused(self, error: DeliveryError) -> list[Action]:
        """The controller did not register the engine."""
        if self.state is State.GONE:
            return []
        self._expect_answer("refusal")
        if TABLE[error.reason].retry is not Retry.NEVER:
            self.state = self._unconnected()
            return []
        self.state = State.GONE
        return [Stop(error.text)]

    def closed(self) -> list[Action]:
        """The stream is over."""
        if self.state is not State.GONE:
            self.state = self._unconnected()
        return []

    def left(self) -> list[Action]:
        """The engine has stopped."""
        was, self.state = self.state, State.GONE
        if was is State.REGISTERED:
            assert self.engine_id is not None
            return [SayGoodbye(self.engine_id)]
        return []

    def _unconnected(self) -> State:
        return State.OFFLINE if self.epoch is None else State.AWAY

    def _expect_answer(self, answer: str) -> None:
        if self.state is not State.ASKING:
            raise DeliveryError("PROTOCOL_ERROR", cause=f"a {answer} came for {self!r}, which had not asked")
