"""The order in which operations are shown that others submitted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from enginery import _ids
from enginery.operations import OperationInfo, in_order

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def test_operations_of_one_caller_come_as_it_submitted_them() -> None:
    """Whichever host heard of its one first. Who began first comes first; what nobody heard of is left out."""
    first, second = (bytes([session]) * 8 for session in (9, 1))

    def info(session: bytes, counter: int, milliseconds: int | None) -> OperationInfo:
        heard = None if milliseconds is None else _BEGAN + timedelta(milliseconds=milliseconds)
        name = _ids.show(_ids.operation_id(session, counter))
        return OperationInfo(name, "running", 0, "execute", submitted_at=heard)

    shown = [info(first, 1, 1), info(first, 2, 0), info(first, 300, 5), info(second, 1, 4), info(second, 2, 3)]
    assert in_order([*reversed(shown), info(second, 3, None)]) == shown
