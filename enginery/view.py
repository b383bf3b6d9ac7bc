"""A view of one engine: its methods, each answer a single value."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from enginery import _calls, _options, _sources
from enginery._base_view import BaseView
from enginery._options import NO_OPTIONS, Options
from enginery._properties import PropertiesOfOne
from enginery._sources import SyncImports
from enginery.functions import RemoteFunction
from enginery.operation import wait_for

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from enginery._decode import Errors
    from enginery.client import Client
    from enginery.operation import Operation
    from enginery.result import ExecuteResult, QueueStatus
    from enginery.serialized import Serialized

P = ParamSpec("P")
T = TypeVar("T")


class EngineView(PropertiesOfOne, BaseView):
    """One engine: `client[0]`.

    Calls wait for their answer; with `block=False` they return an Operation at once. One that does not say goes
    by the attribute `block`. Calls on one engine run one at a time in the order in which they were made. One
    that fails clears what this client had queued behind it, which then fails with QueueCleared. Ctrl-C while a
    call is waited for interrupts the call on its engine, but does not kill the kernel for it unless the call
    said `interrupt_only=False`. If the connection breaks the call goes on, and so does the waiting, unless
    there is no controller for long: ControllerLost. If the engine is gone, InvalidEngineID or EngineLost; if
    its kernel died, KernelDied.
    """

    def __init__(self, client: Client, engine_id: int, errors: Errors, options: Options = NO_OPTIONS) -> None:
        """Made by indexing a client. `errors` is as for `connect` and may be set later."""
        super().__init__(client, errors, options)
        self._engine_id = engine_id

    @property
    def engine_id(self) -> int:
        """The engine's id."""
        return self._engine_id

    @property
    def id(self) -> int:
        """The same as `engine_id`."""
        return self._engine_id

    @property
    def targets(self) -> list[int]:
        """The engine's id in a list, as other views have it."""
        return [self._engine_id]

    @overload
    def execute(
        self,
        code: str,
        *,
        block: Literal[True] | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> ExecuteResult: ...
    @overload
    def execute(
        self,
        code: str,
        *,
        block: Literal[False],
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> Operation[ExecuteResult]: ...
    def execute(
        self,
        code: str,
        *,
        block: bool | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
    ) -> ExecuteResult | Operation[ExecuteResult]:
        """Run source in the namespace: any statements, top-level `await` included.

        A statement that raises ends the block; what it raised is raised here. Output and the last expression's
        value are in the result. After `timeout` seconds of running, by default never, it is stopped as by
        `Operation.cancel` with `grace` and `interrupt_only`: OperationTimedOut.
        """
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
    ) -> T: ...
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
    ) -> Operation[T]: ...
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
    ) -> T: ...
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
    ) -> Operation[T]: ...
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
    ) -> Any: ...
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
    ) -> Operation[Any]: ...
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
        """Call a function with arguments and return its value; a text names a callable of the engine.

        A function of the caller's `__main__` has the engine's namespace as its globals. What a coroutine
        function returns is awaited there. What it raises is raised here; what it prints is `stdout` of the
        Operation, so with `block=False`. SerializationError, before anything is sent, if the function or an
        argument cannot be pickled.

        `block`, `timeout`, `grace` and `interrupt_only`, as for `execute`, are not passed on. TypeError if one
        of the last three is given and the function has a parameter of that name.
        """
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
    ) -> ExecuteResult: ...
    @overload
    def run(
        self, path: str | os.PathLike[str], *, block: Literal[False], timeout: float | None = None
    ) -> Operation[ExecuteResult]: ...
    def run(
        self, path: str | os.PathLike[str], *, block: bool | None = None, timeout: float | None = None
    ) -> ExecuteResult | Operation[ExecuteResult]:
        """Run a Python file of this machine in the namespace, as `execute` its source, also for `timeout`.

        It is compiled here first: SyntaxError, or OSError if it cannot be read, before anything is sent.
        """
        options = self._in_force()._options.but(timeout=timeout)
        return self._do(_calls.execute(_sources.read(path)), block, options)

    @overload
    def remote(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> RemoteFunction[P, T]: ...
    @overload
    def remote(self, function: Callable[P, T], /) -> RemoteFunction[P, T]: ...
    @overload
    def remote(
        self, /, *, block: bool | None = None, timeout: float | None = None
    ) -> Callable[[Callable[P, T]], RemoteFunction[P, T]]: ...
    def remote(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        block: bool | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Make a function run on the engine when it is called here: `@view.remote`, or with settings
        `@view.remote(timeout=5, block=False)`, which are as for `options`.
        """
        view = self if block is None and timeout is None else self.options(block=block, timeout=timeout)
        if function is None:
            return lambda function: RemoteFunction(view, function)
        return RemoteFunction(view, function)

    def sync_imports(self) -> SyncImports:
        """Import on the engine what a block imports here: `with view.sync_imports(): import numpy as np`.

        Import statements of the block are carried out there when it ends, if nothing failed here. OSError if
        the block's source cannot be had, as in `python -c`.
        """
        return SyncImports(self, sys._getframe(1))

    @overload
    def push(self, namespace: Mapping[str, object], *, block: Literal[True] | None = None) -> None: ...
    @overload
    def push(self, namespace: Mapping[str, object], *, block: Literal[False]) -> Operation[None]: ...
    def push(self, namespace: Mapping[str, object], *, block: bool | None = None) -> Operation[None] | None:
        """Put a dictionary into the namespace: all of it or, if any part fails, nothing.

        SerializationError, before anything is sent, if a value cannot be pickled.
        """
        return self._do(_calls.push(namespace), block)

    @overload
    def pull(self, keys: str, *, block: Literal[True] | None = None) -> Any: ...
    @overload
    def pull(self, keys: str, *, block: Literal[False]) -> Operation[Any]: ...
    @overload
    def pull(self, keys: Sequence[str], *, block: Literal[True] | None = None) -> list[Any]: ...
    @overload
    def pull(self, keys: Sequence[str], *, block: Literal[False]) -> Operation[list[Any]]: ...
    def pull(self, keys: str | Sequence[str], *, block: bool | None = None) -> Any:
        """Return an object by name; for a sequence of names, a list in their order.

        NameError if any name is missing, TypeError if `keys` is neither.
        """
        return self._do(_calls.pull(keys), block)

    @overload
    def push_function(
        self, namespace: Mapping[str, Callable[..., object]], *, block: Literal[True] | None = None
    ) -> None: ...
    @overload
    def push_function(
        self, namespace: Mapping[str, Callable[..., object]], *, block: Literal[False]
    ) -> Operation[None]: ...
    def push_function(
        self, namespace: Mapping[str, Callable[..., object]], *, block: bool | None = None
    ) -> Operation[None] | None:
        """Put functions into the namespace, with the engine's namespace as their globals.

        TypeError if one is no function.
        """
        return self._do(_calls.push_function(namespace), block)

    @overload
    def pull_function(self, keys: str, *, block: Literal[True] | None = None) -> Callable[..., Any]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_function(self, keys: str, *, block: Literal[False]) -> Operation[Callable[..., Any]]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_function(
        self, keys: Sequence[str], *, block: Literal[True] | None = None
    ) -> list[Callable[..., Any]]: ...
    @overload
    def pull_function(
        self, keys: Sequence[str], *, block: Literal[False]
    ) -> Operation[list[Callable[..., Any]]]: ...
    def pull_function(self, keys: str | Sequence[str], *, block: bool | None = None) -> Any:
        """Return functions by name, as `pull`; what they captured comes along, other globals are `__main__`'s.

        NameError if a name is missing, TypeError if one is no function.
        """
        return self._do(_calls.pull_function(keys), block)

    @overload
    def push_serialized(
        self, namespace: Mapping[str, object], *, block: Literal[True] | None = None
    ) -> None: ...
    @overload
    def push_serialized(self, namespace: Mapping[str, object], *, block: Literal[False]) -> Operation[None]: ...
    def push_serialized(
        self, namespace: Mapping[str, object], *, block: bool | None = None
    ) -> Operation[None] | None:
        """Put values into the namespace that each travel in their own form: Serialized ones as they are, arrays
        as raw buffers, anything else as `serialize` has it.
        """
        return self._do(_calls.push_serialized(namespace), block)

    @overload
    def pull_serialized(self, keys: str, *, block: Literal[True] | None = None) -> Serialized: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_serialized(self, keys: str, *, block: Literal[False]) -> Operation[Serialized]: ...  # type: ignore[overload-overlap]  # a str goes first
    @overload
    def pull_serialized(
        self, keys: Sequence[str], *, block: Literal[True] | None = None
    ) -> list[Serialized]: ...
    @overload
    def pull_serialized(self, keys: Sequence[str], *, block: Literal[False]) -> Operation[list[Serialized]]: ...
    def pull_serialized(self, keys: str | Sequence[str], *, block: bool | None = None) -> Any:
        """Return values by name as Serialized, which nothing has decoded; otherwise as `pull`."""
        return self._do(_calls.pull_serialized(keys), block)

    @overload
    def get_result(self, number: int | None = None, *, block: Literal[True] | None = None) -> ExecuteResult: ...
    @overload
    def get_result(self, number: int | None = None, *, block: Literal[False]) -> Operation[ExecuteResult]: ...
    def get_result(
        self, number: int | None = None, *, block: bool | None = None
    ) -> ExecuteResult | Operation[ExecuteResult]:
        """Return the record of command `number`, by default the latest; failed ones hold their `error`.

        IndexError if there is none, or if it was released to make room. Answers while others run.
        """
        return self._do(_calls.get_result(number), block)

    @overload
    def keys(self, *, block: Literal[True] | None = None) -> list[str]: ...
    @overload
    def keys(self, *, block: Literal[False]) -> Operation[list[str]]: ...
    def keys(self, *, block: bool | None = None) -> list[str] | Operation[list[str]]:
        """Return the names that users put into the namespace, and `id` and `mpi`, sorted."""
        return self._do(_calls.keys(), block)

    @overload
    def reset(self, *, block: Literal[True] | None = None) -> None: ...
    @overload
    def reset(self, *, block: Literal[False]) -> Operation[None]: ...
    def reset(self, *, block: bool | None = None) -> Operation[None] | None:
        """Clear queue, namespace, history and properties, and number commands from 1 again. Modules stay
        loaded."""
        return self._do(_calls.reset(), block)

    @overload
    def kill(self, *, block: Literal[True] | None = None) -> None: ...
    @overload
    def kill(self, *, block: Literal[False]) -> Operation[None]: ...
    def kill(self, *, block: bool | None = None) -> Operation[None] | None:
        """Clear the queue and stop the engine for good. Losing it on the way is success.

        With `block` this returns when it is no longer among the client's `ids`.
        """
        return self._kill(block)

    @overload
    def interrupt(
        self, operation_id: str | None = None, *, block: Literal[True] | None = None
    ) -> str | None: ...
    @overload
    def interrupt(self, operation_id: str | None = None, *, block: Literal[False]) -> Operation[str | None]: ...
    def interrupt(
        self, operation_id: str | None = None, *, block: bool | None = None
    ) -> str | Operation[str | None] | None:
        """Raise KeyboardInterrupt in what runs, or only in `operation_id`; return the operation, None if none
        was hit.

        It does not wait for the operation to end.
        """
        return self._do(_calls.interrupt(operation_id), block)

    @overload
    def queue_status(self, *, block: Literal[True] | None = None) -> QueueStatus: ...
    @overload
    def queue_status(self, *, block: Literal[False]) -> Operation[QueueStatus]: ...
    def queue_status(self, *, block: bool | None = None) -> QueueStatus | Operation[QueueStatus]:
        """Return what runs (`pending`) and what waits (`queue`). Answers while others run."""
        return self._do(_calls.queue_status(), block)

    @overload
    def clear_queue(self, *, block: Literal[True] | None = None) -> int: ...
    @overload
    def clear_queue(self, *, block: Literal[False]) -> Operation[int]: ...
    def clear_queue(self, *, block: bool | None = None) -> int | Operation[int]:
        """Fail every waiting operation with QueueCleared and return how many; the running one goes on."""
        return self._do(_calls.clear_queue(), block)

    def __getitem__(self, key: str) -> Any:
        """Pull one name, and wait for it whatever `block` is."""
        return self.pull(key, block=True)

    def __setitem__(self, key: str, value: object) -> None:
        """Push one name, and wait for it whatever `block` is."""
        self.push({key: value}, block=True)

    __iter__ = None  # or Python would ask for the names 0, 1, 2, ...

    def __repr__(self) -> str:
        """Show the engine and whether it is there."""
        gone = "" if self._engine_id in self._client.ids else " (gone)"
        return f"<EngineView {self._engine_id}{gone} of {self._client!r}>"

    def _copy(self) -> EngineView:
        return EngineView(self._client, self._engine_id, self.errors)

    def _do(
        self, request: _calls.Request[T], block: bool | None, options: Options | None = None
    ) -> T | Operation[T]:
        now = self._in_force()
        request.options = now._options if options is None else options
        waits = _options.waits(block, now.block)
        if not waits:
            request.own_uploads()
        operation = self._client._start(request, [self._engine_id], now.errors)[0]
        if not waits:
            return operation
        wait_for((operation,))
        return operation.result()

    def _kill(self, block: bool | None) -> Operation[None] | None:
        now = self._in_force()
        kernels = self._client._kernels([self._engine_id])
        operation = self._client._start(_calls.kill(), [self._engine_id], now.errors)[0]
        if not _options.waits(block, now.block):
            return operation
        operation.result()
        self._client._wait_until_gone(kernels)
        return None
