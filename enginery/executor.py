"""The engines as a `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import threading
import uuid
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from enginery import _codec, _feeder, _setup
from enginery._feeder import EngineFuture, Feeder, Window, Work
from enginery.errors import ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from enginery.operation import Operation
    from enginery.tasks import TaskView
    from enginery.views import EnginesView

    Start = Callable[[Callable[..., Any], tuple[Any, ...]], Operation[Any]]

T = TypeVar("T")


class ClusterExecutor(concurrent.futures.Executor):
    """The engines of a client as a pool of workers: `client.executor()`.

    It passes the tests of the standard library's executors: `submit`, `map`, `shutdown`, `with`,
    `loop.run_in_executor`, `concurrent.futures.wait` and `as_completed` work, and the rules are theirs. A
    future can be cancelled until it is sent to an engine, `shutdown` and the end of the process wait for all
    work, an initializer that fails breaks the executor. The engines go on when it ends. What differs: functions
    and lambdas of a script or notebook travel too; a kernel that dies takes its own call along (KernelDied) and
    nothing else. `future.operation` is the Operation of a future that was sent, with its output and its own
    `cancel`, which stops it.
    """

    def __init__(
        self,
        start: Start,
        engine_count: Callable[[], int],
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        """Made by `executor` of clients, task views and views of engines."""
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._engine_count = engine_count
        self._limit = max_workers
        setup = None
        if initializer is not None:
            setup = functools.partial(_setup.run_after_setup, uuid.uuid4().hex, initializer, initargs)
        self._feeder = Feeder(functools.partial(_start, start, setup), Window(max_workers, engine_count))
        _feeder.register_at_exit()
        self._finalizer = weakref.finalize(self, self._feeder.shut)
        self._finalizer.atexit = False

    @property
    def _max_workers(self) -> int:  # dask and others look at this of any executor
        return self._limit or max(1, self._engine_count())

    @property
    def _broken(self) -> str:
        return self._feeder.broken

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> EngineFuture[T]:
        """Call `fn` on some engine and return a future of what it returns.

        RuntimeError after `shutdown`, BrokenExecutor if the initializer failed. If something cannot be pickled
        the future says so: SerializationError.
        """
        future: EngineFuture[T] = EngineFuture()
        self._feeder.add(Work(future, fn, args, kwargs))
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over `map(fn, *iterables)`, run on the engines, `chunksize` items to a call.

        All calls are submitted now, or from Python 3.14 on at most `buffersize` ahead of what was taken out;
        for endless iterables on any Python there is `client.map`. The iterator raises what `fn` raised, and
        TimeoutError if an answer is not there `timeout` seconds after this call.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        options: dict[str, Any] = {"timeout": timeout}
        if buffersize is not None:
            options["buffersize"] = buffersize
        if chunksize == 1:
            return super().map(fn, *iterables, **options)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        return _each(super().map(functools.partial(_setup.run_chunk, fn), chunks, **options))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and `wait` until all that was taken is done; `cancel_futures` cancels what was not
        sent to an engine. The engines go on."""
        self._feeder.shut(cancel=cancel_futures)
        if wait:
            self._feeder.join()

    def __repr__(self) -> str:
        """Show how many workers it has."""
        state = "broken, " if self._feeder.broken else "shut down, " if self._feeder.is_shut else ""
        return f"<{type(self).__name__} {state}{self._max_workers} workers>"


def on_tasks(
    view: TaskView,
    max_workers: int | None,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> ClusterExecutor:
    """Return an executor whose calls are tasks with the settings of a view."""
    client = view.client
    return ClusterExecutor(on_any(view), lambda: len(client), max_workers, initializer, initargs)


def _start(start: Start, setup: Callable[..., Any] | None, work: Work[Any]) -> Operation[Any]:
    """Send one call to an engine, its initializer with it."""
    function = functools.partial(work.function, **work.kwargs) if work.kwargs else work.function
    if setup is not None:
        function = functools.partial(setup, function)
    return start(function, work.args)


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _each(chunks: Iterator[list[T]]) -> Iterator[T]:
    """Give out the items of lists and keep none of them."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def on_engines(view: EnginesView) -> Start:
    """Return what sends calls to the engines of a view, each to the one that has the fewest of them."""
    calm = view.options(keep_queue=True, any_incarnation=True)  # no call is another's business
    outstanding: Counter[int] = Counter()
    counting = threading.Lock()

    def start(function: Callable[..., Any], args: tuple[Any, ...]) -> Operation[Any]:
        engine_id = min(calm._some(), key=outstanding.__getitem__)
        operation: Operation[Any] = calm._one(engine_id).apply(function, *args, block=False)
        with counting:
            outstanding[engine_id] += 1
        operation.add_done_callback(lambda _: ended(engine_id))
        return operation

    def ended(engine_id: int) -> None:
        with counting:
            outstanding[engine_id] -= 1

    return start


def on_any(view: TaskView) -> Start:
    """Return what sends calls as tasks, and those that are too large for a task to the least busy engine."""
    settings, placement = view._options, view._task_options
    directly = on_engines(
        view.client["all"].options(
            timeout=settings.timeout, grace=settings.grace, interrupt_only=settings.interrupt_only
        )
    )

    def start(function: Callable[..., Any], args: tuple[Any, ...]) -> Operation[Any]:
        try:
            return view._submit(function, args, {})
        except ValueTooLarge:
            if placement.where is not None or placement.after is not None or placement.retries:
                raise  # which only the controller knows how to do
            return directly(_setup.run_sealed, (_codec.encode_for_engine((function, args)),))

    return start
