"""What a script or notebook defines arrives elsewhere as it was, also what cloudpickle leaves out."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from cloudpickle import cloudpickle

from enginery import _codec


def defined(source: str) -> dict[str, Any]:
    """Return what some source of a `__main__` defines."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<test>", "exec", dont_inherit=True), namespace)
    return namespace


@pytest.fixture(autouse=True)
def _another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let classes be made anew where they arrive."""
    for tracker in ("_DYNAMIC_CLASS_TRACKER_BY_ID", "_DYNAMIC_CLASS_TRACKER_BY_CLASS"):
        monkeypatch.setattr(cloudpickle, tracker, type(getattr(cloudpickle, tracker))())


def there(obj: object) -> Any:
    """Return an object as it arrives elsewhere."""
    sent = _codec.encode_for_engine(obj)
    cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.clear()
    return _codec.decode(sent)


FIB = """
import functools
@functools.lru_cache(maxsize=50)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
fib(10)
"""


def test_a_cached_function() -> None:
    """With its settings, an empty cache, and itself as what it calls."""
    fib = there(defined(FIB)["fib"])
    assert fib.cache_info() == (0, 0, 50, 0)
    assert (fib(30), fib.cache_info().currsize) == (832040, 31)


DISPATCHING = """
import functools
@functools.singledispatch
def kind(x):
    return "something"
@kind.register
def _(x: int):
    return "a number"
@kind.register
def _(x: list):
    return [kind(one) for one in x]
class Method:
    @functools.singledispatchmethod
    def kind(self, x):
        return kind(x)
kind(1)
"""


def test_a_dispatching_function() -> None:
    """With all that was registered, which may call it."""
    made = defined(DISPATCHING)
    assert there(made["kind"])([1, "", [2]]) == ["a number", "something", ["a number"]]
    assert there(made["Method"]()).kind(3) == "a number"


CLASSES = """
import dataclasses, functools, typing
class Slots:
    __slots__ = ("a", "__weakref__")
    def __init__(self, a):
        self.a = a
@dataclasses.dataclass(slots=True)
class Data:
    a: int
class Named(typing.NamedTuple):
    a: int
class Property:
    @functools.cached_property
    def a(self):
        "It says so."
        return 1
Number = typing.NewType("Number", int)
"""


@pytest.mark.parametrize("name", ["Slots", "Data"])
def test_a_class_with_slots(name: str) -> None:
    """Its objects have no `__dict__` there, so that they come back to where they have none."""
    one = defined(CLASSES)[name](1)
    copy = there(one)
    assert (copy.a, hasattr(copy, "__dict__"), type(copy) is type(one)) == (1, False, False)
    assert there(copy).a == 1


def test_classes_of_all_kinds() -> None:
    """Named tuples, cached properties, new types."""
    made = defined(CLASSES)
    assert there(made["Named"](1)) == (1,)
    copy = there(made["Property"]())
    assert (copy.a, vars(copy), type(copy).a.__doc__) == (1, {"a": 1}, "It says so.")
    number = there(made["Number"])
    assert (number("x"), number.__name__, number.__supertype__) == ("x", "Number", int)
    assert there(typing.NewType) is typing.NewType


ERRORS = """
class Other(Exception):
    def __init__(self, code, *, text):
        super().__init__(f"{code}: {text}")
        self.code = code
class Same(Exception):
    def __init__(self, text):
        super().__init__(f"<{text}>")
        self.code = 3
class File(OSError):
    def __init__(self, path):
        super().__init__(2, "is not there", path)
        self.code = 3
class Below(Other):
    pass
class Group(ExceptionGroup):
    def __init__(self, *args):
        self.code = 3
class Own(Other):
    def __reduce__(self):
        return Own, (self.code,), vars(self)
    def __init__(self, code, text="own"):
        self.code = code
        self.args = (text,)
"""


@pytest.mark.parametrize(
    "make",
    [
        "Other(3, text='x')",
        "Same('x')",
        "File('here')",
        "Below(3, text='y')",
        "Group('several', [ValueError(1), Other(3, text='z')])",
        "Own(3)",
    ],
)
def test_exceptions_whatever_they_are_made_with(make: str) -> None:
    """Type, text, `args`, attributes and notes are what they were."""
    error = eval(make, defined(ERRORS))
    error.add_note("a note")
    copy = there(error)
    assert (type(copy).__name__, str(copy), copy.__notes__) == (type(error).__name__, str(error), ["a note"])
    assert (copy.code, repr(copy.args)) == (3, repr(error.args))


REGISTRY = """
class Base:
    def __init_subclass__(cls):
        Base.last = cls.__name__
class Derived(Base):
    pass
def last():
    return Derived and Base.last
"""


def test_making_a_class_may_need_what_travels_with_it() -> None:
    """A function that an engine's namespace gets as globals has what it captured while classes are made."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    sent = _codec.encode_for_engine(defined(REGISTRY)["last"])
    cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.clear()
    last, captured = _codec.decode_bound(sent, namespace)
    assert namespace.keys() == {"__name__", "__builtins__"}
    namespace.update(captured)
    assert last() == "Derived"  # type: ignore[operator]


def test_functions_with_magics() -> None:
    """What a notebook makes of `!ls` in a function asks for the shell of where it runs."""
    from IPython.core.getipython import get_ipython
    from IPython.core.interactiveshell import InteractiveShell

    namespace = defined("def files():\n    return get_ipython\n")
    namespace["get_ipython"] = InteractiveShell.__new__(InteractiveShell).get_ipython
    assert there(namespace["files"])() is get_ipython
