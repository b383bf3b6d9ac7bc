"""What functions are called where people read of them."""

from __future__ import annotations

import functools
import math
from typing import Any
from unittest.mock import Mock

import pytest

from enginery import _calls, _chunk
from enginery._function_name import LONGEST, name_of
from enginery.v1 import value_pb2


class _Model:
    def fit(self) -> None: ...

    def __call__(self) -> None: ...


class _Broken:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __call__(self) -> None: ...


def _local() -> Any:
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (_local, f"{__name__}._local"),
        (_local(), f"{__name__}.inner"),
        (abs, "abs"),
        (math.sqrt, "math.sqrt"),
        ([].append, "list.append"),
        (_Model, f"{__name__}._Model"),
        (_Model().fit, f"{__name__}._Model.fit"),
        (_Model(), f"{__name__}._Model"),
        (Mock(), "unittest.mock.Mock"),
        (functools.partial(abs, -1), "abs"),
        (functools.partial(functools.partial(abs), -1), "abs"),
        (functools.partial(_chunk.run, abs), "abs"),
        (functools.lru_cache(_local), f"{__name__}._local"),
    ],
)
def test_names(function: object, name: str) -> None:
    """A function has its module's name before its own unless it is the program's or Python's."""
    assert name_of(function) == name


def test_an_object_whose_class_raises_has_its_types_name() -> None:
    """Whatever looking at it does."""
    assert name_of(_Broken()) == f"{__name__}._Broken"


def test_a_name_is_short_and_travels_with_the_pickle() -> None:
    """Whatever an object says it is called."""

    def function() -> None: ...

    function.__module__ = "__main__"
    function.__qualname__ = "f" * 1000
    named = _calls.apply(function, (), {}).function
    assert named is not None
    assert value_pb2.Pickle.FromString(named.pickle).name == "f" * LONGEST
