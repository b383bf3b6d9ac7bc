"""How a map learns how many items make a task."""

from __future__ import annotations

from enginery._chunk_size import AIM, LARGEST, ChunkSize


def test_a_given_size_stays() -> None:
    """Whatever the items take."""
    size = ChunkSize(7)
    size.ran(7, 100.0)
    size.weighed(7, 1 << 30)
    assert size.next(4, 1) == 7
    assert size.is_fixed


def test_calls_that_are_over_at_once_are_put_together() -> None:
    """Step by step, up to a bound; those that take long stay alone."""
    quick, slow = ChunkSize(None), ChunkSize(None)
    assert quick.next(4, None) == slow.next(4, None) == 1
    sizes = []
    for _ in range(8):
        quick.ran(quick.next(4, None), quick.next(4, None) * 1e-6)
        sizes.append(quick.next(4, None))
        slow.ran(1, AIM)
    assert sizes[:3] == [4, 16, 64]
    assert sizes[-1] == LARGEST
    assert slow.next(4, None) == 1


def test_items_that_become_slower_make_smaller_chunks() -> None:
    """At once: nobody is to wait for a chunk that takes long."""
    size = ChunkSize(None)
    for _ in range(6):
        size.ran(1000, 1e-3)
    assert size.next(4, None) > 100
    size.ran(100, 10.0)
    assert size.next(4, None) == 1


def test_a_chunk_leaves_something_for_the_others() -> None:
    """The end of finite iterables is divided among the engines."""
    size = ChunkSize(None)
    for _ in range(8):
        size.ran(1000, 1e-3)
    assert size.next(4, 1600) == 100
    assert size.next(4, 3) == 1


def test_large_items_make_small_chunks() -> None:
    """A chunk's arguments, and its values, are to fit into a message."""
    size = ChunkSize(None)
    for _ in range(8):
        size.ran(1000, 1e-3)
    size.weighed(1, 64 << 10)
    assert size.next(4, None) == 4
    size.weighed(1, 1 << 20)
    assert size.next(4, None) == 1
    for _ in range(100):
        size.weighed(1, 64)
    assert size.next(4, None) > 100
