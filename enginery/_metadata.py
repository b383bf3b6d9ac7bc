"""What the metadata of a unary call to EngineService says: which engine, which operation, and how to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import json_format

from enginery import _ids
from enginery._engine import (
    DEFAULT_GRACE,
    DEFAULT_INLINE_LIMIT,
    MAX_INLINE_LIMIT,
    MAX_SECONDS,
    CallContext,
)
from enginery._methods import (
    ANY_ENGINE,
    ANY_INCARNATION_KEY,
    CANCEL_ON_DISCONNECT_KEY,
    ENGINE_ID_KEY,
    ENGINE_IDS_KEY,
    EPOCH_KEY,
    GRACE_KEY,
    INLINE_LIMIT_KEY,
    INTERRUPT_ONLY_KEY,
    KEEP_QUEUE_KEY,
    OPERATION_ID_KEY,
    SESSION_ID_KEY,
    TASK_KEY,
    TIMEOUT_KEY,
)
from enginery._reasons import DeliveryError
from enginery._requests import read_operation_id, read_session_id
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

ANY = "any"
"""The engine id by which a caller lets the controller choose."""
MAX_UPLOAD_ENGINES = 32
"""Engines to which one value is uploaded at once."""
_DIGITS = 9
_OPERATIONS = _ids.OperationIds()  # for callers that name none


def read_call(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[int | None, CallContext]:
    """Return the engine that is named, None if none is, ANY_ENGINE for `any`, and the context of the call.

    An operation without id gets one. Raises DeliveryError BAD_REQUEST, naming the key, on what is not valid.
    """
    given = _given(metadata)
    is_any = given.get(ENGINE_ID_KEY) == ANY
    engine_id = ANY_ENGINE if is_any else _integer(given, ENGINE_ID_KEY)
    session_id = read_session_id(given.get(SESSION_ID_KEY, ""), f"metadata {SESSION_ID_KEY}")
    grace = _seconds(given, GRACE_KEY)
    named = given.get(OPERATION_ID_KEY)
    operation_id = read_operation_id(named, f"metadata {OPERATION_ID_KEY}") if named else b""
    context = CallContext(
        operation_id=operation_id or _OPERATIONS.mint(),
        session_id=session_id,
        keep_queue=_flag(given, KEEP_QUEUE_KEY),
        inline_limit=_inline_limit(given),
        timeout=_seconds(given, TIMEOUT_KEY),
        grace=DEFAULT_GRACE if grace is None else grace,
        interrupt_only=_flag(given, INTERRUPT_ONLY_KEY),
        any_incarnation=_flag(given, ANY_INCARNATION_KEY),
        is_new=not operation_id,
        epoch=_integer(given, EPOCH_KEY) or 0,
    )
    return engine_id, context


def read_engine_ids(metadata: Iterable[tuple[str, str | bytes]]) -> list[int]:
    """Return the engines for which an upload is, none if it is for the one that `read_call` returns.

    BAD_REQUEST if they are no such ids, one is named twice, or there are more than MAX_UPLOAD_ENGINES.
    """
    text = _given(metadata).get(ENGINE_IDS_KEY)
    if text is None:
        return []
    ids = text.split(",")
    if not all(one.isdecimal() and len(one) <= _DIGITS for one in ids):
        raise _refuse(ENGINE_IDS_KEY, f"{text!r} are no ids such as 0,1,5")
    if len(set(map(int, ids))) < len(ids) or len(ids) > MAX_UPLOAD_ENGINES:
        raise _refuse(ENGINE_IDS_KEY, f"at most {MAX_UPLOAD_ENGINES} engines, each once")
    return [int(one) for one in ids]


def read_task(metadata: Iterable[tuple[str, str | bytes]]) -> frame_pb2.TaskOptions:
    """Return how a task is to be placed; BAD_REQUEST if that is not the JSON of a TaskOptions."""
    text = _given(metadata).get(TASK_KEY, "{}")
    try:
        return json_format.Parse(text, frame_pb2.TaskOptions())
    except json_format.ParseError as error:
        raise _refuse(TASK_KEY, str(error)) from None


def cancels_on_disconnect(metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Return whether the caller wants its operation cancelled when it stops waiting; BAD_REQUEST as above."""
    return _flag(_given(metadata), CANCEL_ON_DISCONNECT_KEY)


def _given(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {key: value for key, value in metadata if isinstance(value, str) and key.startswith("enginery-")}


def _refuse(key: str, cause: str) -> DeliveryError:
    return DeliveryError("BAD_REQUEST", field=f"metadata {key}", cause=cause)


def _integer(given: dict[str, str], key: str) -> int | None:
    text = given.get(key)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise _refuse(key, f"{text!r} is not an integer") from None


def _flag(given: dict[str, str], key: str) -> bool:
    text = given.get(key, "false").lower()
    if text not in ("true", "false"):
        raise _refuse(key, f"{text!r} is neither true nor false")
    return text == "true"


def _seconds(given: dict[str, str], key: str) -> float | None:
    text = given.get(key)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise _refuse(key, f"{text!r} is not a number of seconds") from None
    if not 0 <= seconds <= MAX_SECONDS:
        raise _refuse(key, f"{text} s is not within 0 and {MAX_SECONDS:g}")
    return seconds


def _inline_limit(given: dict[str, str]) -> int:
    limit = _integer(given, INLINE_LIMIT_KEY)
    if limit is None:
        return DEFAULT_INLINE_LIMIT
    if not 0 < limit <= MAX_INLINE_LIMIT:
        raise _refuse(INLINE_LIMIT_KEY, f"{limit} is not within 1 and {MAX_INLINE_LIMIT} bytes")
    return limit
