"""How many calls an executor has with the engines at a time."""

from __future__ import annotations

import heapq

import pytest

from enginery._feeder import FEWEST_AHEAD, MOST_AHEAD, Window


def run(window: Window, count: int, *, way: float, run_time: float) -> tuple[float, int]:
    """Let one engine that is so far away run calls; return how long that took, and the most that were there."""
    now = free_at = 0.0
    sent: list[tuple[float, float]] = []  # when each is back, and when it was sent
    most, left = 0, count
    while left or sent:
        for _ in range(min(left, max(0, window.room(len(sent))))):
            free_at = max(free_at, now + way / 2) + run_time
            heapq.heappush(sent, (free_at + way / 2, now))
            left -= 1
        most = max(most, len(sent))
        now, sent_at = heapq.heappop(sent)
        window.ended(now - sent_at, run_time)
    return now, most


@pytest.mark.parametrize("way", [0.001, 0.2, 0.6])
def test_short_calls_do_not_wait_for_the_way(way: float) -> None:
    """However long it is: after some trips as many are on their way as there may be."""
    seconds, most = run(Window(None, lambda: 1), 400, way=way, run_time=0.0005)
    assert most == MOST_AHEAD
    assert seconds < 16 * way + 400 * 0.0005


@pytest.mark.parametrize("way", [0.001, 0.2])
def test_long_calls_stay_where_they_can_be_cancelled(way: float) -> None:
    """One runs, and one is there when it ends."""
    seconds, most = run(Window(None, lambda: 1), 20, way=way, run_time=1.0)
    assert most == FEWEST_AHEAD
    assert seconds < 20 * 1.0 + way + 0.001


def test_what_was_told_counts() -> None:
    """The number of workers, if it was given."""
    assert run(Window(3, lambda: 1), 20, way=0.2, run_time=0.001)[1] == 3
