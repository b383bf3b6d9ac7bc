"""Views of engines for asyncio: the methods of EngineView and EnginesView, each an awaitable."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

from enginery.async_operation import AsyncGroup, AsyncOperation

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from enginery._decode import Errors
    from enginery._parts import Distribution
    from enginery.client import Client
    from enginery.executor import ClusterExecutor
    from enginery.result import ExecuteResult, QueueStatus
    from enginery.serialized import Serialized
    from enginery.view import EngineView
    from enginery.views import EnginesView

T = TypeVar("T")

_STOPPING = 10.0  # seconds for a killed engine to be unregistered
_LOOK = 0.01  # seconds between two looks at which engines there are


class AsyncEngineView:
    """One engine of an AsyncClient: `client[0]`.

    Every method sends its call at once and returns an AsyncOperation, which is awaited for the answer. What
    each does, and raises, is what EngineView says of the method of that name.
    """

    def __init__(self, view: EngineView) -> None:
        """Made by indexing an AsyncClient."""
        self._view = view

    @property
    def engine_id(self) -> int:
        """The engine's id."""
        return self._view.engine_id

    @property
    def id(self) -> int:
        """The same as `engine_id`."""
        return self._view.engine_id

    @property
    def targets(self) -> list[int]:
        """The engine's id in a list."""
        return self._view.targets

    def options(
        self,
        *,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        any_incarnation: bool | None = None,
        keep_queue: bool | None = None,
        errors: Errors | None = None,
    ) -> AsyncEngineView:
        """Return a view of the same engine whose calls have these settings; see `EngineView.options`."""
        return AsyncEngineView(
            self._view.options(
                timeout=timeout,
                grace=grace,
                interrupt_only=interrupt_only,
                any_incarnation=any_incarnation,
                keep_queue=keep_queue,
                errors=errors,
            )
        )

    def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> AsyncOperation[ExecuteResult]:
        """Run source in the namespace. What is large of the result is fetched before it is returned."""
        return AsyncOperation(
            self._view.execute(code, block=False, timeout=timeout, grace=grace, interrupt_only=interrupt_only)
        )

    @overload
    def apply(
        self, function: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any
    ) -> AsyncOperation[T]: ...
    @overload
    def apply(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> AsyncOperation[T]: ...
    @overload
    def apply(self, function: str, /, *args: Any, **kwargs: Any) -> AsyncOperation[Any]: ...
    def apply(self, function: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> AsyncOperation[Any]:
        """Call a function with arguments; `timeout`, `grace` and `interrupt_only` are not passed on."""
        return AsyncOperation(self._view.apply(function, *args, block=False, **kwargs))

    def run(
        self, path: str | os.PathLike[str], *, timeout: float | None = None
    ) -> AsyncOperation[ExecuteResult]:
        """Run a Python file of this machine in the namespace."""
        return AsyncOperation(self._view.run(path, block=False, timeout=timeout))

    def push(self, namespace: Mapping[str, object]) -> AsyncOperation[None]:
        """Put a dictionary into the namespace."""
        return AsyncOperation(self._view.push(namespace, block=False))

    @overload
    def pull(self, keys: str) -> AsyncOperation[Any]: ...
    @overload
    def pull(self, keys: Sequence[str]) -> AsyncOperation[list[Any]]: ...
    def pull(self, keys: str | Sequence[str]) -> AsyncOperation[Any]:
        """Return an object by name; for a sequence of names, a list."""
        return AsyncOperation(self._view.pull(keys, block=False))

    def push_function(self, namespace: Mapping[str, Callable[..., object]]) -> AsyncOperation[None]:
        """Put functions into the namespace, with it as their globals."""
        return AsyncOperation(self._view.push_function(namespace, block=False))

    @overload
    def pull_function(self, keys: str) -> AsyncOperation[Callable[..., Any]]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_function(self, keys: Sequence[str]) -> AsyncOperation[list[Callable[..., Any]]]: ...
    def pull_function(self, keys: str | Sequence[str]) -> AsyncOperation[Any]:
        """Return functions by name."""
        return AsyncOperation(self._view.pull_function(keys, block=False))

    def push_serialized(self, namespace: Mapping[str, object]) -> AsyncOperation[None]:
        """Put values into the namespace that each travel in their own form."""
        return AsyncOperation(self._view.push_serialized(namespace, block=False))

    @overload
    def pull_serialized(self, keys: str) -> AsyncOperation[Serialized]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_serialized(self, keys: Sequence[str]) -> AsyncOperation[list[Serialized]]: ...
    def pull_serialized(self, keys: str | Sequence[str]) -> AsyncOperation[Any]:
        """Return values by name as Serialized."""
        return AsyncOperation(self._view.pull_serialized(keys, block=False))

    def get_result(self, number: int | None = None) -> AsyncOperation[ExecuteResult]:
        """Return the record of command `number`, by default the latest."""
        return AsyncOperation(self._view.get_result(number, block=False))

    def keys(self) -> AsyncOperation[list[str]]:
        """Return the names that users put into the namespace."""
        return AsyncOperation(self._view.keys(block=False))

    def reset(self) -> AsyncOperation[None]:
        """Clear queue, namespace, history and properties."""
        return AsyncOperation(self._view.reset(block=False))

    async def kill(self) -> None:
        """Stop the engine for good; return when it is no longer among the client's `ids`."""
        kernels = self._view.client._kernels([self.engine_id])
        await AsyncOperation(self._view.kill(block=False))
        await wait_until_gone(self._view.client, kernels)

    def set_properties(self, properties: Mapping[str, object]) -> AsyncOperation[None]:
        """Update the engine's properties."""
        return AsyncOperation(self._view.set_properties(properties, block=False))

    def get_properties(self, keys: str | Sequence[str] | None = None) -> AsyncOperation[dict[str, Any]]:
        """Return properties by key, by default all."""
        return AsyncOperation(self._view.get_properties(keys, block=False))

    def has_properties(self, keys: str | Sequence[str]) -> AsyncOperation[list[bool]]:
        """Return for each key whether there is such a property."""
        return AsyncOperation(self._view.has_properties(keys, block=False))

    def del_properties(self, keys: str | Sequence[str]) -> AsyncOperation[None]:
        """Remove properties."""
        return AsyncOperation(self._view.del_properties(keys, block=False))

    def clear_properties(self) -> AsyncOperation[None]:
        """Remove all properties."""
        return AsyncOperation(self._view.clear_properties(block=False))

    def interrupt(self, operation_id: str | None = None) -> AsyncOperation[str | None]:
        """Raise KeyboardInterrupt in what runs, or only in `operation_id`; return the operation."""
        return AsyncOperation(self._view.interrupt(operation_id, block=False))

    def queue_status(self) -> AsyncOperation[QueueStatus]:
        """Return what runs and what waits."""
        return AsyncOperation(self._view.queue_status(block=False))

    def clear_queue(self) -> AsyncOperation[int]:
        """Fail every waiting operation with QueueCleared and return how many."""
        return AsyncOperation(self._view.clear_queue(block=False))

    def __getitem__(self, key: str) -> AsyncOperation[Any]:
        """Pull one name: `await view["a"]`."""
        return self.pull(key)

    __iter__ = None  # or Python would ask for the names 0, 1, 2, ...

    def __repr__(self) -> str:
        """Show the engine and whether it is there."""
        return f"<Async{repr(self._view)[1:]}"


class AsyncEnginesView:
    """Several engines of an AsyncClient: `client[:]`, `client[[0, 2]]`, `client["all"]`.

    Every method sends its call to all of them at once and returns an AsyncGroup, which is awaited for the list
    of answers. What each does, and raises, is what EnginesView says of the method of that name.
    """

    def __init__(self, view: EnginesView) -> None:
        """Made by indexing an AsyncClient."""
        self._view = view

    @property
    def targets(self) -> list[int]:
        """Ids of the engines, in the order of answers."""
        return self._view.targets

    def options(
        self,
        *,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        any_incarnation: bool | None = None,
        keep_queue: bool | None = None,
        errors: Errors | None = None,
    ) -> AsyncEnginesView:
        """See `EngineView.options`."""
        return AsyncEnginesView(
            self._view.options(
                timeout=timeout,
                grace=grace,
                interrupt_only=interrupt_only,
                any_incarnation=any_incarnation,
                keep_queue=keep_queue,
                errors=errors,
            )
        )

    def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> AsyncGroup[ExecuteResult]:
        """Run source in the namespaces."""
        return AsyncGroup(
            self._view.execute(code, block=False, timeout=timeout, grace=grace, interrupt_only=interrupt_only)
        )

    @overload
    def apply(
        self, function: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any
    ) -> AsyncGroup[T]: ...
    @overload
    def apply(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> AsyncGroup[T]: ...
    @overload
    def apply(self, function: str, /, *args: Any, **kwargs: Any) -> AsyncGroup[Any]: ...
    def apply(self, function: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> AsyncGroup[Any]:
        """Call a function with the same arguments on every engine; `timeout`, `grace` and `interrupt_only` are
        not passed on."""
        return AsyncGroup(self._view.apply(function, *args, block=False, **kwargs))

    def run(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> AsyncGroup[ExecuteResult]:
        """Run a Python file of this machine in the namespaces."""
        return AsyncGroup(self._view.run(path, block=False, timeout=timeout))

    def push(self, namespace: Mapping[str, object]) -> AsyncGroup[None]:
        """Put a dictionary into the namespaces."""
        return AsyncGroup(self._view.push(namespace, block=False))

    def pull(self, keys: str | Sequence[str]) -> AsyncGroup[Any]:
        """Return an object by name from each; for a sequence of names, a list from each."""
        return AsyncGroup(self._view.pull(keys, block=False))

    def scatter(
        self, key: str, items: Iterable[object], dist: Distribution = "block", flatten: bool = False
    ) -> AsyncGroup[None]:
        """Split a sequence and put a part into each engine's namespace; see `EnginesView.scatter`."""
        return AsyncGroup(self._view.scatter(key, items, dist, flatten, block=False))

    def gather(self, key: str, dist: Distribution = "block") -> AsyncGroup[Any]:
        """Pull `key` from every engine and put the parts together again; see `EnginesView.gather`."""
        return AsyncGroup(self._view.gather(key, dist, block=False))

    def map(
        self,
        function: Callable[..., T] | str,
        /,
        *sequences: Iterable[Any],
        timeout: float | None = None,
    ) -> AsyncGroup[Any]:
        """Call a function for every item, each engine for an equal part; see `EnginesView.map`."""
        return AsyncGroup(self._view.map(function, *sequences, block=False, timeout=timeout))

    async def zip_pull(self, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        """Pull names and return for each a tuple of its values, in target order."""
        pulled = await self.pull(list(keys))
        return list(zip(*pulled, strict=True))

    def push_function(self, namespace: Mapping[str, Callable[..., object]]) -> AsyncGroup[None]:
        """Put functions into the namespaces, with each as their globals."""
        return AsyncGroup(self._view.push_function(namespace, block=False))

    def pull_function(self, keys: str | Sequence[str]) -> AsyncGroup[Any]:
        """Return functions by name from each."""
        return AsyncGroup(self._view.pull_function(keys, block=False))

    def push_serialized(self, namespace: Mapping[str, object]) -> AsyncGroup[None]:
        """Put values into the namespaces that each travel in their own form."""
        return AsyncGroup(self._view.push_serialized(namespace, block=False))

    def pull_serialized(self, keys: str | Sequence[str]) -> AsyncGroup[Any]:
        """Return values by name from each as Serialized."""
        return AsyncGroup(self._view.pull_serialized(keys, block=False))

    def get_result(self, number: int | None = None) -> AsyncGroup[ExecuteResult]:
        """Return the record of command `number` of each, by default the latest."""
        return AsyncGroup(self._view.get_result(number, block=False))

    def keys(self) -> AsyncGroup[list[str]]:
        """Return the names that users put into the namespaces."""
        return AsyncGroup(self._view.keys(block=False))

    def reset(self) -> AsyncGroup[None]:
        """Clear queues, namespaces, histories and properties."""
        return AsyncGroup(self._view.reset(block=False))

    async def kill(self) -> None:
        """Stop the engines for good; return when they are no longer among the client's `ids`."""
        kernels = self._view.client._kernels(self.targets)
        await AsyncGroup(self._view.kill(block=False))
        await wait_until_gone(self._view.client, kernels)

    def set_properties(self, properties: Mapping[str, object]) -> AsyncGroup[None]:
        """Update the engines' properties."""
        return AsyncGroup(self._view.set_properties(properties, block=False))

    def get_properties(self, keys: str | Sequence[str] | None = None) -> AsyncGroup[dict[str, Any]]:
        """Return properties by key, by default all."""
        return AsyncGroup(self._view.get_properties(keys, block=False))

    def has_properties(self, keys: str | Sequence[str]) -> AsyncGroup[list[bool]]:
        """Return for each key whether there is such a property."""
        return AsyncGroup(self._view.has_properties(keys, block=False))

    def del_properties(self, keys: str | Sequence[str]) -> AsyncGroup[None]:
        """Remove properties."""
        return AsyncGroup(self._view.del_properties(keys, block=False))

    def clear_properties(self) -> AsyncGroup[None]:
        """Remove all properties."""
        return AsyncGroup(self._view.clear_properties(block=False))

    def interrupt(self, operation_id: str | None = None) -> AsyncGroup[str | None]:
        """Raise KeyboardInterrupt in what runs on each; return the operations."""
        return AsyncGroup(self._view.interrupt(operation_id, block=False))

    def queue_status(self) -> AsyncGroup[QueueStatus]:
        """Return what runs and what waits on each."""
        return AsyncGroup(self._view.queue_status(block=False))

    def clear_queue(self) -> AsyncGroup[int]:
        """Fail every waiting operation with QueueCleared and return how many on each."""
        return AsyncGroup(self._view.clear_queue(block=False))

    def executor(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> ClusterExecutor:
        """Return these engines as an executor, for `loop.run_in_executor`; see `EnginesView.executor`."""
        return self._view.executor(max_workers, initializer, initargs)

    def __getitem__(self, key: str) -> AsyncGroup[Any]:
        """Pull one name from every engine: `await view["a"]`."""
        return self.pull(key)

    def __len__(self) -> int:
        """Return how many engines there are in it."""
        return len(self._view)

    def __iter__(self) -> Iterator[AsyncEngineView]:
        """Iterate over a view of each engine, in target order."""
        return iter([AsyncEngineView(view) for view in self._view])

    __contains__ = None  # names, or engines? `in` would look through the engines for either

    def __bool__(self) -> bool:
        """Return True: a view is something even while it has no engines."""
        return True

    def __repr__(self) -> str:
        """Show the engines."""
        return f"<Async{repr(self._view)[1:]}"


async def wait_until_gone(client: Client, kernels: dict[int, str]) -> None:
    """Wait until none of these incarnations is registered; TimeoutError after 10 s."""
    deadline = time.monotonic() + _STOPPING
    ids = list(kernels)
    while client._link.connected and any(client._kernels(ids).get(i) == kernels[i] for i in ids):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"engines {ids} were told to stop and are still registered after {_STOPPING:g} s"
            )
        await asyncio.sleep(_LOOK)


async def wait_for_engines(client: Client, n: int, timeout: float) -> list[int]:
    """Wait until `n` engines are registered and return their ids; TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while len(ids := client.ids) < n:
        if client.closed:
            client._check_open()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(ids)} of {n} engines are registered after {timeout:g} s: {ids}")
        await asyncio.sleep(_LOOK)
    return ids
