"""Sizes as people write and read them."""

from __future__ import annotations

import pytest

from enginery import _sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1048576", 1 << 20),
        ("500M", 500 << 20),
        ("2G", 2 << 30),
        ("1.5g", 3 << 29),
        (" 2 GiB ", 2 << 30),
        ("4kb", 4096),
        ("7B", 7),
        ("1T", 1 << 40),
    ],
)
def test_what_people_write(text: str, size: int) -> None:
    """A number is bytes; K, M, G and T are powers of 1024, with or without what often follows them."""
    assert _sizes.parse(text) == size


@pytest.mark.parametrize("text", ["", "G", "0", "0.1", "-1", "2 GG", "1e9", "2P", "nan", "1_000", "٣"])
def test_what_is_no_size(text: str) -> None:
    """It is refused by name."""
    with pytest.raises(ValueError, match="is not"):
        _sizes.parse(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (48 << 20, "48 MiB"),
        ((1 << 30) - 1, "1 GiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_what_people_read(size: int, text: str) -> None:
    """Two digits where one would say too little, and no more."""
    assert _sizes.show(size) == text
