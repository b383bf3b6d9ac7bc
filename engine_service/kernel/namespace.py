"""The live namespace: a real `__main__` module, its history, and the names that the engine seeds."""

from __future__ import annotations

import builtins
import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HISTORY = 1000  # commands that In and Out remember
_OURS = frozenset({"In", "Out", "_", "__", "___"})
_PYTHON = frozenset({"__annotations__", "__conditional_annotations__", "__warningregistry__"})


class EngineId(int):
    """The engine's id. Calling it is the builtin `id`, which it hides; it pickles as int."""

    def __call__(self, obj: object, /) -> int:
        """Return the builtin `id` of `obj`."""
        return id(obj)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        """Pickle as int."""
        return int, (int(self),)


def plain(value: object) -> object:
    """Return `value`, an EngineId as int."""
    return int(value) if type(value) is EngineId else value


class History:
    """The last inputs or outputs by number from 1; a negative number counts from the latest."""

    def __init__(self) -> None:
        """Begin empty."""
        self._items: dict[int, object] = {}

    def add(self, number: int, item: object) -> None:
        """Remember `item`, and forget the oldest beyond `HISTORY`."""
        self._items[number] = item
        if len(self._items) > HISTORY:
            del self._items[next(iter(self._items))]

    def __getitem__(self, number: int) -> object:
        """Return the item of that number; IndexError if there is none or it was released."""
        if number < 0 and -number <= len(self._items):
            return list(self._items.values())[number]
        if number not in self._items:
            raise IndexError(
                f"there is nothing of number {number}; the last {HISTORY} are kept, others released"
            )
        return self._items[number]

    def __iter__(self) -> Iterator[int]:
        """Go over the numbers."""
        return iter(self._items)

    def __contains__(self, number: object) -> bool:
        """Return whether there is an item of that number."""
        return number in self._items

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._items)

    def __repr__(self) -> str:
        """Show it as the dictionary that it is."""
        return repr(self._items)


class Namespace:
    """Owns `__main__`. `variables` is its dictionary, always the same object."""

    def __init__(self, engine_id: int, mpi: object = None) -> None:
        """Make a fresh `__main__` and seed it; `mpi` is the MPI module, if there is one."""
        self._engine_id = EngineId(engine_id)
        self._mpi = mpi
        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = builtins
        self.variables: dict[str, object] = self.module.__dict__
        self._initial = dict(self.variables)
        self._filled: dict[str, object] = {}
        self.hidden: Mapping[str, object] = {}
        """What a shell put here for itself, by name: not the user's while it is the same object."""
        sys.modules["__main__"] = self.module
        self.reset()

    def reset(self) -> None:
        """Empty it and seed it again."""
        self._inputs, self._outputs = History(), History()
        self._filled.clear()
        self.variables.clear()
        self.variables.update(self._initial)
        self.seed()
        self.variables.update(In=self._inputs, Out=self._outputs)
        self.variables.update(dict.fromkeys(("_", "__", "___"), ""))

    def seed(self) -> None:
        """Put `id` and `mpi` there."""
        self.variables.update(id=self._engine_id, mpi=self._mpi)

    def repair(self) -> None:
        """Put back what makes it a module: user code may have emptied `globals()`, or replaced `__main__`."""
        self.variables["__builtins__"] = builtins
        if "__name__" not in self.variables:
            self.variables.update(self._initial)
        if sys.modules.get("__main__") is not self.module:
            sys.modules["__main__"] = self.module

    @property
    def engine_id(self) -> int:
        """The engine's id."""
        return int(self._engine_id)

    @engine_id.setter
    def engine_id(self, engine_id: int) -> None:
        if engine_id == self._engine_id:
            return
        old, self._engine_id = self._engine_id, EngineId(engine_id)
        if self.variables.get("id") is old:  # else it is the user's own
            self.variables["id"] = self._engine_id

    def entered(self, number: int, source: str) -> None:
        """Remember what was executed."""
        self._inputs.add(number, source)

    def shown(self, number: int, value: object) -> None:
        """Remember the value of a command's last expression, as `Out` and as `_`, `__`, `___`."""
        self._outputs.add(number, value)
        variables = self.variables
        variables.update(_=value, __=variables.get("_", ""), ___=variables.get("__", ""))

    def keys(self) -> tuple[str, ...]:
        """Return the names that users put here, `id` and `mpi`, sorted."""
        filled = (self._filled, self.hidden)
        hidden = {name for ours in filled for name in ours if self.variables.get(name) is ours[name]}
        hidden.update(_OURS, _PYTHON, self._initial)
        return tuple(sorted(name for name in self.variables if type(name) is str and name not in hidden))

    def get(self, names: Sequence[str]) -> dict[str, object]:
        """Return objects by name; NameError for all that are missing."""
        missing = [name for name in names if name not in self.variables]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            quoted = ", ".join(repr(name) for name in missing)
            raise NameError(f"name{'s' * (len(missing) > 1)} {quoted} {verb} not defined")
        return {name: plain(self.variables[name]) for name in names}

    def put(self, values: Mapping[object, object]) -> None:
        """Set variables, all or none; TypeError or ValueError if a name is no identifier."""
        for name in values:
            check_name(name)
        self.variables.update(values)  # type: ignore[arg-type]

    def fill(self, captured: Mapping[str, object]) -> None:
        """Set what functions captured where they came from, only where the engine has nothing of its own.

        What an earlier call filled is no one's own: the next caller's version replaces it.
        """
        for name, value in captured.items():
            if name not in self.variables or (
                name in self._filled and self.variables[name] is self._filled[name]
            ):
                self.variables[name] = self._filled[name] = value

    def find_callable(self, name: str) -> Callable[..., object]:
        """Return the callable of that name: a variable, a builtin, or dotted such as `math.sqrt`."""
        first, *rest = name.split(".")
        found: object
        if first in self.variables:
            found = self.variables[first]
        elif hasattr(builtins, first):
            found = getattr(builtins, first)
        elif rest:
            try:
                found = importlib.import_module(first)
            except ModuleNotFoundError as error:
                raise NameError(f"name {name!r} is not defined: {error}") from None
        else:
            raise NameError(f"name {name!r} is not defined")
        for position, attribute in enumerate(rest, start=1):
            if isinstance(found, types.ModuleType) and not hasattr(found, attribute):
                found = importlib.import_module(".".join([first, *rest[:position]]))
            else:
                found = getattr(found, attribute)
        if not callable(found):
            raise TypeError(f"{name!r} is not callable, but of type {type(found).__qualname__}")
        return found


def check_name(name: object) -> None:
    """Raise TypeError or ValueError unless `name` may name a variable."""
    if not isinstance(name, str):
        raise TypeError(f"a name must be text, not {type(name).__qualname__}")
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no Python identifier")
