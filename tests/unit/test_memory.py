"""When an engine has too much memory."""

from __future__ import annotations

from engine_service.memory import MemoryWatch


def test_a_kernel_over_its_limit() -> None:
    """The kernel itself is over at the first measurement that says so, and its size is told."""
    watch = MemoryWatch(100)
    assert watch.observe(100) == 0
    assert watch.observe(101) == 101
    assert watch.observe(101, 300) == 101


def test_a_kernel_with_its_children() -> None:
    """With what it started it is over at the second measurement in a row: a fresh fork counts twice."""
    watch = MemoryWatch(100)
    assert watch.observe(60, 120) == 0
    assert watch.observe(60) == 0
    assert watch.observe(60, 60) == 0
    assert watch.observe(60, 120) == 0
    assert watch.observe(60) == 0
    assert watch.observe(60, 130) == 130
