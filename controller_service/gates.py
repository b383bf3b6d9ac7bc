"""Gates: what was refused must not be overtaken by what its session sends behind it. Without I/O."""

from __future__ import annotations

from dataclasses import dataclass

GATE_SECONDS = 10.0
"""How long a refused operation holds back what its session sends behind it, unless it comes again: callers try
again within two seconds, or have given it up."""
MAX_GATES = 4_096
"""Sessions that are held back at the same time; of more, the one that was refused first is let go."""


@dataclass(slots=True)
class _Gate:
    operation_id: bytes
    opens_at: float


class Gates:
    """Sessions of which an operation was refused. Falsy while there are none."""

    def __init__(self) -> None:
        """Begin with none."""
        self._gates: dict[bytes, _Gate] = {}  # those that were refused first come first

    def __len__(self) -> int:
        """Return how many sessions are held back."""
        return len(self._gates)

    def hold_back(self, session_id: bytes, operation_id: bytes, now: float) -> bool:
        """Return whether an operation must wait, since an earlier one of its session does."""
        while self._gates and next(iter(self._gates.values())).opens_at <= now:
            del self._gates[next(iter(self._gates))]
        gate = self._gates.get(session_id)
        return gate is not None and gate.operation_id != operation_id

    def close(self, session_id: bytes, operation_id: bytes, now: float) -> None:
        """An operation is refused: what its session sends behind it waits until it comes again."""
        self._gates.pop(session_id, None)  # if it is refused once more, its gate is the newest
        self._gates[session_id] = _Gate(operation_id, now + GATE_SECONDS)
        if len(self._gates) > MAX_GATES:
            del self._gates[next(iter(self._gates))]

    def open(self, session_id: bytes) -> None:
        """The operation that was refused is taken."""
        self._gates.pop(session_id, None)

    def clear(self) -> None:
        """Hold nobody back."""
        self._gates.clear()
