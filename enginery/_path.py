"""The ways of calls: streams to the controller, and to the hosts of engines, without I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enginery._function_window import FunctionWindow

if TYPE_CHECKING:
    from collections.abc import Collection

    from enginery._entry import Entry


@dataclass(slots=True, eq=False)
class Path:
    """What goes out on a stream. The relay's is the same for each connection; a direct one is used once."""

    is_direct: bool = False
    """Whether it leads to a host."""
    outbox: deque[Entry] = field(default_factory=deque)
    """Calls that go with its next messages."""
    functions: FunctionWindow = field(default_factory=FunctionWindow)
    """Functions that its stream has carried."""


class Ways:
    """Which path the calls of each engine take: the relay's, or one to its host. Two at a time never."""

    def __init__(self) -> None:
        """Begin with the relay alone."""
        self.relay = Path()
        self.called = 0
        """How many engines were ever called: whether there is a new one among them."""
        self._direct: dict[int, Path] = {}
        self._offered: dict[int, Path] = {}
        self._unanswered: dict[int, int] = {}  # calls of each engine that was ever called

    def __len__(self) -> int:
        """Return how many engines are called at their hosts now."""
        return len(self._direct)

    def of(self, engine_id: int) -> Path:
        """Return the path that calls of an engine take now."""
        return self._direct.get(engine_id, self.relay)

    def is_direct(self, engine_id: int) -> bool:
        """Return whether calls of an engine go to its host now."""
        return engine_id in self._direct

    def direct(self, engine_id: int) -> Path | None:
        """Return the path to its host that calls of an engine take, or will; None if they take the relay."""
        return self._direct.get(engine_id) or self._offered.get(engine_id)

    def paths(self) -> set[Path]:
        """Return all that are taken."""
        return {self.relay, *self._direct.values()}

    def was_called(self, engine_id: int) -> bool:
        """Return whether an engine was ever called."""
        return engine_id in self._unanswered

    def begin(self, engine_id: int) -> None:
        """There is one more call of an engine; if it is the only one, this is when they may go another way."""
        count = self._unanswered.get(engine_id)
        if count is None:
            self.called += 1
        elif not count and engine_id in self._offered:
            self._direct[engine_id] = self._offered.pop(engine_id)
        self._unanswered[engine_id] = (count or 0) + 1

    def end(self, engine_id: int) -> None:
        """A call of an engine was answered, or has failed."""
        self._unanswered[engine_id] -= 1

    def offer(self, engine_id: int, path: Path) -> None:
        """Let the calls of an engine go to its host, from when none of them is unanswered."""
        self._offered[engine_id] = path

    def leave(self, engine_ids: Collection[int]) -> dict[int, Path]:
        """Let the calls of engines take the relay; return the paths that they took until now."""
        for engine_id in engine_ids:
            self._offered.pop(engine_id, None)
        return {one: self._direct.pop(one) for one in engine_ids if one in self._direct}
