"""Times that a caller gives, in seconds."""

from __future__ import annotations

import math


def check(name: str, value: float, most: float = math.inf) -> float:
    """Return a time; TypeError if it is no number, ValueError if it is not within 0 and `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} of {value:g} s is not within 0 and {most:g}")
    return float(value)
