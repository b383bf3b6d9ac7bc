"""What only a view of several engines can do: split sequences among them, and put answers together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from enginery import _calls, _options, _parts
from enginery._base_view import BaseView
from enginery._on_engine import Each, call_each
from enginery._reference import Reference, reference
from enginery.group import Group
from enginery.joined import Joined, MapResult
from enginery.operation import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

    from enginery._options import Options
    from enginery._parts import Distribution
    from enginery.functions import ParallelFunction
    from enginery.operation import Operation

T = TypeVar("T")


class Spreading(BaseView):
    """Scatter and gather, and map with a part of the items for each engine."""

    @property
    def targets(self) -> list[int]:
        """Ids of the engines."""
        raise NotImplementedError

    def _some(self) -> list[int]:
        """Return the engines' ids; NoEnginesRegistered if there are none."""
        raise NotImplementedError

    @overload
    def scatter(
        self,
        key: str,
        items: Iterable[object],
        dist: Distribution = "block",
        flatten: bool = False,
        *,
        block: Literal[True] | None = None,
    ) -> list[None]: ...
    @overload
    def scatter(
        self,
        key: str,
        items: Iterable[object],
        dist: Distribution = "block",
        flatten: bool = False,
        *,
        block: Literal[False],
    ) -> Group[None]: ...
    def scatter(
        self,
        key: str,
        items: Iterable[object],
        dist: Distribution = "block",
        flatten: bool = False,
        *,
        block: bool | None = None,
    ) -> list[None] | Group[None]:
        """Split a sequence and put a part into each engine's namespace, as `key`.

        Parts are of the sequence's type, and their lengths differ by one at most: with `dist="block"` the first
        items go to the first engine, with `"cyclic"` one item to each engine in turn. With `flatten` a part of
        one item is that item itself. Arrays are split along their first axis. TypeError for what has no order,
        as a set.
        """
        kind = _parts.check(dist)
        engine_ids = self._some()
        parts = _parts.split(_parts.as_sequence(items), len(engine_ids), kind)
        if flatten:
            parts = [_parts.only(part) if len(part) == 1 else part for part in parts]
        requests = [_calls.push({key: part}) for part in parts]
        answers: list[None] | Group[None] = self._send(_each(requests, engine_ids), block, Group)
        return answers

    @overload
    def gather(self, key: str, dist: Distribution = "block", *, block: Literal[True] | None = None) -> Any: ...
    @overload
    def gather(self, key: str, dist: Distribution = "block", *, block: Literal[False]) -> Joined[Any]: ...
    def gather(self, key: str, dist: Distribution = "block", *, block: bool | None = None) -> Any:
        """Pull `key` from every engine and put the parts together again, as `scatter` with that `dist` split
        them.

        Arrays, data frames, texts and bytes give one of their kind; anything else a list, in which a part that
        is no list, tuple, range or array is one item. ValueError if the parts do not fit `dist`.
        """
        kind = _parts.check(dist)
        return self._send([(_calls.pull(key), self._some())], block, self._joining(kind))

    @overload
    def zip_pull(self, keys: str) -> list[Any]: ...
    @overload
    def zip_pull(self, keys: Sequence[str]) -> list[tuple[Any, ...]]: ...
    def zip_pull(self, keys: str | Sequence[str]) -> list[Any]:
        """Pull names and return for each a tuple of its values, in target order; for one name a list of them.

        `a, b = view.zip_pull(["a", "b"])`. Always waits.
        """
        pulled: list[Any] = self._send([(_calls.pull(keys), self._some())], True, Group)
        return pulled if isinstance(keys, str) else list(zip(*pulled, strict=True))

    @overload
    def map(  # the engine awaits what a coroutine function returns
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *sequences: Iterable[Any],
        block: Literal[True] | None = None,
        timeout: float | None = None,
    ) -> list[T]: ...
    @overload
    def map(
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *sequences: Iterable[Any],
        block: Literal[False],
        timeout: float | None = None,
    ) -> MapResult[T]: ...
    @overload
    def map(
        self,
        function: Callable[..., T],
        /,
        *sequences: Iterable[Any],
        block: Literal[True] | None = None,
        timeout: float | None = None,
    ) -> list[T]: ...
    @overload
    def map(
        self,
        function: Callable[..., T],
        /,
        *sequences: Iterable[Any],
        block: Literal[False],
        timeout: float | None = None,
    ) -> MapResult[T]: ...
    @overload
    def map(
        self,
        function: str | Reference,
        /,
        *sequences: Iterable[Any],
        block: Literal[True] | None = None,
        timeout: float | None = None,
    ) -> list[Any]: ...
    @overload
    def map(
        self,
        function: str | Reference,
        /,
        *sequences: Iterable[Any],
        block: Literal[False],
        timeout: float | None = None,
    ) -> MapResult[Any]: ...
    def map(
        self,
        function: Callable[..., T] | str | Reference,
        /,
        *sequences: Iterable[Any],
        block: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Call a function for every item, or of several sequences for the items of each place, and return the
        results in order.

        Each engine gets an equal part, in one call, so that its namespace is at hand: for items that take
        unequally long `client.map` is better. A text names a function of the engines. What it raises is in a
        CompositeError, with a note that says for which item; the engine leaves out the rest of its part.
        `timeout` is of each part, in seconds. ValueError if the sequences are not of one length.
        """
        if not sequences:
            raise TypeError("map takes a function and at least one sequence")
        parts, engine_ids = self._split(sequences, "block")
        firsts = [sum(len(part[0]) for part in parts[:place]) for place in range(len(parts))]
        requests: list[_calls.Request[Any]]
        if isinstance(function, str | Reference):
            named = reference(function) if isinstance(function, str) else function
            arguments = [(named, first, *part) for first, part in zip(firsts, parts, strict=True)]
            requests = _calls.apply_each(call_each, arguments)
        else:
            if not callable(function):
                raise TypeError(f"map calls a function or the name of one, not {type(function).__name__}")
            arguments = [(first, *part) for first, part in zip(firsts, parts, strict=True)]
            requests = _calls.apply_each(Each(function), arguments)
        options = self._in_force()._options.but(timeout=timeout)
        return self._send(_each(requests, engine_ids), block, MapResult, options)

    @overload
    def parallel(self, function: Callable[..., T], /) -> ParallelFunction[T]: ...
    @overload
    def parallel(
        self, /, *, dist: Distribution = "block", block: bool | None = None, timeout: float | None = None
    ) -> Callable[[Callable[..., T]], ParallelFunction[T]]: ...
    def parallel(
        self,
        function: Callable[..., T] | None = None,
        /,
        *,
        dist: Distribution = "block",
        block: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Make a function of sequences run on all engines, each with its part: `@view.parallel`.

        Called with sequences of one length, it is called on every engine with its part of each, and what it
        returns there is put together as by `gather`. `f.map(items)` calls it for every item instead.
        """
        from enginery.functions import ParallelFunction

        view = self if block is None and timeout is None else self.options(block=block, timeout=timeout)
        kind = _parts.check(dist)
        if function is None:
            return lambda function: ParallelFunction(view, function, kind)
        return ParallelFunction(view, function, kind)

    def _joining(self, kind: _parts.Kind) -> Callable[[list[Any]], Joined[Any]]:
        return lambda operations: Joined(operations, lambda parts: _parts.join(parts, kind))

    def _call_parts(self, function: Callable[..., Any], sequences: Sequence[Any], kind: _parts.Kind) -> Any:
        """Call a function on each engine with its part of each sequence. For parallel functions."""
        parts, engine_ids = self._split(sequences, kind)
        requests: list[_calls.Request[Any]] = _calls.apply_each(function, parts)
        return self._send(_each(requests, engine_ids), None, self._joining(kind))

    def _split(
        self, sequences: Sequence[Iterable[Any]], kind: _parts.Kind
    ) -> tuple[list[tuple[Any, ...]], list[int]]:
        """Return for each engine that gets any its part of every sequence, and those engines' ids."""
        engine_ids = self._some()
        whole = [_parts.as_sequence(items) for items in sequences]
        lengths = [len(items) for items in whole]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"the sequences are not of one length, but of {', '.join(map(str, lengths))} items"
            )
        columns = [_parts.split(items, len(engine_ids), kind) for items in whole]
        parts = [part for part in zip(*columns, strict=True) if len(part[0])]
        return parts, engine_ids[: len(parts)]

    def _send(
        self,
        calls: Iterable[tuple[_calls.Request[Any], Sequence[int]]],
        block: bool | None,
        collect: Callable[[list[Any]], Group[Any]],
        options: Options | None = None,
    ) -> Any:
        """Send requests, each to the engines beside it; return the group that `collect` makes of the
        operations, or its result."""
        now = self._in_force()
        waits = _options.waits(block, now.block)
        operations: list[Operation[Any]] = []
        for request, engine_ids in calls:
            request.options = now._options if options is None else options
            if not waits:
                request.own_uploads()
            operations += self._client._start(request, engine_ids, now.errors)
        if waits:
            wait_for(operations)
        group = collect(operations)
        return group.result() if waits else group


def _each(
    requests: Iterable[_calls.Request[Any]], engine_ids: Sequence[int]
) -> Iterator[tuple[_calls.Request[Any], Sequence[int]]]:
    """Return each request with the one engine that gets it."""
    return zip(requests, ([engine_id] for engine_id in engine_ids), strict=True)
