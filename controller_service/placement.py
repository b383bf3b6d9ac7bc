"""What the contract says of how a task is placed, as the scheduler compares it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import struct_pb2

from controller_service.task import Task
from enginery._reasons import DeliveryError
from enginery._requests import read_operation_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enginery._function_window import Function
    from enginery.v1 import frame_pb2, value_pb2

HIGHEST_PRIORITY = 1_000
MOST_DEPENDENCIES = 1_000
LONGEST_LABEL = 200


def task(call: frame_pb2.Call, function: Function | None = None) -> Task:
    """Return the task of a call to any engine, which may name a function by its digest.

    BAD_REQUEST if one of its options makes no sense.
    """
    size = len(call.request) + (len(function.pickle) if function is not None else 0)
    made = Task(call.operation_id, size, session_id=call.session_id)
    options = call.task
    if not options.ByteSize():
        return made
    if abs(options.priority) > HIGHEST_PRIORITY:
        raise _bad("priority", f"{options.priority} is not within {-HIGHEST_PRIORITY} and {HIGHEST_PRIORITY}")
    if len(options.after) > MOST_DEPENDENCIES:
        raise _bad("after", f"{len(options.after)} are more than {MOST_DEPENDENCIES}")
    if len(options.label) > LONGEST_LABEL:
        raise _bad("label", f"{len(options.label)} characters are more than {LONGEST_LABEL}")
    made.retries = options.retries
    made.priority = options.priority
    made.where = tuple((name, _canonical(value)) for name, value in sorted(options.where.fields.items()))
    made.after = frozenset(read_operation_id(one, "task.after") for one in options.after)
    made.after_any_outcome = options.after_any_outcome
    if options.HasField("placement_timeout"):
        made.placement_timeout = options.placement_timeout.ToNanoseconds() / 1e9
        if made.placement_timeout < 0:
            raise _bad("placement_timeout", "it is negative")
    return made


def properties(given: Mapping[str, value_pb2.Value]) -> dict[str, bytes]:
    """Return the properties of an engine that tasks can ask for: those that are JSON or text."""
    found = {}
    for name, value in given.items():
        match value.WhichOneof("kind"):
            case "json":
                found[name] = _canonical(value.json)
            case "text":
                found[name] = _canonical(struct_pb2.Value(string_value=value.text))
            case _:
                pass
    return found


def _canonical(value: struct_pb2.Value) -> bytes:
    """Return the bytes that are the same for equal values: all numbers are floats to protobuf."""
    return value.SerializeToString(deterministic=True)


def _bad(field: str, cause: str) -> DeliveryError:
    return DeliveryError("BAD_REQUEST", field=f"task.{field}", cause=cause)
