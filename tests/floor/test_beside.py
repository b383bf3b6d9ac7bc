"""Use of pieces beside the loop: in order, and over when it is left."""

from __future__ import annotations

import asyncio
import threading

import pytest

from enginery._beside import WORTH, Behind
from enginery._pieces import Piece


def piece(offset: int) -> Piece:
    return Piece(offset, None, b"")


@pytest.mark.parametrize(("size", "is_beside"), [(WORTH - 1, False), (WORTH, True)], ids=["small", "large"])
async def test_pieces_are_used_in_order(size: int, *, is_beside: bool) -> None:
    """In a thread if they are worth it."""
    threads: set[threading.Thread] = set()
    used: list[int] = []

    def use(piece: Piece) -> None:
        threads.add(threading.current_thread())
        used.append(piece.offset)

    async with Behind(use, size) as behind:
        for offset in range(5):
            await behind.put(piece(offset))
    assert used == list(range(5))
    assert (threading.current_thread() not in threads) == is_beside


@pytest.mark.parametrize(
    ("offsets", "raised"),
    [((0, 1, 0), ValueError), ((0, 1), ValueError), ((1, None), KeyError)],
    ids=["by the put of the next", "at the end", "an error of the caller's own comes first"],
)
async def test_what_the_use_of_a_piece_raises_is_raised(
    offsets: tuple[int | None, ...], raised: type[Exception]
) -> None:
    """By the put of the next, or at the end if there is none."""

    def use(piece: Piece) -> None:
        if piece.offset:
            raise ValueError

    async def put() -> None:
        async with Behind(use, WORTH) as behind:
            for offset in offsets:
                if offset is None:
                    raise KeyError
                await behind.put(piece(offset))

    with pytest.raises(raised):
        await put()


async def test_nothing_is_used_any_more_when_it_is_left() -> None:
    """Though it is cancelled, and again while it waits for that: what pieces are put into may go then."""
    go, running = threading.Event(), threading.Event()
    over: list[int] = []

    def use(piece: Piece) -> None:
        running.set()
        go.wait(10)
        over.append(piece.offset)

    async def write() -> None:
        async with Behind(use, WORTH) as behind:
            await behind.put(piece(7))
            await behind.put(piece(8))

    task = asyncio.create_task(write())
    await asyncio.to_thread(running.wait, 10)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over == [7]
