"""The answers of many calls: Group."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast, overload

from enginery import _rendered
from enginery._completed import AsCompleted
from enginery._late import Late
from enginery._methods import ANY_ENGINE
from enginery.errors import CompositeError
from enginery.listing import listed
from enginery.operation import Operation, stop_patiently

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

T = TypeVar("T")

ALL_COMPLETED = concurrent.futures.ALL_COMPLETED
FIRST_COMPLETED = concurrent.futures.FIRST_COMPLETED
FIRST_EXCEPTION = concurrent.futures.FIRST_EXCEPTION

_MANY = 16  # engines that a group names when it is shown


class Progress(NamedTuple):
    """How far many calls are."""

    done: int
    """How many have ended, in whatever way."""
    total: int

    @property
    def fraction(self) -> float:
        """From 0 to 1; 1 if there are none."""
        return self.done / self.total if self.total else 1.0

    def __str__(self) -> str:
        """Show it as `3/8`."""
        return f"{self.done}/{self.total}"


class DoneAndNotDone(NamedTuple):
    """What `Group.wait` returns, as `concurrent.futures.wait` has it."""

    done: set[Operation[Any]]
    not_done: set[Operation[Any]]


class Group(Late[list[T]], Generic[T]):
    """Several operations, and a future of the list of their answers, in order.

    What calls over several engines return with `block=False`; `Group([client.submit(f, x) for x in xs])` makes
    one of any others of one client, and a group among them stands for its operations. `result()` and `await
    group` raise one CompositeError if any failed; each operation still has its own answer. It is a sequence
    too: `group[0]`, `len(group)`, `for operation in group` at once and in order; `as_completed()` and `async
    for operation in group` as they end.
    """

    def __init__(self, operations: Iterable[Operation[T] | Group[T]]) -> None:
        """Take operations, which may be done, and groups of them. TypeError if something else is among them."""
        super().__init__()
        self._operations = tuple(itertools.chain.from_iterable(map(_members, operations)))
        self._left = len(self._operations)
        self._counting = threading.Lock()
        for operation in self._operations:
            operation.add_done_callback(self._one_done)
        if not self._operations:
            self.set_result([])

    def _one_done(self, _: Future[T]) -> None:
        with self._counting:
            self._left -= 1
            last = self._left == 0
        if last:
            self.set_result([])

    @property
    def operations(self) -> tuple[Operation[T], ...]:
        """The operations, in order."""
        return self._operations

    @property
    def engine_ids(self) -> list[int]:
        """The engine of each, in order; -1 for a task that has not ended yet."""
        return [operation.engine_id for operation in self._operations]

    # ---- answers

    def get(self, timeout: float | None = None, *, return_exceptions: bool = False) -> list[T]:
        """Wait for the answers and return them in order, as `result`.

        With `return_exceptions`, what an operation raised stands in the place of its answer. TimeoutError after
        `timeout` seconds (default: none).
        """
        if not return_exceptions:
            return self.result(timeout)
        self._wait(timeout)
        errors = [operation.exception() for operation in self._operations]
        return [
            operation.result() if error is None else cast("T", error)
            for operation, error in zip(self._operations, errors, strict=True)
        ]

    def get_dict(self, timeout: float | None = None) -> dict[int, T]:
        """Wait for the answers and return them by engine; of several of one engine a ValueError."""
        answers = dict(zip(self.engine_ids, self.result(timeout), strict=True))
        if len(answers) < len(self):
            raise ValueError(f"{len(self)} operations ran on {len(answers)} engines: get() has all answers")
        return answers

    def partial(self) -> dict[int, T]:
        """Return the answers that are there, by position; what failed is left out. Does not wait."""
        return {
            position: operation.result()
            for position, operation in enumerate(self._operations)
            if operation.done() and not operation.has_failed and operation.exception() is None
        }

    def _decode(self) -> list[T]:
        return gather(self._operations)

    # ---- waiting

    def as_completed(self, timeout: float | None = None) -> AsCompleted[T]:
        """Return an iterator over the operations as they end, for `for`, `async for` and `tqdm`.

        With a timeout, TimeoutError that many seconds from now.
        """
        return AsCompleted(self._operations, timeout)

    def wait(self, timeout: float | None = None, return_when: str = ALL_COMPLETED) -> DoneAndNotDone:
        """Wait until all operations are done, or by `return_when` one is or one has failed; or for `timeout`
        seconds.

        Returns the sets of those that are done and those that are not, as `concurrent.futures.wait` does. It
        decodes nothing and raises nothing of theirs. ValueError for another `return_when`.
        """
        if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
            raise ValueError(
                f"return_when is ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION, not {return_when!r}"
            )
        try:
            for operation in self.as_completed(timeout):
                if return_when == FIRST_COMPLETED or (return_when == FIRST_EXCEPTION and operation.has_failed):
                    break
        except TimeoutError:
            pass  # what is done by now is the answer
        done = {operation for operation in self._operations if operation.done()}
        return DoneAndNotDone(done, set(self._operations) - done)

    def wait_interactive(self, timeout: float | None = None, *, show: bool | None = None) -> bool:
        """Wait until all operations are done, and show how far they are; return whether they are.

        On a terminal that is a bar on standard error, in a notebook a bar below the cell, elsewhere nothing;
        `show` says yes or no to it. After `timeout` seconds, and on Ctrl-C, the waiting ends, the operations go
        on.
        """
        from enginery import _progress

        return _progress.wait(self, timeout, show)

    @property
    def progress(self) -> Progress:
        """How many are done, and how many there are."""
        return Progress(len(self) - self._left, len(self))

    # ---- times, in seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the first was submitted, until the last was answered; until now if any is not."""
        if not self._operations:
            return 0.0
        ends = [operation._ended_at for operation in self._operations]
        known = [end for end in ends if end is not None]
        end = max(known) if len(known) == len(ends) else time.monotonic()
        return end - min(operation._submitted_at for operation in self._operations)

    @property
    def wall_time(self) -> float:
        """The same as `elapsed`: what the user waited."""
        return self.elapsed

    @property
    def serial_time(self) -> float:
        """Seconds that the code of all ran on engines, as if one after the other."""
        return sum(operation.duration or 0.0 for operation in self._operations)

    @property
    def speedup(self) -> float:
        """How many times faster it was than one after the other: `serial_time` by `wall_time`."""
        elapsed = self.elapsed
        return self.serial_time / elapsed if elapsed else 0.0

    # ---- the end

    def cancel(self, grace: float | None = None, interrupt_only: bool | None = None) -> bool:
        """Stop all that are not done, as `Operation.cancel`; return whether any of them stops."""
        return bool(self._operations) and stop_patiently(self._operations, grace, interrupt_only)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._operations)

    def __bool__(self) -> bool:
        """Return True: futures are."""
        return True

    def __iter__(self) -> Iterator[Operation[T]]:
        """Iterate over the operations in order, done or not."""
        return iter(self._operations)

    def __aiter__(self) -> AsCompleted[T]:
        """Iterate over the operations as they end."""
        return self.as_completed()

    @overload
    def __getitem__(self, index: int) -> Operation[T]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Operation[T], ...]: ...
    def __getitem__(self, index: int | slice) -> Operation[T] | tuple[Operation[T], ...]:
        """Return the operation at a position."""
        return self._operations[index]

    def __repr__(self) -> str:
        """Show method, engines and how many are done."""
        done = sum(operation.done() for operation in self._operations)
        methods = "/".join(sorted({operation.method for operation in self._operations}))
        if any(operation.target == ANY_ENGINE for operation in self._operations):
            return f"<Group of {methods} tasks: {done} of {len(self)} done>"
        engine_ids = list(dict.fromkeys(self.engine_ids))
        on = f"on engines {engine_ids}" if len(engine_ids) <= _MANY else f"on {len(engine_ids)} engines"
        return f"<Group {methods} {on}: {done} of {len(self)} done>"


def _members(one: Operation[T] | Group[T]) -> tuple[Operation[T], ...]:
    if isinstance(one, Group):
        return one.operations
    if not isinstance(one, Operation):
        raise TypeError(
            f"a group is of operations, as calls with block=False return, not of {type(one).__name__}"
        )
    return (one,)


def gather(operations: Sequence[Operation[T]]) -> list[T]:
    """Wait for every operation and return their answers in order; CompositeError if any failed."""
    errors = [error for operation in operations if (error := operation.exception()) is not None]
    if errors:
        _rendered.teach_ipython()
        method, count = operations[0].method, f"{len(errors)} of {len(operations)}"
        tasks = any(operation.target == ANY_ENGINE for operation in operations)
        raise CompositeError(
            f"{method} failed {f'in {count} tasks' if tasks else f'on {count} engines'}", errors
        )
    return listed([operation.result() for operation in operations])
