"""Sequences that are split, and joined again."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginery import _parts

Kind = Literal["block", "cyclic"]
kinds: st.SearchStrategy[Kind] = st.sampled_from(["block", "cyclic"])


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(st.lists(st.integers()), st.text(), st.binary(), st.lists(st.none()).map(tuple)),
    st.integers(1, 9),
    kinds,
)
def test_what_is_split_is_joined(items: Any, count: int, kind: Kind) -> None:
    """Whatever it is, among however many: equal parts but for one item, which give it again."""
    parts = _parts.split(items, count, kind)
    lengths = [len(part) for part in parts]
    assert len(parts) == count
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
    assert _parts.join(parts, kind) == (list(items) if isinstance(items, tuple) else items)


@pytest.mark.parametrize("kind", ["block", "cyclic"])
def test_data_frames_are_split_by_rows(kind: Kind) -> None:
    """And joined with their index; the same for a column."""
    frame = pd.DataFrame({"a": range(7), "b": list("abcdefg")}, index=list("tuvwxyz"))
    pd.testing.assert_frame_equal(_parts.join(_parts.split(frame, 3, kind), kind), frame)
    pd.testing.assert_series_equal(_parts.join(_parts.split(frame["b"], 3, kind), kind), frame["b"])
    assert _parts.only(_parts.split(frame, 7, kind)[0]).shape == (1, 2)


@pytest.mark.parametrize("kind", ["block", "cyclic"])
def test_arrays_of_several_dimensions(kind: Kind) -> None:
    """Fewer rows than parts leave empty ones of the same shape; types are those that hold all."""
    array = np.arange(6).reshape(2, 3)
    parts = _parts.split(array, 3, kind)
    assert [part.shape for part in parts] == [(1, 3), (1, 3), (0, 3)]
    assert np.array_equal(_parts.join(parts, kind), array)
    assert _parts.join([np.zeros(1, "i4"), np.zeros(1)], kind).dtype == np.float64
    assert _parts.join([np.float64(1), np.array(2)], kind) == [1, 2]  # what has no items is one
    assert _parts.join([], kind) == []
