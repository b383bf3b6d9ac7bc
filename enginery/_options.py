"""How a call is to be run: the settings that a view has for its calls, and that one call may change."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from enginery import _times
from enginery._engine import MAX_SECONDS
from enginery.v1 import frame_pb2


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of calls; None means that nothing was said, and so the contract's default. Times in seconds."""

    timeout: float | None = None
    grace: float | None = None
    interrupt_only: bool | None = None
    any_incarnation: bool | None = None
    keep_queue: bool | None = None

    def but(
        self,
        *,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        any_incarnation: bool | None = None,
        keep_queue: bool | None = None,
    ) -> Options:
        """Return these settings with those that are given in their place.

        TypeError or ValueError if one makes no sense.
        """
        if timeout is grace is interrupt_only is any_incarnation is keep_queue is None:
            return self
        times = {"timeout": seconds("timeout", timeout), "grace": seconds("grace", grace)}
        flags = {
            "interrupt_only": flag("interrupt_only", interrupt_only),
            "any_incarnation": flag("any_incarnation", any_incarnation),
            "keep_queue": flag("keep_queue", keep_queue),
        }
        given = {name: value for name, value in (times | flags).items() if value is not None}
        return dataclasses.replace(self, **given)  # type: ignore[arg-type]


NO_OPTIONS = Options()


@functools.lru_cache(maxsize=256)
def message(options: Options) -> frame_pb2.CallOptions | None:
    """Return the settings as a frame carries them, None if all are defaults. Not to be changed."""
    carried = frame_pb2.CallOptions(
        interrupt_only=bool(options.interrupt_only),
        any_incarnation=bool(options.any_incarnation),
        keep_queue=bool(options.keep_queue),
    )
    if options.timeout is not None:
        carried.timeout.FromNanoseconds(round(options.timeout * 1e9))
    if options.grace is not None:
        carried.grace.FromNanoseconds(round(options.grace * 1e9))
    return carried if options != NO_OPTIONS else None


def seconds(name: str, value: float | None) -> float | None:
    """Return a time that a caller gave, None if none was; TypeError or ValueError if it makes no sense."""
    return None if value is None else _times.check(name, value, MAX_SECONDS)


def waits(block: bool | None, usual: bool) -> bool:
    """Return whether a call waits for its answer that was given `block`; TypeError if that is no switch."""
    return usual if block is None else bool(flag("block", block))


def flag(name: str, value: bool | None) -> bool | None:
    """Return a switch that a caller gave, None if none was; TypeError for all else: "no" would count as yes."""
    if not isinstance(value, bool | None):
        raise TypeError(f"{name} is True or False, not {type(value).__name__}")
    return value
