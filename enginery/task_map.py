"""Map over any engines: values of a function for items that may never end."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import Sized
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Self, TypeVar

from enginery import _calls, _chunk, _options
from enginery._chunk_size import ChunkSize
from enginery._completed import AsCompleted
from enginery._decode import to_exception
from enginery.errors import SerializationError, ValueTooLarge
from enginery.v1 import error_pb2, value_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import TracebackType

    from enginery._link import Link
    from enginery.operation import Operation
    from enginery.tasks import TaskView

T = TypeVar("T")

AUTO = "auto"
_SINGLES = 64  # items for each engine that are submitted ahead, of single ones
_CHUNKS = 4  # of chunks: there are never fewer tasks than that
_BYTES = 64 << 20  # arguments that are submitted ahead


class _Part(NamedTuple):
    """One task of a map."""

    operation: Operation[Any]
    items: int
    is_chunk: bool
    """Whether its value is a list of values."""
    size: int
    """Bytes of its request."""


class _Failed(NamedTuple):
    """An item that has no value."""

    error: Exception


class _Arrival(NamedTuple):
    """Waits in a coroutine until an operation is done."""

    operation: Operation[Any]

    def __await__(self) -> Generator[Any, None, None]:
        return self.operation.arrival()


class TaskMap(Generic[T]):
    """The values of a map over any engines: an iterator, for `for` and `async for`. See `TaskView.map`.

    Its length, if all iterables have one, is how many values there are in all, so a `tqdm` around it knows its
    end.
    """

    def __init__(
        self,
        view: TaskView,
        function: Callable[..., T] | str,
        iterables: tuple[Iterable[Any], ...],
        *,
        chunksize: int | str,
        is_whole: bool,
        ordered: bool,
        max_outstanding: int | None,
        return_exceptions: bool,
    ) -> None:
        """Made by `TaskView.map`. With `is_whole` an item that raises ends its chunk, which is tried again."""
        if not iterables:
            raise TypeError("map needs at least one iterable")
        if chunksize != AUTO:
            _count("chunksize", chunksize)
            if isinstance(function, str) and chunksize != 1:
                raise ValueError("a function that is called by its name is mapped with chunksize=1")
        if max_outstanding is not None:
            _count("max_outstanding", max_outstanding)
        _options.flag("ordered", ordered)
        _options.flag("return_exceptions", return_exceptions)
        self._view = view
        self._chunk_size = ChunkSize(None if isinstance(chunksize, str) else chunksize)
        self._limit = max_outstanding
        self._returns_exceptions = return_exceptions
        self._total = _length(iterables)
        self._items: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        self._single = _calls.Applied(function)
        self._chunk: _calls.Applied[Any] | None = None
        self._function = function
        self._is_whole = is_whole
        self._read = 0
        self._given = 0
        self._bytes = 0
        self._is_exhausted = False
        self._failure: Exception | None = None  # of the iterables, or of an item that cannot be sent
        self._parts: OrderedDict[Operation[Any], _Part] = OrderedDict()
        self._arrivals: AsCompleted[Any] | None = None if ordered else AsCompleted()
        self._ready: deque[Any] = deque()
        self._cancel = weakref.finalize(self, _cancel, view.client._link, self._parts)
        self._cancel.atexit = False  # tasks belong to no client
        self._fill()

    # ---- values out

    def __iter__(self) -> Self:
        """Return the iterator itself."""
        return self

    def __next__(self) -> T:
        """Return the next value, or raise what the function raised for it; waits. Ctrl-C closes the map."""
        try:
            while not self._ready:
                self._fill()
                if not self._parts:
                    raise self._end(StopIteration)
                if self._arrivals is None:
                    operation = next(iter(self._parts))
                    operation._wait(None)
                else:
                    operation = next(self._arrivals)
                self._take(operation)
        except KeyboardInterrupt as interrupt:  # nobody else has its tasks, to wait for them or to stop them
            self._close(interrupt_only=None if self._view._options.interrupt_only is False else True)
            interrupt.add_note("the map is closed, and its tasks are told to stop")
            raise interrupt.with_traceback(None) from None
        return self._give()

    def __aiter__(self) -> Self:
        """Return the iterator itself."""
        return self

    async def __anext__(self) -> T:
        """Return the next value, or raise what the function raised for it."""
        while not self._ready:
            self._fill()
            if not self._parts:
                raise self._end(StopAsyncIteration)
            if self._arrivals is None:
                operation = next(iter(self._parts))
                await _Arrival(operation)
            else:
                operation = await anext(self._arrivals)
            self._take(operation)
        return self._give()

    def _end(self, end: type[Exception]) -> Exception:
        """Return what ends the iteration: `end`, or once what kept it from going on."""
        failure, self._failure = self._failure, None
        return end() if failure is None else failure

    def _give(self) -> T:
        self._given += 1
        value = self._ready.popleft()
        if not isinstance(value, _Failed):
            return value  # type: ignore[no-any-return]  # what the function returned
        if self._returns_exceptions:
            return value.error  # type: ignore[return-value]  # as the caller wants it
        if isinstance(value.error, StopIteration | StopAsyncIteration):  # it would end the map before its time
            raise RuntimeError(f"the function raised {type(value.error).__name__}") from value.error
        raise value.error

    def _take(self, operation: Operation[Any]) -> None:
        """Make the values of a task that is done ready."""
        part = self._parts.pop(operation)
        self._bytes -= part.size
        answer = operation._answer
        if answer is not None and not self._chunk_size.is_fixed:
            self._chunk_size.ran(part.items, answer.duration() or 0.0)
            self._chunk_size.weighed(part.items, answer.value_size())
        error = operation.exception()
        if error is not None:
            self._ready.extend([_Failed(error)] * part.items)
        elif not part.is_chunk:
            self._ready.append(operation.result())
        else:
            for value in operation.result():
                raised = isinstance(value, _chunk.Raised)
                self._ready.append(_Failed(_error(value, operation)) if raised else value)

    # ---- items in

    def _fill(self) -> None:
        """Submit as much as is to be on its way; nothing while most of it is, since what is submitted at once
        travels together."""
        engines = max(1, len(self._view.client))
        is_filling = False
        while not self._is_exhausted and self._bytes < _BYTES:
            left = None if self._total is None else self._total - self._read
            size = self._chunk_size.next(engines, left)
            if self._limit is not None:
                size = min(size, self._limit - self._read + self._given)
                if size < 1:
                    return
            elif self._is_enough(size, engines, is_filling=is_filling):
                return
            self._read_on(size)
            is_filling = True

    def _is_enough(self, size: int, engines: int, *, is_filling: bool) -> bool:
        """Return whether no more chunks of `size` are to be submitted, as many as there are and are not taken
        out."""
        most = engines * max(_CHUNKS, _SINGLES // size)
        if len(self._parts) >= (most if is_filling else most - most // 4):
            return True
        return self._read - self._given >= 2 * engines * max(_CHUNKS * size, _SINGLES)

    def _read_on(self, size: int) -> None:
        items: list[tuple[Any, ...]] = []
        try:
            items.extend(itertools.islice(self._items, size))
        except Exception as error:  # of the caller's iterables: raised behind what was read before
            self._failure = error
        self._is_exhausted = len(items) < size
        self._read += len(items)
        if items:
            try:
                self._submit(items)
            except (SerializationError, ValueTooLarge) as error:  # an item that cannot be sent
                self._is_exhausted = True
                self._failure = error

    def _submit(self, items: list[tuple[Any, ...]]) -> None:
        try:
            is_chunk = len(items) > 1
            request = self._chunks().request((items,), {}) if is_chunk else self._single.request(items[0], {})
        except ValueTooLarge:
            if len(items) == 1 or self._chunk_size.is_fixed:
                raise
            half = len(items) // 2  # they are larger than those before
            self._submit(items[:half])
            self._submit(items[half:])
            return
        size = len(request.payload)
        self._chunk_size.weighed(len(items), size)
        operation = self._view._start(request)
        self._parts[operation] = _Part(operation, len(items), is_chunk, size)
        self._bytes += size
        if self._arrivals is not None:
            self._arrivals.add(operation)

    def _chunks(self) -> _calls.Applied[Any]:
        """Return the function that runs a chunk, pickled when it is first needed."""
        if self._chunk is None:
            self._chunk = _calls.Applied(partial(_runner(self._function, self._is_whole), self._function))
        return self._chunk

    # ---- the end

    def close(self) -> None:
        """Cancel what was submitted and not taken out, and give out no more. The second time does nothing."""
        self._close(interrupt_only=None)

    def _close(self, *, interrupt_only: bool | None) -> None:
        self._is_exhausted = True
        self._failure = None
        self._ready.clear()
        if self._cancel.detach() is not None:
            _cancel(self._view.client._link, self._parts, interrupt_only)
        self._parts.clear()

    def __enter__(self) -> Self:
        """Return the iterator itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __len__(self) -> int:
        """Return how many values there are in all; TypeError if the iterables do not tell."""
        if self._total is None:
            raise TypeError("nobody knows how many values this map has: not all of its iterables have a length")
        return self._total

    def __bool__(self) -> bool:
        """Return True, as iterators do."""
        return True

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to an engine."""
        raise TypeError("a TaskMap is an iterator over what runs elsewhere and cannot be pickled")

    def __repr__(self) -> str:
        """Show how much was read and taken out."""
        total = "" if self._total is None else f" of {self._total}"
        return f"<TaskMap: {self._given}{total} values taken, {self._read - self._given} submitted or ready>"


def _count(name: str, value: object) -> None:
    if type(value) is not int:  # a bool is no number
        raise TypeError(f"{name} is an int, not {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} is {value}: at least 1")


def _length(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return how many items there are, None if that is not known."""
    lengths = [len(iterable) for iterable in iterables if isinstance(iterable, Sized)]
    return min(lengths) if len(lengths) == len(iterables) else None


def _runner(function: Callable[..., Any] | str, is_whole: bool) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):
        return _chunk.run_coroutines_whole if is_whole else _chunk.run_coroutines
    return _chunk.run_whole if is_whole else _chunk.run


def _error(raised: _chunk.Raised, operation: Operation[Any]) -> Exception:
    """Return what to raise for an item of a chunk."""
    message = error_pb2.RemoteError(
        errors=[
            error_pb2.RaisedError(
                module=raised.module,
                type_name=raised.type_name,
                hierarchy=raised.hierarchy,
                message=raised.message,
            )
        ],
        traceback=raised.traceback,
        engine_id=operation.engine_id,
        method=operation.method,
        operation_id=operation.operation_id,
        category=error_pb2.ERROR_CATEGORY_USER,
    )
    if raised.pickled:
        message.pickled.CopyFrom(value_pb2.Pickle(data=raised.pickled))
    return to_exception(message, operation.errors)


def _cancel(link: Link, parts: OrderedDict[Operation[Any], _Part], interrupt_only: bool | None = None) -> None:
    operations = [operation for operation in parts if not operation.done()]
    if operations:
        link.cancelling.stop_soon(operations, interrupt_only)
