"""Tasks for asyncio: calls for which the controller chooses the engine, each an awaitable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from enginery.async_operation import AsyncGroup, AsyncOperation
from enginery.task_map import AUTO

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from enginery._decode import Errors
    from enginery._task_options import After
    from enginery.executor import ClusterExecutor
    from enginery.result import ExecuteResult
    from enginery.task_map import TaskMap
    from enginery.tasks import TaskCalls, TaskView

    Before: TypeAlias = (
        After | AsyncOperation[Any] | AsyncGroup[Any] | Iterable[AsyncOperation[Any] | AsyncGroup[Any]]
    )
    """What a task may come after: as for `Client.submit`, and what AsyncClients return."""

T = TypeVar("T")


class AsyncTaskCalls:
    """What AsyncClient and AsyncTaskView have in common: calls of functions on any engine."""

    def _calls(self) -> TaskCalls:
        """Return what makes the calls."""
        raise NotImplementedError

    @overload
    def submit(
        self, function: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any
    ) -> AsyncOperation[T]: ...
    @overload
    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> AsyncOperation[T]: ...
    @overload
    def submit(self, function: str, /, *args: Any, **kwargs: Any) -> AsyncOperation[Any]: ...
    def submit(self, function: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> AsyncOperation[Any]:
        """Call a function on any engine; the options that `Client.submit` has are not passed on. See there."""
        if kwargs.get("after") is not None:
            kwargs["after"] = _plain(kwargs["after"])
        return AsyncOperation(self._calls().submit(function, *args, **kwargs))

    def map(
        self,
        function: Callable[..., T] | str,
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
    ) -> TaskMap[T]:
        """Call a function for the items of iterables, which may be endless; return an asynchronous iterator of
        the values: `async for value in client.map(function, items)`. See `Client.map`."""
        return self._calls().map(
            function,
            *iterables,
            chunksize=chunksize,
            ordered=ordered,
            max_outstanding=max_outstanding,
            return_exceptions=return_exceptions,
            retries=retries,
            where=where,
            priority=priority,
            placement_timeout=placement_timeout,
            timeout=timeout,
            label=label,
        )

    def executor(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> ClusterExecutor:
        """Return the engines as an executor, for `loop.run_in_executor`; see `Client.executor`."""
        return self._calls().executor(max_workers, initializer, initargs)


class AsyncTaskView(AsyncTaskCalls):
    """Any engine: `client.tasks(...)` of an AsyncClient, whose settings all of its tasks have; see TaskView."""

    def __init__(self, view: TaskView) -> None:
        """Made by `AsyncClient.tasks`."""
        self._view = view

    def options(
        self,
        *,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        after: Before | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        errors: Errors | None = None,
    ) -> AsyncTaskView:
        """Return a view whose tasks have these settings; see `TaskView.options`."""
        made = self._view.options(
            retries=retries,
            where=where,
            priority=priority,
            after=None if after is None else _plain(after),
            after_any_outcome=after_any_outcome,
            placement_timeout=placement_timeout,
            label=label,
            timeout=timeout,
            grace=grace,
            interrupt_only=interrupt_only,
            errors=errors,
        )
        return AsyncTaskView(made)

    def execute(self, code: str) -> AsyncOperation[ExecuteResult]:
        """Run source in the namespace of any engine."""
        return AsyncOperation(self._view.execute(code))

    def _calls(self) -> TaskCalls:
        return self._view

    def __repr__(self) -> str:
        """Show the client."""
        return f"<Async{repr(self._view)[1:]}"


def _plain(after: object) -> Any:
    """Return what a task is to come after, as views that know nothing of asyncio take it."""
    if isinstance(after, AsyncOperation):
        return after.operation
    if isinstance(after, AsyncGroup):
        return after.group
    if isinstance(after, Iterable) and not isinstance(after, str):
        return [_plain(one) for one in after]
    return after
