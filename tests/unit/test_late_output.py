"""Output of no operation: how much of it goes to the log."""

from __future__ import annotations

from engine_service.late_output import BYTES, LINES, LateOutput


def test_a_little_is_passed_on_as_lines() -> None:
    """Bytes that are no text are shown; nobody forges a line of the log by a carriage return."""
    late = LateOutput()
    assert late.take(b"a\nb\rc\xff\n\nd", 0.0) == (["a", "b", "c\\xff", "", "d"], 0)
    assert late.take(b"", 0.1) == ([], 0)


def test_a_flood_is_cut_and_told_of() -> None:
    """So many lines and bytes in each second; how much is missing is said with the next that is passed on."""
    late = LateOutput()
    lines, dropped = late.take(b"x\n" * 3 * LINES, 5.0)
    assert (lines, dropped) == (["x"] * LINES, 0)
    assert late.take(b"y\n", 5.5) == ([], 0)
    assert late.take(b"z\n", 6.1) == (["z"], 4 * LINES + 2)
    lines, dropped = late.take(b"w" * 3 * BYTES, 7.2)
    assert ([len(line) for line in lines], dropped) == ([BYTES], 0)
    assert late.take(b"v", 9.0) == (["v"], 2 * BYTES)
