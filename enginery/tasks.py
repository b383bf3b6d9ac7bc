"""Tasks: calls for which the controller chooses the engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from enginery import _calls
from enginery._errors_setting import ErrorsSetting
from enginery._methods import ANY_ENGINE
from enginery._options import NO_OPTIONS, Options
from enginery._scoped import Scoped
from enginery._task_options import NO_TASK_OPTIONS, TaskOptions
from enginery.executor import on_tasks
from enginery.task_map import AUTO, TaskMap

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from enginery._calls import Request
    from enginery._decode import Errors
    from enginery._task_options import After
    from enginery.client import Client
    from enginery.executor import ClusterExecutor
    from enginery.operation import Operation
    from enginery.result import ExecuteResult

T = TypeVar("T")

_NOTHING = NO_TASK_OPTIONS.serialized()


class TaskCalls:
    """What clients and task views have in common: calls of functions on any engine."""

    def _tasks(self) -> TaskView:
        """Return the view whose settings the tasks have."""
        raise NotImplementedError

    @overload
    def submit(  # the engine awaits what a coroutine function returns
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        after: After | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Operation[T]: ...
    @overload
    def submit(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        after: After | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Operation[T]: ...
    @overload
    def submit(
        self,
        function: str,
        /,
        *args: Any,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        after: After | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Operation[Any]: ...
    def submit(
        self,
        function: Callable[..., Any] | str,
        /,
        *args: Any,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        after: After | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Operation[Any]:
        """Call a function with arguments on any engine; return the operation, a future of its value, at once.

        The options are those of `options`, for this task. They are not passed on: TypeError if one is given and
        the function has a parameter of that name. A function of the caller's `__main__` sees the global names
        that it uses as they are now, not those of an engine's namespace. SerializationError if the function or
        an argument cannot be pickled, ValueTooLarge if they are over 4 MiB.
        """
        view = self._tasks()
        given = {
            "retries": retries,
            "where": where,
            "priority": priority,
            "after": after,
            "after_any_outcome": after_any_outcome,
            "placement_timeout": placement_timeout,
            "label": label,
            "timeout": timeout,
        }
        if any(value is not None for value in given.values()):
            _calls.check_reserved(function, "submit", "client.tasks", **given)
            view = view.options(**given)  # type: ignore[arg-type]  # of different types
        return view._start(_calls.Applied(function).request(args, kwargs))

    @overload
    def map(  # the engine awaits what a coroutine function returns
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        chunksize: int | str = AUTO,
        ordered: bool = True,
        max_outstanding: int | None = None,
        return_exceptions: bool = False,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        placement_timeout: float | None = None,
        timeout: float | None = None,
        label: str | None = None,
    ) -> TaskMap[T]: ...
    @overload
    def map(
        self,
        function: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        chunksize: int | str = AUTO,
        ordered: bool = True,
        max_outstanding: int | None = None,
        return_exceptions: bool = False,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        placement_timeout: float | None = None,
        timeout: float | None = None,
        label: str | None = None,
    ) -> TaskMap[T]: ...
    @overload
    def map(
        self,
        function: str,
        /,
        *iterables: Iterable[Any],
        chunksize: int | str = AUTO,
        ordered: bool = True,
        max_outstanding: int | None = None,
        return_exceptions: bool = False,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        placement_timeout: float | None = None,
        timeout: float | None = None,
        label: str | None = None,
    ) -> TaskMap[Any]: ...
    def map(
        self,
        function: Callable[..., Any] | str,
        /,
        *iterables: Iterable[Any],
        chunksize: int | str = AUTO,
        ordered: bool = True,
        max_outstanding: int | None = None,
        return_exceptions: bool = False,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        placement_timeout: float | None = None,
        timeout: float | None = None,
        label: str | None = None,
    ) -> TaskMap[Any]:
        """Call a function for the items of iterables, as `map` of the language does; return an iterator of the
        values.

        The iterables may be endless: they are read as values are taken out, and only so far ahead that engines
        have enough to do; `max_outstanding` is how many items at most are submitted and not taken out yet, by
        default as many as keep all engines busy. For `for` and `async for`. The function is pickled once, now.

        `chunksize` items make one task. "auto" makes single ones of calls that take long, or have `retries` or
        `timeout`, and larger chunks of calls that are over at once. With `ordered=False` values come as they
        are there. What the function raised is raised at its place, and the iterator goes on behind it; with
        `return_exceptions=True` it is the value. Retries and timeout are those of the whole task: if one item
        of a chunk of several fails for good then, every item of that chunk raises its error.

        Closing the map, by `close`, `with`, or dropping it, cancels what it has submitted. The other options
        are those of `options`. TypeError or ValueError for what makes no sense, before anything is sent.
        """
        view = self._tasks().options(
            retries=retries,
            where=where,
            priority=priority,
            placement_timeout=placement_timeout,
            timeout=timeout,
            label=label,
        )
        has_limits = bool(view._task_options.retries) or view._options.timeout is not None
        return TaskMap(
            view,
            function,
            iterables,
            chunksize=1 if chunksize == AUTO and (has_limits or isinstance(function, str)) else chunksize,
            is_whole=bool(view._task_options.retries),
            ordered=ordered,
            max_outstanding=max_outstanding,
            return_exceptions=return_exceptions,
        )

    def executor(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> ClusterExecutor:
        """Return the engines as a `concurrent.futures.Executor`; its calls are tasks with the settings of this.

        At most `max_workers` calls are with the engines at a time; by default as many as keep them busy.
        `initializer(*initargs)` runs once on each engine before its first call, and again on a new kernel.
        ValueError if `max_workers` is not above 0.
        """
        return on_tasks(self._tasks(), max_workers, initializer, initargs)


class TaskView(TaskCalls, Scoped):
    """Any engine: `client.tasks(...)`, whose settings all of its tasks have.

    Each task runs on the engine that the controller chooses for it: one with the properties of `where` that has
    least to do. Tasks neither clear what is queued behind them nor are cleared, and belong to no client: they
    go on when the one that submitted them ends, and `client.operation(id)` of any other has their answers.
    """

    errors = ErrorsSetting()
    """How errors of user code are raised; see `connect`."""

    def __init__(
        self,
        client: Client,
        errors: Errors,
        options: Options = NO_OPTIONS,
        task_options: TaskOptions = NO_TASK_OPTIONS,
    ) -> None:
        """Made by `Client.tasks`. `errors` is as for `connect` and may be set later."""
        self._client = client
        self._options = options
        self._task_options = task_options
        self._message = _NOTHING if task_options is NO_TASK_OPTIONS else task_options.serialized()
        self.errors = errors

    @property
    def client(self) -> Client:
        """The client that made this view."""
        return self._client

    def options(
        self,
        *,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        after: After | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        errors: Errors | None = None,
    ) -> Self:
        """Return a view whose tasks have these settings; what is not given is as here.

        In `with view.options(retries=2):` tasks of `view` itself have them as well, up to the end of the block.

        `retries`: how often a task is run again if it raised, or was lost with its kernel or engine; each time
        it may run on another engine. By default never: what was lost may have run. `where`: properties that its
        engine must have, with these values. `priority`: tasks of a higher one are placed first; -1,000 to
        1,000, by default 0. `after`: operations, groups or ids of operations that must have succeeded before it
        is placed, or with `after_any_outcome` have ended in any way. `placement_timeout`: seconds that it may
        wait for an engine, by default for ever; then TaskNotPlaced. `label`: a name for people. `timeout`,
        `grace` and `interrupt_only` are as for `EngineView.options`, and count for each time that it runs;
        `errors` is as there too.

        TypeError or ValueError for what makes no sense.
        """
        now = self._in_force()
        options = now._options.but(timeout=timeout, grace=grace, interrupt_only=interrupt_only)
        task_options = now._task_options.but(
            retries=retries,
            where=where,
            priority=priority,
            after=after,
            after_any_outcome=after_any_outcome,
            placement_timeout=placement_timeout,
            label=label,
        )
        made = type(self)(self._client, now.errors if errors is None else errors, options, task_options)
        made._origin = self
        return made

    def execute(self, code: str) -> Operation[ExecuteResult]:
        """Run source in the namespace of any engine; return the operation at once."""
        return self._in_force()._start(_calls.execute(code))

    def _tasks(self) -> TaskView:
        return self._in_force()

    def _submit(
        self, function: Callable[..., T] | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Operation[T]:
        """Call a function; no name is reserved. For executors."""
        return self._in_force()._start(_calls.Applied(function).request(args, kwargs))

    def _start(self, request: Request[T]) -> Operation[T]:
        """Send a task."""
        request.options = self._options
        request.task = self._message
        return self._client._start(request, (ANY_ENGINE,), self.errors)[0]

    def __repr__(self) -> str:
        """Show the settings, and the client."""
        shown = self._task_options.shown() | {
            name: value for name, value in dataclasses.asdict(self._options).items() if value is not None
        }
        settings = "".join(f" {name}={value!r}" for name, value in shown.items())
        return f"<TaskView{settings} of {self._client!r}>"
