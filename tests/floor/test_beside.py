"""Work on pieces beside the loop: in order, one ahead, and over when it is left."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from enginery._beside import WORTH, Behind, ahead

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(("size", "is_beside"), [(WORTH - 1, False), (WORTH, True)], ids=["small", "large"])
async def test_pieces_are_made_and_used_in_order(size: int, *, is_beside: bool) -> None:
    """In a thread if they are worth it; each but the first is made while the one before is used."""
    threads: set[threading.Thread] = set()
    made: list[int] = []
    used: list[int] = []

    def make() -> Iterator[int]:
        for number in range(5):
            threads.add(threading.current_thread())
            made.append(number)
            yield number

    def use(number: int) -> None:
        threads.add(threading.current_thread())
        used.append(number)

    async with Behind(use, size) as behind:
        async for number in ahead(make(), size):
            await behind.put(number)
    assert used == made == list(range(5))
    assert (threading.current_thread() not in threads) == is_beside


@pytest.mark.parametrize(
    ("pieces", "raised"),
    [((0, 1, 0), ValueError), ((0, 1), ValueError), ((1, None), KeyError)],
    ids=["by the put of the next", "at the end", "an error of the caller's own comes first"],
)
async def test_what_the_use_of_a_piece_raises_is_raised(
    pieces: tuple[int | None, ...], raised: type[Exception]
) -> None:
    """By the put of the next, or at the end if there is none."""

    def use(number: int) -> None:
        if number:
            raise ValueError

    async def put() -> None:
        async with Behind(use, WORTH) as behind:
            for piece in pieces:
                if piece is None:
                    raise KeyError
                await behind.put(piece)

    with pytest.raises(raised):
        await put()


async def test_what_making_a_piece_raises_is_raised() -> None:
    """When its turn comes."""

    def make() -> Iterator[int]:
        yield 0
        raise ValueError

    pieces = ahead(make(), WORTH)
    assert await anext(pieces) == 0
    with pytest.raises(ValueError):
        await anext(pieces)


async def test_nothing_runs_any_more_when_it_is_left() -> None:
    """Whether it is cancelled or closed early: what a piece is made of, or put into, may go then."""
    go, running = threading.Event(), threading.Event()
    over: list[str] = []

    def make() -> Iterator[int]:
        yield 0
        running.set()
        go.wait(10)
        over.append("made")
        yield 1

    async def read() -> None:
        async with aclosing(ahead(make(), WORTH)) as pieces:
            async for _ in pieces:
                await asyncio.to_thread(running.wait, 10)
                raise KeyError

    def use(_: int) -> None:
        running.set()
        go.wait(10)
        over.append("used")

    async def write() -> None:
        async with Behind(use, WORTH) as behind:
            await behind.put(0)
            await asyncio.sleep(10)

    for act, word in ((read, "made"), (write, "used")):
        go.clear()
        running.clear()
        task = asyncio.create_task(act())
        await asyncio.to_thread(running.wait, 10)
        task.cancel()
        asyncio.get_running_loop().call_later(0.02, go.set)
        with pytest.raises((KeyError, asyncio.CancelledError)):
            await task
        assert over[-1] == word
