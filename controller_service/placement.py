"""What the contract says of how a task is placed, as the scheduler compares it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import struct_pb2

from controller_service.task import Task
from enginery._reasons import DeliveryError
from enginery._requests import read_operation_id
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller_service.work import Work
    from enginery.v1 import value_pb2

HIGHEST_PRIORITY = 1_000
MOST_DEPENDENCIES = 1_000
LONGEST_LABEL = 200
NO_OPTIONS = frame_pb2.TaskOptions()
"""Of all tasks without any: it is never changed."""


def task(task_id: bytes, session_id: bytes, work: Work) -> Task:
    """Return the task that carries `work`; BAD_REQUEST if one of its options makes no sense."""
    made = Task(task_id, work.call.size, work, session_id)
    options = work.options
    if options is NO_OPTIONS:
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


def options_of(call: frame_pb2.Call) -> frame_pb2.TaskOptions:
    """Return those of a task that are its own, or the same as of all others."""
    if not call.task.ByteSize():
        return NO_OPTIONS
    options = frame_pb2.TaskOptions()
    options.CopyFrom(call.task)
    return options


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
