"""Groups whose answers are parts of one: of `gather`, of parallel functions, and of `map`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeVar

from enginery.group import Group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from enginery.operation import Operation

T = TypeVar("T")


class Joined(Group[T]):
    """A Group whose result is not the list of the engines' answers, but what they are together."""

    def __init__(self, operations: Iterable[Operation[Any]], join: Callable[[list[Any]], Any]) -> None:
        """Take operations in order, and what puts their answers together."""
        super().__init__(operations)
        self._join = join

    def _decode(self) -> Any:
        return self._join(super()._decode())


class MapResult(Joined[T]):
    """What `view.map` returns with `block=False`: a future of the list of results, in order of the items.

    Its operations are one for each engine, with the results of a part of the items.
    """

    def __init__(self, operations: Iterable[Operation[Any]]) -> None:
        """Take operations in order."""
        super().__init__(operations, lambda parts: list(itertools.chain.from_iterable(parts)))

    def values(self) -> Iterator[T]:
        """Iterate over the results in order, as soon as the engine of each has answered.

        Raises what an engine raised when its part is reached.
        """
        for operation in self._operations:
            yield from operation.result()  # type: ignore[misc]  # a part of the results
