"""Sizes as people write and read them: `500M`, `2G`, plain bytes. Units are powers of 1024."""

from __future__ import annotations

import re

_UNITS = "KMGT"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)


def parse(text: str) -> int:
    """Return the bytes of `500M`, `1.5G`, `2GiB` or `1048576`; ValueError if it is none, or below one byte."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with K, M, G or T such as 500M")
    number, unit = found.groups()
    size = int(float(number) * 1024 ** (_UNITS.index(unit.upper()) + 1)) if unit else int(float(number))
    if size <= 0:
        raise ValueError(f"{text!r} is not above 0")
    return size


def show(size: int) -> str:
    """Return a size for people to read: `512 bytes`, `48 MiB`, `1.5 GiB`."""
    if size < 1024:
        return f"{size} bytes"
    exponent = min((size.bit_length() - 1) // 10, len(_UNITS))
    number = size / 1024**exponent
    if number >= 1023.5 and exponent < len(_UNITS):
        number, exponent = number / 1024, exponent + 1
    digits = f"{number:.1f}".removesuffix(".0") if number < 10 else f"{number:.0f}"
    return f"{digits} {_UNITS[exponent - 1]}iB"
