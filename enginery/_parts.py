"""Sequences split among engines, and the parts put together again."""

from __future__ import annotations

import array
import itertools
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal

Distribution = Literal["block", "cyclic", "b", "c", "r"]
"""How a sequence is split: `block`, the first items for the first, or `cyclic`, one item for each in turn. The
letters are what IPython.kernel and ipyparallel called them; `r` is cyclic."""

Kind = Literal["block", "cyclic"]
"""The same by their full names."""

_KINDS: dict[str, Kind] = {
    "block": "block",
    "b": "block",
    "cyclic": "cyclic",
    "c": "cyclic",
    "r": "cyclic",
}


def check(dist: Distribution) -> Kind:
    """Return the distribution by its full name; ValueError if there is no such one."""
    if dist not in _KINDS:
        raise ValueError(f'dist is "block" or "cyclic", not {dist!r}')
    return _KINDS[dist]


def as_sequence(items: Any) -> Any:
    """Return `items` if it can be cut, else a list of what it yields; TypeError if it has no order.

    What can be cut has a length and slices: lists, tuples, ranges, text, bytes, arrays, data frames.
    """
    if _is_frame(items) or has_rows(items) or (isinstance(items, Sequence) and not isinstance(items, deque)):
        return items
    if not isinstance(items, Mapping | AbstractSet) and not _is_array(items):
        try:
            return list(items)
        except TypeError:
            if hasattr(items, "__iter__") or hasattr(items, "__getitem__"):
                raise  # its own error
    raise TypeError(f"{type(items).__name__} cannot be split: it is no sequence of items in some order")


def split(items: Any, count: int, kind: Kind) -> list[Any]:
    """Return `count` parts of what `as_sequence` returned, whose lengths differ by one at most.

    They are of its own type. Blocks of an array are views of it, which are sent without a copy being made;
    other parts are copied here, once.
    """
    if kind == "cyclic":
        return [_contiguous(_cut(items, slice(place, None, count))) for place in range(count)]
    least, more = divmod(len(items), count)
    ends = itertools.accumulate(least + (place < more) for place in range(count))
    return [_cut(items, slice(start, end)) for start, end in itertools.pairwise([0, *ends])]


def only(part: Any) -> Any:
    """Return the one item of a part."""
    return part if _is_frame(part) else part[0]


def join(parts: Sequence[Any], kind: Kind) -> Any:
    """Return the sequence of which these are the parts.

    Arrays, data frames, texts and bytes give one of their own; anything else gives a list, in which a part that
    is no list, tuple, range or array counts as one item, and no parts an empty one. ValueError if cyclic parts
    are not those of one sequence.
    """
    if not parts:
        return []
    if all(map(has_rows, parts)):
        numpy = sys.modules["numpy"]
        is_masked = any(isinstance(part, numpy.ma.MaskedArray) for part in parts)
        joined = (numpy.ma if is_masked else numpy).concatenate(parts)
        return joined if kind == "block" else joined[_places(parts)]
    if all(_is_frame(part) for part in parts):
        joined = sys.modules["pandas"].concat(parts)
        return joined if kind == "block" else joined.iloc[_places(parts)]
    if all(isinstance(part, str) for part in parts):
        return "".join(parts if kind == "block" else _merge([list(part) for part in parts], kind))
    if all(isinstance(part, bytes | bytearray) for part in parts):
        whole = type(parts[0])
        return whole().join(parts) if kind == "block" else whole(_merge([list(part) for part in parts], kind))
    if all(isinstance(part, array.array) for part in parts):
        return array.array(parts[0].typecode, _merge([list(part) for part in parts], kind))
    return _merge([list(part) if _has_items(part) else [part] for part in parts], kind)


def _cut(items: Any, where: slice) -> Any:
    return items.iloc[where] if _is_frame(items) else items[where]


def _contiguous(part: Any) -> Any:
    """Return an array whose items lie side by side, or pickle would copy it twice; anything else as it is."""
    return part.copy() if _is_array(part) and not part.flags.c_contiguous else part


def _merge(lists: Sequence[list[Any]], kind: Kind) -> list[Any]:
    if kind == "block":
        return list(itertools.chain.from_iterable(lists))
    merged: list[Any] = [None] * sum(len(items) for items in lists)
    for place, items in enumerate(lists):
        if len(range(place, len(merged), len(lists))) != len(items):
            lengths = [len(items) for items in lists]
            raise ValueError(f"parts of {lengths} items are not those of one cyclic sequence")
        merged[place :: len(lists)] = items
    return merged


def _places(parts: Sequence[Any]) -> list[int]:
    """Return where, in the parts one after the other, each item of the cyclic sequence is."""
    ends = itertools.accumulate(len(part) for part in parts)
    return _merge([list(range(start, end)) for start, end in itertools.pairwise([0, *ends])], "cyclic")


def _has_items(part: object) -> bool:
    return isinstance(part, list | tuple | range) or has_rows(part)


def has_rows(obj: object) -> bool:
    """Return whether it is an array that has a first axis."""
    return _is_array(obj) and bool(obj.ndim)  # type: ignore[attr-defined]


def _is_array(obj: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _is_frame(obj: object) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(obj, pandas.DataFrame | pandas.Series)
