"""Rows of the journal's database, read back.

Each value is checked: SQLite keeps any kind of it in any column, and has no checksums, so a disk or a hand may
have put anything there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from controller_service.journal_records import EngineRow, KeptTask, Result
from controller_service.placement import options_of
from controller_service.task_call import TaskCall
from enginery._methods import ANY_ENGINE, NAMES
from enginery._outcomes import STATES
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller_service.journal_records import NamedCall

_HIGHEST_ID = (1 << 31) - 1
_HIGHEST_EPOCH = 1 << 53
_HIGHEST_PORT = 65_535
_LAST_MS = 253_402_300_799_999  # of the year 9999
_HIGHEST = (1 << 63) - 1
_OPERATION_BYTES = 16
_SESSION_BYTES = 8


class DamagedRowError(ValueError):
    """A row says what nobody wrote."""


def engine(row: Sequence[Any]) -> EngineRow:
    """Return what a row says of an engine id; DamagedRowError if it makes no sense."""
    engine_id, epoch, retired, hello, ip, port, registered_ms, is_first, lease_used = row
    if type(hello) is not bytes or type(ip) is not str:
        raise DamagedRowError("hello or ip")
    if type(lease_used) is not float or not 0 <= lease_used < math.inf:
        raise DamagedRowError("lease_used")
    return EngineRow(
        _number("engine_id", engine_id, 0, _HIGHEST_ID),
        _number("epoch", epoch, 0, _HIGHEST_EPOCH),
        bool(_number("retired", retired, 0, 1)),
        hello,
        ip,
        _number("port", port, 0, _HIGHEST_PORT),
        _number("registered_ms", registered_ms, 0, _LAST_MS),
        bool(_number("is_first", is_first, 0, 1)),
        lease_used,
    )


def task(row: Sequence[Any]) -> KeptTask:
    """Return the task in a row; DamagedRowError if it makes no sense."""
    task_id, frame, submitted_ns, arrival, attempts, engine_id, epoch, rejected_by = row
    try:
        call = frame_pb2.Call.FromString(frame)
        excluded = frozenset(
            _number("rejected_by", int(one), 0, _HIGHEST_ID) for one in rejected_by.split(",") if one
        )
    except Exception as error:  # protobuf's DecodeError differs in class between its implementations
        raise DamagedRowError(f"frame or rejected_by ({error})") from error
    options = options_of(call)
    return KeptTask(
        _id(task_id),
        _session(call.session_id),
        TaskCall.of(call, options.label),
        options,
        _number("submitted_ns", submitted_ns, 0, _HIGHEST),
        _number("arrival", arrival, 0, _HIGHEST_EPOCH),
        _number("attempts", attempts, 0, _HIGHEST_ID),
        _number("engine_id", engine_id, ANY_ENGINE, _HIGHEST_ID),
        _number("epoch", epoch, 0, _HIGHEST_EPOCH),
        excluded,
    )


def result(row: Sequence[Any], response: bytes = b"", error: bytes = b"") -> Result:
    """Return the result in a row, whose answer is given; DamagedRowError if it makes no sense."""
    operation_id, engine_id, method, session_id, outcome, ended_ms, attempts, label, number = row
    if type(method) is not int or method not in NAMES or type(outcome) is not int or outcome not in STATES:
        raise DamagedRowError("method or outcome")
    if type(response) is not bytes or type(error) is not bytes or type(label) is not str:
        raise DamagedRowError("answer or label")
    return Result(
        _id(operation_id),
        _number("engine_id", engine_id, ANY_ENGINE, _HIGHEST_ID),
        method,
        _session(session_id),
        outcome,
        _number("ended_ms", ended_ms, 0, _LAST_MS),
        response,
        error,
        _number("attempts", attempts, 0, _HIGHEST_ID),
        label,
        number,
    )


def named_call(row: Sequence[Any]) -> tuple[NamedCall, int]:
    """Return the call in a row, and the epoch of its engine; DamagedRowError if it makes no sense."""
    operation_id, engine_id, epoch = row
    call = _id(operation_id), _number("engine_id", engine_id, 0, _HIGHEST_ID)
    return call, _number("epoch", epoch, 0, _HIGHEST_EPOCH)


def _number(name: str, value: object, lowest: int, highest: int) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise DamagedRowError(name)
    return value


def _id(value: object) -> bytes:
    if type(value) is not bytes or len(value) != _OPERATION_BYTES:
        raise DamagedRowError("the id of an operation")
    return value


def _session(value: object) -> bytes:
    if type(value) is not bytes or len(value) not in (0, _SESSION_BYTES):
        raise DamagedRowError("session_id")
    return value
