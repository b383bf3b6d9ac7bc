"""A task: how it stands, and what its scheduler goes by. Without I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controller_service.shelf import Where


class State(enum.Enum):
    """How a task stands."""

    NEW = "has just come"
    HELD = "may be on an engine that has not come back to this controller"
    BLOCKED = "comes after others that have not ended"
    READY = "waits for an engine"
    PLACED = "is on an engine"
    ENDED = "has ended"

    __hash__ = object.__hash__  # Enum's is Python, and three are taken for each task


TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.HELD, State.BLOCKED, State.READY}),
    # Nobody has it, so it goes on as a new one; an engine has it; lost with one that has not come; cancelled.
    State.HELD: frozenset({State.BLOCKED, State.READY, State.PLACED, State.ENDED}),
    # What it comes after has ended; that did not succeed, or it was cancelled.
    State.BLOCKED: frozenset({State.READY, State.ENDED}),
    # An engine has room; cancelled, too late, or refused by every engine.
    State.READY: frozenset({State.PLACED, State.ENDED}),
    # It is to run again, or did not run; answered.
    State.PLACED: frozenset({State.READY, State.ENDED}),
    State.ENDED: frozenset(),
}
"""Where a task may go from where it is."""


@dataclass(slots=True, eq=False)
class Task:
    """One task. Changed by its scheduler alone, but for what it carries."""

    task_id: bytes
    size: int
    """Bytes of its request."""
    payload: Any = None
    """What is to be sent for it, which the scheduler does not read."""
    session_id: bytes = b""
    retries: int = 0
    priority: int = 0
    where: Where = ()
    after: frozenset[bytes] = frozenset()
    """What it comes after and has not ended."""
    after_any_outcome: bool = False
    placement_timeout: float | None = None
    state: State = State.NEW
    arrival: int = 0
    attempts: int = 0
    """How often it was placed to be run, without those that did not run."""
    engine_id: int | None = None
    """The engine that it is on, or was on last."""
    epoch: int = 0
    """Of that engine's registration."""
    placed_at: float = 0.0
    excluded: frozenset[int] = frozenset()
    """Engines that rejected it."""
    is_stopping: bool = False
    """Whether somebody cancelled it: then it does not run again."""

    @property
    def is_ready(self) -> bool:
        """Whether it waits for an engine alone."""
        return self.state is State.READY

    def __repr__(self) -> str:
        """Show how it stands."""
        return f"Task({self.task_id.hex()}, {self.state.name}, attempts={self.attempts})"
