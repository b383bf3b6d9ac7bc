"""What lines of output are final, and which may still change."""

from __future__ import annotations

import pytest

from enginery._screen import MAX_CHANGING, Screen


def test_full_lines_are_final_at_once() -> None:
    """Output without bars is passed on line by line, the last one when it ends."""
    screen = Screen()
    screen.write("one\ntwo\nthr")
    assert screen.take(rested=False) == (["one", "two"], False)
    assert screen.changing == ["thr"]
    screen.write("ee\n\n")
    assert screen.take(rested=False) == (["three", ""], False)
    assert screen.end() == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_bar_is_its_last_state(size: int) -> None:
    """A line that is written again and again is one line, wherever the pieces of output end."""
    screen = Screen()
    text = "start\n" + "".join(f"\r{done}%" for done in range(0, 101, 25)) + "\nafter\r\n"
    lines: list[str] = []
    for begin in range(0, len(text), size):
        screen.write(text[begin : begin + size])
        lines += screen.take(rested=False)[0]
    lines += screen.take()[0] + screen.end()
    assert lines == ["start", "100%", "after"]


def test_nested_bars_stay_until_they_rest() -> None:
    """Bars below others go down and up again: nothing of them is final before the cursor stays below it."""
    screen = Screen()
    screen.write("\router 0%")
    for done in (0, 50, 100):
        screen.write(f"\n\rinner {done}%")
        assert screen.take(rested=False) == ([], True)
        screen.write("\x1b[A")
    assert screen.changing == ["outer 0%", "inner 100%"]
    screen.write("\n\r          \r\x1b[A\router 100%\n")
    assert screen.take() == (["outer 100%"], True)
    assert screen.end() == []


def test_lines_that_may_change_are_bounded() -> None:
    """Bars without end are final from the top once there are too many."""
    screen = Screen()
    for number in range(1000):
        screen.write(f"\r{number}\n")
        screen.take(rested=False)
    assert len(screen.changing) <= MAX_CHANGING
