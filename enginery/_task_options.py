"""How a task is to be placed: the settings that a TaskView has for its tasks, and that one task may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from google.protobuf import json_format

from enginery import _codec, _ids, _options, _values
from enginery._encoded import Codec
from enginery.errors import SerializationError
from enginery.group import Group
from enginery.operation import Operation
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct

MAX_RETRIES = 1_000_000
MAX_PRIORITY = 1_000
MAX_AFTER = 1_000
MAX_LABEL = 200

After = Union["Operation[Any]", "Group[Any]", str, "Iterable[Operation[Any] | Group[Any] | str]"]
"""What a task may come after: operations, groups of them, ids, or several of these."""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Settings of tasks; None means that nothing was said, and so the contract's default. Times in seconds."""

    retries: int | None = None
    priority: int | None = None
    where: Struct | None = None
    after: tuple[str, ...] | None = None
    after_any_outcome: bool | None = None
    placement_timeout: float | None = None
    label: str | None = None

    def but(
        self,
        *,
        retries: int | None = None,
        priority: int | None = None,
        where: Mapping[str, object] | None = None,
        after: After | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
    ) -> TaskOptions:
        """Return these settings with those that are given in their place.

        TypeError or ValueError if one makes no sense.
        """
        given = {
            "retries": None if retries is None else _number("retries", retries, 0, MAX_RETRIES),
            "priority": None
            if priority is None
            else _number("priority", priority, -MAX_PRIORITY, MAX_PRIORITY),
            "where": None if where is None else _where(where),
            "after": None if after is None else _after(after),
            "after_any_outcome": _options.flag("after_any_outcome", after_any_outcome),
            "placement_timeout": _options.seconds("placement_timeout", placement_timeout),
            "label": None if label is None else _label(label),
        }
        given = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self, **given) if given else self  # type: ignore[arg-type]  # checked above

    def shown(self) -> dict[str, object]:
        """Return the settings that were said, for people."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.where is not None:
            said["where"] = json_format.MessageToDict(self.where)
        return {name: value for name, value in said.items() if value is not None}

    def serialized(self) -> bytes:
        """Return the settings as a frame carries them, serialized."""
        carried = frame_pb2.TaskOptions(
            retries=self.retries or 0,
            priority=self.priority or 0,
            where=self.where,
            after=self.after,
            after_any_outcome=bool(self.after_any_outcome),
            label=self.label or "",
        )
        if self.placement_timeout is not None:
            carried.placement_timeout.FromNanoseconds(round(self.placement_timeout * 1e9))
        return carried.SerializeToString(deterministic=True)  # equal ones are to be equal


NO_TASK_OPTIONS = TaskOptions()


def _number(name: str, value: int, least: int, most: int) -> int:
    if type(value) is not int:  # a bool is no number
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}: it is from {least:,} to {most:,}")
    return value


def _where(where: Mapping[str, object]) -> Struct:
    if not isinstance(where, Mapping):
        raise TypeError(f"where is a dictionary of properties, not {type(where).__name__}")
    for key in where:
        if not isinstance(key, str):
            raise TypeError(f"where: names of properties are text, not {type(key).__name__}: {key!r}")
    try:
        encoded = _codec.encode(dict(where), (Codec.JSON,))
    except SerializationError as error:
        raise ValueError(f"where: {error}") from None
    return _values.to_value(encoded).json.struct_value


def _after(after: After) -> tuple[str, ...]:
    several = [after] if isinstance(after, Operation | Group | str) else after
    if not isinstance(several, Iterable):
        raise TypeError(f"after names operations, by themselves or by id, not {type(after).__name__}")
    ids: dict[str, None] = {}
    for one in several:
        if isinstance(one, Group):
            ids |= dict.fromkeys(_awaited(one.operations))
        elif isinstance(one, Operation):
            ids |= dict.fromkeys(_awaited([one]))
        else:
            ids[_ids.show(_ids.parse(one))] = None
    if len(ids) > MAX_AFTER:
        raise ValueError(f"after names {len(ids):,} operations: at most {MAX_AFTER:,}")
    return tuple(ids)


def _awaited(operations: Iterable[Operation[Any]]) -> list[str]:
    """Return the ids of operations, those left out that are known to have succeeded."""
    return [one.operation_id for one in operations if not one.done() or one.has_failed]


def _label(label: str) -> str:
    if not isinstance(label, str):
        raise TypeError(f"label is text, not {type(label).__name__}")
    if len(label) > MAX_LABEL:
        raise ValueError(f"label has {len(label)} characters: at most {MAX_LABEL}")
    return label
