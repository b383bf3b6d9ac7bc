"""How a running operation is stopped: interrupt, grace, interrupt, grace, kill. No I/O; time is an argument.

    state        what happens            action      next state
    UNTOUCHED    it begins               INTERRUPT   INTERRUPTED
    INTERRUPTED  the grace has passed    INTERRUPT   WARNED
    WARNED       the grace has passed    KILL        KILLED       unless only interrupts are allowed:
    WARNED       the grace has passed    -           SPENT
    SPENT        it is asked again       INTERRUPT   WARNED

The operation ends it, whatever the state: who holds the ladder then drops it. An interrupt names its operation
(see `KernelProcess.interrupt`), so one that comes too late hits nobody.
"""

from __future__ import annotations

import enum


class Action(enum.Enum):
    """What to do to the operation, or to the kernel that runs it."""

    INTERRUPT = enum.auto()
    KILL = enum.auto()


class State(enum.Enum):
    """How far it went."""

    UNTOUCHED = enum.auto()
    INTERRUPTED = enum.auto()
    WARNED = enum.auto()
    SPENT = enum.auto()
    KILLED = enum.auto()


class Event(enum.Enum):
    """What happens to it."""

    ASKED = enum.auto()
    GRACE_PASSED = enum.auto()
    GRACE_PASSED_INTERRUPT_ONLY = enum.auto()


_TRANSITIONS: dict[tuple[State, Event], tuple[Action | None, State]] = {
    (State.UNTOUCHED, Event.ASKED): (Action.INTERRUPT, State.INTERRUPTED),
    (State.INTERRUPTED, Event.GRACE_PASSED): (Action.INTERRUPT, State.WARNED),
    (State.INTERRUPTED, Event.GRACE_PASSED_INTERRUPT_ONLY): (Action.INTERRUPT, State.WARNED),
    (State.WARNED, Event.GRACE_PASSED): (Action.KILL, State.KILLED),
    (State.WARNED, Event.GRACE_PASSED_INTERRUPT_ONLY): (None, State.SPENT),
    (State.SPENT, Event.ASKED): (Action.INTERRUPT, State.WARNED),
}
"""What is not here changes nothing: asked again on the way, it goes on as it was, at most faster."""


class Ladder:
    """The stopping of one operation. `grace` is in seconds; `next_at` is when to call `tick`, None if never."""

    __slots__ = ("_state", "grace", "interrupt_only", "next_at")

    def __init__(self, grace: float, *, interrupt_only: bool) -> None:
        """Give the operation `grace` seconds after each interrupt; never kill if `interrupt_only`."""
        self.grace = grace
        self.interrupt_only = interrupt_only
        self.next_at: float | None = None
        self._state = State.UNTOUCHED

    @property
    def state(self) -> State:
        """How far it went."""
        return self._state

    def begin(self, now: float) -> list[Action]:
        """Begin to stop it, and return what to do, in order."""
        assert self._state is State.UNTOUCHED
        return self._step(Event.ASKED, now) + self.tick(now)

    def sharpen(self, now: float, grace: float, *, interrupt_only: bool) -> list[Action]:
        """Stop it faster if that is asked, or by a kill if that is allowed now; never slower or less.

        One that was interrupted in vain, and may not be killed, is interrupted again.
        """
        self.interrupt_only = self.interrupt_only and interrupt_only
        self.grace = min(self.grace, grace)
        if self.next_at is not None:
            self.next_at = min(self.next_at, now + self.grace)
        return self._step(Event.ASKED, now) + self.tick(now)

    def tick(self, now: float) -> list[Action]:
        """Return what is due. Each step gets its whole grace, however late this is called."""
        actions: list[Action] = []
        while self.next_at is not None and now >= self.next_at:
            event = Event.GRACE_PASSED_INTERRUPT_ONLY if self.interrupt_only else Event.GRACE_PASSED
            actions += self._step(event, now)
        return actions

    def _step(self, event: Event, now: float) -> list[Action]:
        action, state = _TRANSITIONS.get((self._state, event), (None, self._state))
        if state is self._state:
            return []
        self._state = state
        self.next_at = now + self.grace if state in (State.INTERRUPTED, State.WARNED) else None
        return [action] if action is not None else []
