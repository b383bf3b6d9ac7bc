"""Transfers that stand still."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from enginery._reasons import DeliveryError
from enginery._stall import LIMIT, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


class Loop:
    """A loop in which time passes when the test says so. It is the call, too."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.cancels = 0

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Loop:
        self.timers = [(self.now + delay, callback)]
        return self

    def cancel(self) -> None:
        """Of the timer while there is one, else of the call."""
        self.cancels += not self.timers
        self.timers.clear()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        while self.timers and self.timers[0][0] <= self.now:
            self.timers.pop()[1]()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def test_what_moves_is_not_given_up(loop: Loop) -> None:
    """However slow it is."""
    stall = Stall()
    with stall.ending(loop):  # type: ignore[arg-type]
        for _ in range(100):
            loop.wait(0.9 * LIMIT)
            stall.moved()
        assert loop.cancels == 0
    assert not loop.timers


def test_what_stands_still_is_ended(loop: Loop) -> None:
    """And it is told why, in the place of what the call says of it."""
    stall = Stall()
    ending = stall.ending(loop)  # type: ignore[arg-type]
    ending.__enter__()
    loop.wait(0.9 * LIMIT)
    stall.moved()
    loop.wait(0.9 * LIMIT)
    assert loop.cancels == 0
    loop.wait(0.1 * LIMIT)
    assert loop.cancels == 1
    with pytest.raises(DeliveryError, match="stood still for 150 s"):
        ending.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    assert not loop.timers


def test_another_failure_is_what_it_is(loop: Loop) -> None:
    """While something moves."""
    with pytest.raises(ValueError, match="other"), Stall().ending(loop):  # type: ignore[arg-type]
        raise ValueError("other")
    assert not loop.timers


async def test_what_is_asked_for_has_moved() -> None:
    """The messages of an upload are asked for as they are sent; what makes them ends with the call."""
    is_closed = False

    async def made() -> AsyncGenerator[int]:
        nonlocal is_closed
        try:
            for number in range(3):
                yield number
        finally:
            is_closed = True

    stall = Stall()
    stall._moved_at = 0.0
    messages = stall.noting(made())
    assert await anext(messages) == 0
    assert stall._moved_at > 0
    await messages.aclose()
    assert is_closed
