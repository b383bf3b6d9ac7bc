"""Calls that were started by an asyncio program: what is waited for by `await`, and blocks nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from enginery import _methods
from enginery.operation import CTRL_C_GRACE
from enginery.result import ExecuteResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator, Sequence

    from enginery.group import Group
    from enginery.operation import Operation
    from enginery.operations import EventStream, OperationInfo, OperationStatus
    from enginery.result import Display

T = TypeVar("T")

_WITH_RECORDS = frozenset({"execute", "get_result"})  # whose answers may leave something on the engine's host


class AsyncOperation(Generic[T]):
    """One call of an AsyncClient: `await` it for its answer, as often as you like.

    It was sent when it was made. A coroutine that is cancelled while it awaits one, by `asyncio.timeout` for
    example, stops it on its engine, as Ctrl-C stops a call that is waited for, and goes on when that is done,
    or after 2 seconds; `asyncio.shield` keeps it. `asyncio.gather`, `wait_for` and `as_completed` take it as
    they take a coroutine.
    """

    def __init__(self, operation: Operation[T]) -> None:
        """Made by the views of an AsyncClient."""
        self._operation = operation

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the answer and return it, or raise what went wrong. What is large is decoded in a thread."""
        operation = self._operation
        try:
            yield from operation.arrival()
        except asyncio.CancelledError:
            yield from _stop([operation]).__await__()
            raise
        if operation.is_large:
            return (yield from asyncio.to_thread(operation.result).__await__())
        answer = operation.result()
        if isinstance(answer, ExecuteResult) and answer.is_partial:
            yield from asyncio.to_thread(answer.fetch).__await__()
        return answer

    @property
    def operation(self) -> Operation[T]:
        """The same as a `concurrent.futures.Future`; its methods block."""
        return self._operation

    @property
    def engine_id(self) -> int:
        """The engine that was called."""
        return self._operation.engine_id

    @property
    def operation_id(self) -> str:
        """Names it everywhere; see `Operation.operation_id`."""
        return self._operation.operation_id

    @property
    def id(self) -> str:
        """The same as `operation_id`."""
        return self._operation.operation_id

    @property
    def method(self) -> str:
        """What was called, such as `execute`."""
        return self._operation.method

    def done(self) -> bool:
        """Return whether its answer is there, or what kept it from one."""
        return self._operation.done()

    @property
    def displays(self) -> list[Display]:
        """What it displayed; empty until it is done."""
        return self._operation.displays

    async def info(self) -> OperationInfo:
        """Ask how it stands; see `Operation.info`."""
        return await asyncio.to_thread(self._operation.info)

    async def status(self) -> OperationStatus:
        """Return how it stands; see `Operation.status`."""
        return await asyncio.to_thread(lambda: self._operation.status)

    async def stdout(self) -> str:
        """Return what it has written to standard output so far."""
        return await asyncio.to_thread(lambda: self._operation.stdout)

    async def stderr(self) -> str:
        """Return what it has written to standard error so far."""
        return await asyncio.to_thread(lambda: self._operation.stderr)

    def events(self, after: int = 0) -> EventStream:
        """Return what happened to it, and then each event as it happens: for `async for`."""
        return self._operation.events(after)

    async def cancel(self, grace: float | None = None, interrupt_only: bool | None = None) -> bool:
        """Stop it; see `Operation.cancel`."""
        return await asyncio.to_thread(self._operation.cancel, grace, interrupt_only)

    async def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in it once; return whether it was running."""
        return await asyncio.to_thread(self._operation.interrupt)

    async def release(self) -> None:
        """Let its engine forget its answer and output, and the journal too."""
        await asyncio.to_thread(self._operation.release)

    def __repr__(self) -> str:
        """Show engine, method and how it is."""
        return repr(self._operation).replace("<Operation", "<AsyncOperation", 1)


class AsyncGroup(Generic[T]):
    """One call of an AsyncClient on several engines: `await` it for the list of answers, in target order.

    One CompositeError if any engine failed; each operation still has its own answer. `async for` gives the
    operations as they are done, `for` in target order. Cancelled as an AsyncOperation.
    """

    def __init__(self, group: Group[T]) -> None:
        """Made by the views of an AsyncClient."""
        self._group = group
        self._operations = tuple(AsyncOperation(operation) for operation in group.operations)

    def __await__(self) -> Generator[Any, None, list[T]]:
        """Wait for every answer and return them; CompositeError if any failed."""
        operations = [one.operation for one in self._operations]
        try:
            yield from self._group.arrival()
        except asyncio.CancelledError:
            yield from _stop([operation for operation in operations if not operation.done()]).__await__()
            raise
        if any(operation.is_large for operation in operations):
            return (yield from asyncio.to_thread(self._group.result).__await__())
        answers = self._group.result()
        if operations[0].method in _WITH_RECORDS:
            for answer in answers:
                if isinstance(answer, ExecuteResult) and answer.is_partial:
                    yield from asyncio.to_thread(answer.fetch).__await__()
        return answers

    async def __aiter__(self) -> AsyncIterator[AsyncOperation[T]]:
        """Iterate over the operations as they are done; await each for its answer."""
        of = {one.operation: one for one in self._operations}
        async for operation in self._group.as_completed():
            yield of[operation]

    @property
    def group(self) -> Group[T]:
        """The same as a `concurrent.futures.Future`; its methods block."""
        return self._group

    @property
    def operations(self) -> tuple[AsyncOperation[T], ...]:
        """One for each engine, in target order."""
        return self._operations

    @property
    def engine_ids(self) -> list[int]:
        """The engines that were called, in target order."""
        return [one.engine_id for one in self._operations]

    def done(self) -> bool:
        """Return whether every engine has answered."""
        return self._group.done()

    async def cancel(self, grace: float | None = None, interrupt_only: bool | None = None) -> bool:
        """Stop it on every engine; return whether any of them stops. See `Operation.cancel`."""
        return await asyncio.to_thread(self._group.cancel, grace, interrupt_only)

    def __len__(self) -> int:
        """Return how many engines were called."""
        return len(self._operations)

    def __iter__(self) -> Iterator[AsyncOperation[T]]:
        """Iterate over the operations in target order."""
        return iter(self._operations)

    @overload
    def __getitem__(self, index: int) -> AsyncOperation[T]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[AsyncOperation[T], ...]: ...
    def __getitem__(self, index: int | slice) -> AsyncOperation[T] | tuple[AsyncOperation[T], ...]:
        """Return the operation at a position."""
        return self._operations[index]

    def __repr__(self) -> str:
        """Show method, engines and how many are done."""
        return repr(self._group).replace("<Group", "<AsyncGroup", 1)


async def _stop(operations: Sequence[Operation[Any]]) -> None:
    """Tell engines to stop what nobody waits for any more, and wait a little for it: what is called next must
    not be queued behind it, or it would be cleared with it.

    As Ctrl-C does it: no kernel is killed for it unless the call said `interrupt_only=False`.
    """
    going = [one for one in operations if one.request.method in _methods.OPERATIONS]
    if not going:
        return  # it is over soon
    interrupt_only = None if going[0].request.options.interrupt_only is False else True
    going[0]._link().cancelling.stop_soon(going, interrupt_only)
    ended = asyncio.create_task(_arrivals(going))
    try:
        await asyncio.wait({ended}, timeout=CTRL_C_GRACE)
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)


async def _arrivals(operations: Sequence[Operation[Any]]) -> None:
    for operation in operations:
        await _Arrival(operation)


class _Arrival:
    """Awaits that an operation is done, whatever came of it."""

    def __init__(self, operation: Operation[Any]) -> None:
        self._operation = operation

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._operation.arrival()
