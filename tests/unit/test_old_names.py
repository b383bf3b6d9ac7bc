"""Old names of ipyparallel and IPython.kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import enginery
from enginery import _old_names
from enginery.view import EngineView
from enginery.views import EnginesView

if TYPE_CHECKING:
    from collections.abc import Mapping

TABLES: list[tuple[type, Mapping[str, str]]] = [
    (enginery.Client, _old_names.OF_CLIENTS),
    (EngineView, _old_names.OF_VIEWS),
    (EnginesView, _old_names.OF_VIEWS),
    (enginery.Operation, _old_names.OF_RESULTS),
    (enginery.Group, _old_names.OF_RESULTS),
]


@pytest.mark.parametrize(("kind", "names"), TABLES)
def test_who_writes_an_old_name_is_told_the_new_one(kind: type, names: Mapping[str, str]) -> None:
    """By the error, for each name that is not one of today; other names that are missing are told as usual."""
    made: Any = object.__new__(kind)
    for name, new in names.items():
        assert not hasattr(kind, name)
        with pytest.raises(AttributeError, match="has no attribute") as caught:
            getattr(made, name)
        assert str(caught.value).endswith(f"; here it is {new}")
    assert not hasattr(made, "_repr_html_")
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        made.nonsense  # noqa: B018  # it is looked up
