"""The pickle of a function is used again only while the function is as it was."""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
import xml
from typing import TYPE_CHECKING, Any

import pytest

from enginery import _codec, _own_modules, _pickled_functions
from enginery._called import Called

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PICKLED = Called(b"x", None)


def made(source: str, **variables: Any) -> types.FunctionType:
    """Return the function `f` of some source of a `__main__`."""
    namespace: dict[str, Any] = {"__name__": "__main__", **variables}
    exec(compile(source, "<test>", "exec", dont_inherit=True), namespace)
    function: types.FunctionType = namespace["f"]
    return function


@pytest.mark.parametrize(
    "source",
    [
        "def f(): pass",
        "f = lambda x, y=2, *, z='a': x + y",
        "def f(x: int) -> 'str': return [json.dumps(y + one) for y in x]",
        "def f(): return os.path.join(name, name)",
    ],
)
def test_functions_of_constants_and_installed_modules_are_remembered(source: str) -> None:
    """They are pickled once."""
    function = made(source, json=json, os=os, one=1, name="n")
    assert _pickled_functions.find(function) is None
    _pickled_functions.remember(function, PICKLED)
    assert _pickled_functions.find(function) is PICKLED


@pytest.mark.parametrize(
    "source",
    [
        "def f(x=[]): pass",
        "def f(): return table",
        "def f(): return other()",
        "def f(): return lambda: table",
        "def f(): return tests",
        "def f(): pass\nf.mark = 1",
        "def outer(x):\n    def f(): return x\n    return f\nf = outer(1)",
        "def f(x: table): pass",
    ],
)
def test_what_may_change_unseen_is_not_remembered(source: str) -> None:
    """Containers, other functions, the user's own modules, closures and attributes: it is pickled each time."""
    tests = types.ModuleType("tests")
    function = made(source, table={}, other=lambda: 1, tests=tests)
    _pickled_functions.remember(function, PICKLED)
    assert _pickled_functions.find(function) is None


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ("f.__globals__['one'] = 2", "def f(): return one"),
        ("del f.__globals__['one']", "def f(): return one"),
        ("f.__globals__['two'] = 2", "def f(): return two"),
        ("f.__defaults__ = (2,)", "def f(x=1): return x"),
        ("f.__kwdefaults__ = {'x': 2}", "def f(*, x=1): return x"),
        ("f.__code__ = (lambda: 2).__code__", "def f(): return 1"),
        ("f.__doc__ = 'other'", "def f(): 'one'"),
        ("f.__globals__['one'] = []", "def f(): return one"),
    ],
)
def test_a_function_that_has_changed_is_pickled_again(change: str, source: str) -> None:
    """Nothing stale is sent."""
    function = made(source, one=1)
    _pickled_functions.remember(function, PICKLED)
    assert _pickled_functions.find(function) is PICKLED
    exec(change, {"f": function})
    assert _pickled_functions.find(function) is None


def test_a_submodule_that_is_imported_later_counts() -> None:
    """The pickle names the submodules that are there."""
    function = made("def f(): return xml.etree.cElementTree", xml=xml)
    _pickled_functions.remember(function, PICKLED)
    before = _pickled_functions.find(function)
    sys.modules["xml.cElementTree"] = types.ModuleType("xml.cElementTree")
    try:
        assert before is PICKLED
        assert _pickled_functions.find(function) is None
    finally:
        del sys.modules["xml.cElementTree"]


def test_what_is_remembered_is_what_pickling_gives() -> None:
    """The same bytes, as long as nothing changes."""
    function = made("def f(x): return x * one", one=3)
    first, second = _codec.encode(function), _codec.encode(function)
    assert first.parts == second.parts


@pytest.mark.parametrize(
    "change",
    [
        lambda f: setattr(f, "mark", 1),
        lambda f: setattr(f, "__module__", "other"),
        lambda f: setattr(f, "__defaults__", (3,)),
        lambda f: setattr(f, "__kwdefaults__", {"z": 4}),
        lambda f: f.__annotations__.update(x=str),
    ],
)
def test_whatever_is_set_on_a_function_is_noticed(change: Callable[[types.FunctionType], None]) -> None:
    """An attribute, where it comes from, defaults, annotations: it is pickled anew."""
    function = made("def f(x: int, y=(1, 'a'), *, z=2): pass")
    _pickled_functions.remember(function, PICKLED)
    assert _pickled_functions.find(function) is PICKLED
    change(function)
    assert _pickled_functions.find(function) is None


def test_a_function_of_the_users_module_is_remembered_while_its_file_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source travels with its name. One of an installed module goes by its name alone."""
    monkeypatch.setattr(_own_modules, "LOOK_AGAIN", 0.0)
    file = tmp_path / "users_module_of_this_test.py"
    file.write_text("def f(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module(file.stem).f
    for remembered in (function, json.dumps):
        assert _pickled_functions.find(remembered) is None
        _pickled_functions.remember(remembered, PICKLED)
        assert _pickled_functions.find(remembered) is PICKLED
        assert _pickled_functions.find(remembered) is PICKLED
    file.write_text("def f(): return 1 + 1\n")
    assert _pickled_functions.find(function) is None
    _pickled_functions.remember(function, PICKLED)
    monkeypatch.setattr(sys.modules[file.stem], "f", json.dumps)  # its name means another now
    assert _pickled_functions.find(function) is None
    _pickled_functions.remember(function, PICKLED)
    assert _pickled_functions.find(function) is None
    monkeypatch.delitem(sys.modules, file.stem)
