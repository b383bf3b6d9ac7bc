"""Operations as they are done, whichever is first."""

from __future__ import annotations

import asyncio
import queue
import time
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from enginery import _loop, _waker

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from enginery.operation import Operation

T = TypeVar("T")


class AsCompleted(Generic[T]):
    """An iterator over operations in the order in which they end, for `for` and `async for`.

    Its length is how many there are in all, so a `tqdm` around it knows its end. With a timeout, TimeoutError
    that many seconds after it was made.
    """

    def __init__(self, operations: Iterable[Operation[T]] = (), timeout: float | None = None) -> None:
        """Made by `Group.as_completed`."""
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        self._done: queue.SimpleQueue[Operation[T]] = queue.SimpleQueue()
        self._waiter: tuple[_waker.Waker, asyncio.Future[None]] | None = None
        self._count = 0
        self._left = 0
        for operation in operations:
            self.add(operation)

    def add(self, operation: Operation[T]) -> None:
        """Wait for one more."""
        self._count += 1
        self._left += 1
        operation.add_done_callback(self._one_done)

    def _one_done(self, operation: Future[T]) -> None:
        self._done.put(operation)  # type: ignore[arg-type]  # it is the one that was added
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            waiter[0].wake(waiter[1])

    @property
    def left(self) -> int:
        """How many it has not given out yet."""
        return self._left

    def __len__(self) -> int:
        """Return how many there are in all."""
        return self._count

    def __bool__(self) -> bool:
        """Return True, as iterators do."""
        return True

    def __iter__(self) -> Self:
        """Return the iterator itself."""
        return self

    def __next__(self) -> Operation[T]:
        """Return the next one that is done; waits."""
        if not self._left:
            raise StopIteration
        if self._done.empty():
            _loop.check_wait()
        remaining = None if self._until is None else max(0.0, self._until - time.monotonic())
        try:
            operation = self._done.get(timeout=remaining)
        except queue.Empty:
            raise self._too_late() from None
        self._left -= 1
        return operation

    def __aiter__(self) -> Self:
        """Return the iterator itself."""
        return self

    async def __anext__(self) -> Operation[T]:
        """Return the next one that is done."""
        if not self._left:
            raise StopAsyncIteration
        while True:
            waiter = asyncio.get_running_loop().create_future()
            self._waiter = (_waker.of_running_loop(), waiter)
            try:
                operation = self._done.get_nowait()
            except queue.Empty:
                await self._until_woken(waiter)
            else:
                self._waiter = None
                self._left -= 1
                return operation

    async def _until_woken(self, waiter: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(None if self._until is None else self._until - time.monotonic()):
                await waiter
        except TimeoutError:
            raise self._too_late() from None

    def _too_late(self) -> TimeoutError:
        return TimeoutError(f"{self._left} of {self._count} operations are not done after {self._timeout:g} s")

    def __repr__(self) -> str:
        """Show how many are left."""
        return f"<AsCompleted: {self._left} of {self._count} left>"
