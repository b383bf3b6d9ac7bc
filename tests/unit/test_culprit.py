"""What cannot be pickled is named."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import pytest

from enginery import _culprit
from enginery._codec import encode, encode_for_engine
from enginery.errors import SerializationError

LOCK = threading.Lock()


class Holder:
    def __init__(self, held: object) -> None:
        self.held = held

    def method(self) -> None:
        """Hold on to it."""


class Careful(Holder):
    def __reduce__(self) -> tuple[Any, ...]:
        return Careful, (1,)


def _capturing(x: object) -> Any:
    return lambda: x


def _defaulting(x: object) -> Any:
    def f(a: object = x) -> object:
        return a

    return f


@pytest.mark.parametrize(
    ("obj", "way"),
    [
        ({"a": [1, (2, LOCK)]}, "its item 'a', its item 1, its item 1 is an object of type _thread.lock"),
        (Holder({"b": LOCK}), "its attribute 'held', its item 'b' is"),
        (_capturing(LOCK), "its captured variable 'x' is"),
        (_defaulting(LOCK), "its default value is"),
        (functools.partial(print, 1, end=LOCK), "its argument 'end' is"),
        (Holder(LOCK).method, "its instance, its attribute 'held' is"),
        ([Careful(LOCK), Holder(LOCK)], "its item 1, its attribute 'held' is"),
        (ValueError("text", LOCK), "its argument 2 is"),
    ],
    ids=lambda value: value.split(" is")[0] if isinstance(value, str) else "",
)
def test_the_way_to_the_culprit(obj: object, way: str) -> None:
    """The error leads from what was given to what is to blame, by every step of it."""
    for attempt in (encode, encode_for_engine):
        with pytest.raises(SerializationError) as caught:
            attempt(obj)
        assert f"cannot be pickled: {way}" in str(caught.value)
        assert str(caught.value).endswith("cannot pickle '_thread.lock' object")


def test_globals_of_a_function_of_main() -> None:
    """A global that a function of a script uses is named, also where a function within it does."""
    namespace: dict[str, Any] = {"__name__": "__main__", "config": {"lock": LOCK}}
    exec("def f():\n    return lambda: config", namespace)
    with pytest.raises(SerializationError, match="its global 'config', its item 'lock' is"):
        encode(namespace["f"])


def test_looking_is_bounded() -> None:
    """By time, and by parts of one object; what is shared or holds itself is looked at once."""
    cycle: list[object] = [LOCK]
    cycle.insert(0, cycle)
    assert _culprit.find(cycle, lambda part: part is LOCK or part is cycle) == (["item 1"], LOCK)
    asked = 0

    def slow(_: object) -> bool:
        nonlocal asked
        asked += 1
        time.sleep(0.1)
        return False

    whole = [object() for _ in range(100)]
    assert _culprit.find(whole, slow) == ([], whole)
    assert asked < 10
