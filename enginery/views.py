"""A view of several engines: the same methods, each answer a list in target order."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, SupportsIndex, TypeVar, overload

from enginery import _calls, _options, _sources
from enginery._options import NO_OPTIONS, Options
from enginery._properties import PropertiesOfSeveral
from enginery._sources import SyncImports
from enginery._spreading import Spreading
from enginery.errors import NoEnginesRegistered
from enginery.executor import ClusterExecutor, on_engines
from enginery.functions import RemoteFunction
from enginery.group import Group, gather
from enginery.operation import wait_for
from enginery.view import EngineView

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from enginery._decode import Errors
    from enginery.client import Client
    from enginery.result import ExecuteResult, QueueStatus
    from enginery.serialized import Serialized

P = ParamSpec("P")
T = TypeVar("T")


class EnginesView(PropertiesOfSeveral, Spreading):
    """Several engines: `client[:]`, `client[[0, 2]]`, or all there are at the time of each call:
    `client["all"]`.

    Calls go out to all engines at once, and an argument is pickled once. Calls wait for every answer; with
    `block=False` they return a Group at once. If any engine fails this is one CompositeError, which lists each
    failure with its engine and method. Otherwise as EngineView.
    """

    def __init__(
        self, client: Client, targets: Sequence[int] | None, errors: Errors, options: Options = NO_OPTIONS
    ) -> None:
        """Made by indexing a client; None follows the engines. `errors` is as for `connect` and may be set
        later."""
        super().__init__(client, errors, options)
        self._targets = None if targets is None else list(targets)

    @property
    def targets(self) -> list[int]:
        """Ids of the engines, in the order of answers.

        May be set to anything that selects engines of a client: ids, a slice, an id, or "all" for whichever
        there are at the time of each call. Raises as `client[...]`.
        """
        return self._client.ids if self._targets is None else list(self._targets)

    @targets.setter
    def targets(self, targets: SupportsIndex | slice | Sequence[int] | Literal["all"]) -> None:
        chosen = self._client[targets]
        self._targets = [chosen.engine_id] if isinstance(chosen, EngineView) else chosen._targets

    @overload
    def execute(
        self,
        code: str,
        *,
        block: Literal[True] | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> list[ExecuteResult]: ...
    @overload
    def execute(
        self,
        code: str,
        *,
        block: Literal[False],
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> Group[ExecuteResult]: ...
    def execute(
        self,
        code: str,
        *,
        block: bool | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> list[ExecuteResult] | Group[ExecuteResult]:
        """See `EngineView.execute`; the answers are in target order."""
        usual = self._in_force()._options
        options = usual.but(timeout=timeout, grace=grace, interrupt_only=interrupt_only)
        return self._do(_calls.execute(code), block, options)

    @overload
    def apply(  # the engine awaits what a coroutine function returns
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        block: Literal[True] | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        **kwargs: Any,
    ) -> list[T]: ...
    @overload
    def apply(
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        block: Literal[False],
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        **kwargs: Any,
    ) -> Group[T]: ...
    @overload
    def apply(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        block: Literal[True] | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        **kwargs: Any,
    ) -> list[T]: ...
    @overload
    def apply(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        block: Literal[False],
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        **kwargs: Any,
    ) -> Group[T]: ...
    @overload
    def apply(
        self,
        function: str,
        /,
        *args: Any,
        block: Literal[True] | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        **kwargs: Any,
    ) -> list[Any]: ...
    @overload
    def apply(
        self,
        function: str,
        /,
        *args: Any,
        block: Literal[False],
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        **kwargs: Any,
    ) -> Group[Any]: ...
    def apply(
        self,
        function: Callable[..., T] | str,
        /,
        *args: Any,
        block: bool | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function with the same arguments on every engine; see `EngineView.apply`."""
        usual = self._in_force()._options
        options = usual.but(timeout=timeout, grace=grace, interrupt_only=interrupt_only)
        if options is not usual:
            _calls.check_reserved(function, timeout=timeout, grace=grace, interrupt_only=interrupt_only)
        return self._do(_calls.apply(function, args, kwargs), block, options)

    @overload
    def run(
        self,
        path: str | os.PathLike[str],
        *,
        block: Literal[True] | None = None,
        timeout: float | None = None,
    ) -> list[ExecuteResult]: ...
    @overload
    def run(
        self, path: str | os.PathLike[str], *, block: Literal[False], timeout: float | None = None
    ) -> Group[ExecuteResult]: ...
    def run(
        self, path: str | os.PathLike[str], *, block: bool | None = None, timeout: float | None = None
    ) -> list[ExecuteResult] | Group[ExecuteResult]:
        """See `EngineView.run`; the answers are in target order."""
        options = self._in_force()._options.but(timeout=timeout)
        return self._do(_calls.execute(_sources.read(path)), block, options)

    @overload
    def remote(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> RemoteFunction[P, list[T]]: ...
    @overload
    def remote(self, function: Callable[P, T], /) -> RemoteFunction[P, list[T]]: ...
    @overload
    def remote(
        self, /, *, block: bool | None = None, timeout: float | None = None
    ) -> Callable[[Callable[P, T]], RemoteFunction[P, list[T]]]: ...
    def remote(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        block: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """See `EngineView.remote`; a call returns a list of answers, in target order."""
        view = self if block is None and timeout is None else self.options(block=block, timeout=timeout)
        if function is None:
            return lambda function: RemoteFunction(view, function)
        return RemoteFunction(view, function)

    def sync_imports(self) -> SyncImports:
        """See `EngineView.sync_imports`."""
        return SyncImports(self, sys._getframe(1))

    @overload
    def push(self, namespace: Mapping[str, object], *, block: Literal[True] | None = None) -> list[None]: ...
    @overload
    def push(self, namespace: Mapping[str, object], *, block: Literal[False]) -> Group[None]: ...
    def push(self, namespace: Mapping[str, object], *, block: bool | None = None) -> list[None] | Group[None]:
        """See `EngineView.push`; the answers are in target order."""
        return self._do(_calls.push(namespace), block)

    @overload
    def pull(self, keys: str, *, block: Literal[True] | None = None) -> list[Any]: ...
    @overload
    def pull(self, keys: str, *, block: Literal[False]) -> Group[Any]: ...
    @overload
    def pull(self, keys: Sequence[str], *, block: Literal[True] | None = None) -> list[list[Any]]: ...
    @overload
    def pull(self, keys: Sequence[str], *, block: Literal[False]) -> Group[list[Any]]: ...
    def pull(self, keys: str | Sequence[str], *, block: bool | None = None) -> Any:
        """Return from every engine what `EngineView.pull` returns."""
        return self._do(_calls.pull(keys), block)

    @overload
    def push_function(
        self, namespace: Mapping[str, Callable[..., object]], *, block: Literal[True] | None = None
    ) -> list[None]: ...
    @overload
    def push_function(
        self, namespace: Mapping[str, Callable[..., object]], *, block: Literal[False]
    ) -> Group[None]: ...
    def push_function(
        self, namespace: Mapping[str, Callable[..., object]], *, block: bool | None = None
    ) -> list[None] | Group[None]:
        """See `EngineView.push_function`; the answers are in target order."""
        return self._do(_calls.push_function(namespace), block)

    @overload
    def pull_function(self, keys: str, *, block: Literal[True] | None = None) -> list[Callable[..., Any]]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_function(self, keys: str, *, block: Literal[False]) -> Group[Callable[..., Any]]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_function(
        self, keys: Sequence[str], *, block: Literal[True] | None = None
    ) -> list[list[Callable[..., Any]]]: ...
    @overload
    def pull_function(
        self, keys: Sequence[str], *, block: Literal[False]
    ) -> Group[list[Callable[..., Any]]]: ...
    def pull_function(self, keys: str | Sequence[str], *, block: bool | None = None) -> Any:
        """Return from every engine what `EngineView.pull_function` returns."""
        return self._do(_calls.pull_function(keys), block)

    @overload
    def push_serialized(
        self, namespace: Mapping[str, object], *, block: Literal[True] | None = None
    ) -> list[None]: ...
    @overload
    def push_serialized(self, namespace: Mapping[str, object], *, block: Literal[False]) -> Group[None]: ...
    def push_serialized(
        self, namespace: Mapping[str, object], *, block: bool | None = None
    ) -> list[None] | Group[None]:
        """See `EngineView.push_serialized`; the answers are in target order."""
        return self._do(_calls.push_serialized(namespace), block)

    @overload
    def pull_serialized(self, keys: str, *, block: Literal[True] | None = None) -> list[Serialized]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_serialized(self, keys: str, *, block: Literal[False]) -> Group[Serialized]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_serialized(
        self, keys: Sequence[str], *, block: Literal[True] | None = None
    ) -> list[list[Serialized]]: ...
    @overload
    def pull_serialized(self, keys: Sequence[str], *, block: Literal[False]) -> Group[list[Serialized]]: ...
    def pull_serialized(self, keys: str | Sequence[str], *, block: bool | None = None) -> Any:
        """Return from every engine what `EngineView.pull_serialized` returns."""
        return self._do(_calls.pull_serialized(keys), block)

    @overload
    def get_result(
        self, number: int | None = None, *, block: Literal[True] | None = None
    ) -> list[ExecuteResult]: ...
    @overload
    def get_result(self, number: int | None = None, *, block: Literal[False]) -> Group[ExecuteResult]: ...
    def get_result(
        self, number: int | None = None, *, block: bool | None = None
    ) -> list[ExecuteResult] | Group[ExecuteResult]:
        """See `EngineView.get_result`; the answers are in target order."""
        return self._do(_calls.get_result(number), block)

    @overload
    def keys(self, *, block: Literal[True] | None = None) -> list[list[str]]: ...
    @overload
    def keys(self, *, block: Literal[False]) -> Group[list[str]]: ...
    def keys(self, *, block: bool | None = None) -> list[list[str]] | Group[list[str]]:
        """See `EngineView.keys`; the answers are in target order."""
        return self._do(_calls.keys(), block)

    @overload
    def reset(self, *, block: Literal[True] | None = None) -> list[None]: ...
    @overload
    def reset(self, *, block: Literal[False]) -> Group[None]: ...
    def reset(self, *, block: bool | None = None) -> list[None] | Group[None]:
        """See `EngineView.reset`; the answers are in target order."""
        return self._do(_calls.reset(), block)

    @overload
    def kill(self, *, block: Literal[True] | None = None) -> None: ...
    @overload
    def kill(self, *, block: Literal[False]) -> Group[None]: ...
    def kill(self, *, block: bool | None = None) -> Group[None] | None:
        """Clear the queues and stop the engines for good. Losing them on the way is success.

        With `block` this returns when they are no longer among the client's `ids`.
        """
        return self._kill(block)

    @overload
    def interrupt(
        self, operation_id: str | None = None, *, block: Literal[True] | None = None
    ) -> list[str | None]: ...
    @overload
    def interrupt(self, operation_id: str | None = None, *, block: Literal[False]) -> Group[str | None]: ...
    def interrupt(
        self, operation_id: str | None = None, *, block: bool | None = None
    ) -> list[str | None] | Group[str | None]:
        """See `EngineView.interrupt`; the answers are in target order."""
        return self._do(_calls.interrupt(operation_id), block)

    @overload
    def queue_status(self, *, block: Literal[True] | None = None) -> list[QueueStatus]: ...
    @overload
    def queue_status(self, *, block: Literal[False]) -> Group[QueueStatus]: ...
    def queue_status(self, *, block: bool | None = None) -> list[QueueStatus] | Group[QueueStatus]:
        """See `EngineView.queue_status`; the answers are in target order."""
        return self._do(_calls.queue_status(), block)

    @overload
    def clear_queue(self, *, block: Literal[True] | None = None) -> list[int]: ...
    @overload
    def clear_queue(self, *, block: Literal[False]) -> Group[int]: ...
    def clear_queue(self, *, block: bool | None = None) -> list[int] | Group[int]:
        """See `EngineView.clear_queue`; the answers are in target order."""
        return self._do(_calls.clear_queue(), block)

    def executor(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> ClusterExecutor:
        """Return these engines as a `concurrent.futures.Executor`; each call goes to the one that has fewest.

        Parameters as of `Client.executor`, whose calls are tasks. These are calls of the view: functions of the
        caller's `__main__` have the engine's namespace as their globals.
        """
        return ClusterExecutor(on_engines(self), lambda: len(self), max_workers, initializer, initargs)

    def __getitem__(self, key: str) -> list[Any]:
        """Pull one name from every engine, and wait for it whatever `block` is."""
        return self.pull(key, block=True)

    def __setitem__(self, key: str, value: object) -> None:
        """Push one name to every engine, and wait for it whatever `block` is."""
        self.push({key: value}, block=True)

    def __len__(self) -> int:
        """Return how many engines there are in it."""
        return len(self.targets)

    def __iter__(self) -> Iterator[EngineView]:
        """Iterate over a view of each engine, in target order."""
        return iter([self._one(engine_id) for engine_id in self.targets])

    def _one(self, engine_id: int) -> EngineView:
        """Return a view of one of the engines, with the settings of this one."""
        now = self._in_force()
        view = EngineView(self._client, engine_id, now.errors, now._options)
        view._block = now._block
        return view

    __contains__ = None  # names, or engines? `in` would look through the engines for either

    def __bool__(self) -> bool:
        """Return True: a view is something even while it has no engines."""
        return True

    def __repr__(self) -> str:
        """Show the engines."""
        follows = "all: " if self._targets is None else ""
        return f"<EnginesView {follows}{self.targets} of {self._client!r}>"

    def _some(self) -> list[int]:
        targets = self.targets
        if not targets:
            raise NoEnginesRegistered("no engine is registered: start one with `enginery engine`")
        return targets

    def _copy(self) -> EnginesView:
        return EnginesView(self._client, self._targets, self.errors)

    def _do(
        self, request: _calls.Request[T], block: bool | None, options: Options | None = None
    ) -> list[T] | Group[T]:
        now = self._in_force()
        request.options = now._options if options is None else options
        waits = _options.waits(block, now.block)
        if not waits:
            request.own_uploads()
        operations = self._client._start(request, self._some(), now.errors)
        if not waits:
            return Group(operations)
        wait_for(operations)
        return gather(operations)

    def _kill(self, block: bool | None) -> Group[None] | None:
        now = self._in_force()
        targets = self._some()
        kernels = self._client._kernels(targets)
        operations = self._client._start(_calls.kill(), targets, now.errors)
        if not _options.waits(block, now.block):
            return Group(operations)
        gather(operations)
        self._client._wait_until_gone(kernels)
        return None
