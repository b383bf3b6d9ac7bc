"""Output of any bytes as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enginery._output import as_text

_pieces = st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=4).map(str.encode)), max_size=6)


@given(_pieces.map(b"".join))
def test_any_bytes_show_as_python_shows_them(data: bytes) -> None:
    """The result is that of `backslashreplace`, only faster."""
    assert as_text(data) == data.decode(errors="backslashreplace")


def test_a_character_cut_in_two() -> None:
    """Where more is to come, half a character at the end is left out; within, it shows as bytes."""
    assert as_text("aé".encode()[:-1], final=False) == "a"
    assert as_text(b"\xff\xc3", final=False) == r"\xff"
    assert as_text(b"\xc3a", final=False) == r"\xc3a"
