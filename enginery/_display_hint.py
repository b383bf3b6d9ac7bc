"""How a display says that it may be changed in its place, or changes another: a hint among its metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEY = "application/x-enginery-display"


class Place(NamedTuple):
    """Which place of its operation's output a display takes."""

    name: str
    update: bool
    """Whether it takes that of the one before of this name."""


def hint(place: Place) -> dict[str, object]:
    """Return the metadata that say so."""
    return {_KEY: {"display_id": place.name, "update": place.update}}


def read(metadata: Mapping[str, object]) -> Place | None:
    """Return what the metadata of a display say, None if nothing."""
    said = metadata.get(_KEY)
    if not isinstance(said, dict) or not isinstance(said.get("display_id"), str):
        return None
    return Place(said["display_id"], said.get("update") is True)


def without(metadata: Mapping[str, object]) -> dict[str, object]:
    """Return the hints that are for front ends."""
    return {key: value for key, value in metadata.items() if key != _KEY}
