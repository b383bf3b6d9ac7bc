"""Functions that calls bring, and bring again."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from engine_service.kernel.functions import Functions
from engine_service.kernel.namespace import Namespace
from enginery import _current, _reference
from enginery._codec import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from enginery._encoded import Encoded


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """An engine's namespace, in the place of the tests' own `__main__`."""
    own = sys.modules["__main__"]
    yield Namespace(3)
    sys.modules["__main__"] = own


def sent(source: str, name: str = "f", **names: Any) -> Encoded:
    """Return a function as a client's `__main__` sends it."""
    own = sys.modules["__main__"]
    module = types.ModuleType("__main__")
    module.__dict__.update(names)
    sys.modules["__main__"] = module
    try:
        exec(source, module.__dict__)
        return encode(module.__dict__[name])
    finally:
        sys.modules["__main__"] = own


def load(functions: Functions, value: Encoded, *, is_task: bool) -> Callable[..., Any]:
    return functions.load(value, is_task=is_task)  # type: ignore[return-value]


def test_a_task_s_function_is_loaded_once_and_keeps_what_it_captured(namespace: Namespace) -> None:
    """As in a process pool; the engine's own names are not its."""
    functions = Functions(namespace)
    namespace.put({"here": 5})
    value = sent("def f(x):\n    seen.append(x)\n    return len(seen), 'here' in globals()", seen=[])
    first = load(functions, value, is_task=True)
    assert load(functions, value, is_task=True) is first
    assert [first(1), first(2)] == [(1, False), (2, False)]
    assert "seen" not in namespace.variables
    functions.clear()
    assert load(functions, value, is_task=True)(1) == (1, False)


@pytest.mark.parametrize(
    ("source", "names", "is_kept"),
    [
        ("def f(): return a", {"a": 1}, True),
        ("def f(): return a", {"a": (1, "x", frozenset({2}))}, True),
        ("def f(): return a", {"a": []}, False),
        ("def f(): return a", {"a": (1, [])}, False),
        ("def f(x=1): return x", {}, True),
        ("def f(x=[]): return x", {}, False),
        ("def f(*, x={}): return x", {}, False),
        ("def g(x=[]): return x\ndef f(): return g()", {}, False),
        ("def g(): return f\ndef f(): return g()", {}, True),
        ("def make(x):\n    def f(): return x\n    return f\nf = make(1)", {}, True),
        ("def make(x):\n    def f(): return x\n    return f\nf = make([])", {}, False),
        ("def f(): return 1\nf.seen = 1", {}, False),
        ("import json\ndef f(): return json.dumps(1)", {}, True),
        ("from json import dumps\ndef f(): return dumps(1)", {}, True),
        ("class A: x = []\ndef f(): return A.x", {}, False),
    ],
)
def test_another_call_s_function_is_kept_if_nothing_of_it_can_change(
    namespace: Namespace, source: str, names: dict[str, Any], is_kept: bool
) -> None:
    """Else each call finds it as it was sent."""
    functions = Functions(namespace)
    value = sent(source, **names)
    first = load(functions, value, is_task=False)
    assert first.__globals__ is namespace.variables
    assert (load(functions, value, is_task=False) is first) == is_kept


def test_what_it_captured_is_filled_in_each_time(namespace: Namespace) -> None:
    """Only what the engine lacks."""
    functions = Functions(namespace)
    value = sent("def f(): return a", a=1)
    assert load(functions, value, is_task=False)() == 1
    del namespace.variables["a"]
    assert load(functions, value, is_task=False)() == 1
    namespace.put({"a": 2})
    assert load(functions, value, is_task=False)() == 2


def test_one_that_got_an_attribute_is_loaded_anew(namespace: Namespace) -> None:
    """It is not as it was sent any more."""
    functions = Functions(namespace)
    value = sent("def f(): return 1")
    first = load(functions, value, is_task=False)
    first.seen = 1  # type: ignore[attr-defined]
    assert load(functions, value, is_task=False) is not first


def test_functions_sent_by_reference_are_looked_up_each_time(namespace: Namespace) -> None:
    """The engine's own may be another by then."""
    functions = Functions(namespace)
    value = encode(_reference.resolved_count)
    for is_task in (True, False):
        assert load(functions, value, is_task=is_task) is _reference.resolved_count
    assert not functions._kept


def test_one_that_holds_a_reference_means_what_the_engine_has_then(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is not kept."""
    monkeypatch.setattr(_current, "get_engine", lambda: None)
    functions = Functions(namespace)
    value = sent("def f(x=rows): return x", rows=_reference.reference("rows"))
    for rows in (1, 2):
        namespace.put({"rows": rows})
        assert load(functions, value, is_task=True)() == rows


def test_they_are_bounded_and_the_oldest_goes(namespace: Namespace) -> None:
    """In bytes of their pickles; one that is used stays."""
    values = [sent(f"def f(): return {number}") for number in range(3)]
    functions = Functions(namespace, max_bytes=2 * values[0].size + 10)
    first, _ = (load(functions, value, is_task=True) for value in values[:2])
    assert load(functions, values[0], is_task=True) is first
    load(functions, values[2], is_task=True)
    assert load(functions, values[0], is_task=True) is first
    assert len(functions._kept) == 2
    assert functions._bytes <= 2 * values[0].size + 10


def test_none_outlives_the_modules_that_it_may_use(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a client replaces one, all are loaded anew."""
    functions = Functions(namespace)
    value = sent("def f(): return 1")
    first = load(functions, value, is_task=True)
    shipped = types.SimpleNamespace(generation=0)
    monkeypatch.setitem(sys.modules, "enginery._shipped", shipped)
    assert load(functions, value, is_task=True) is first
    shipped.generation = 1
    assert load(functions, value, is_task=True) is not first
