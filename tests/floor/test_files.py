"""Private files."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from enginery._files import write_private

if TYPE_CHECKING:
    from pathlib import Path


def test_an_error_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    """Whoever reads it must learn which disk is full."""
    path = tmp_path / "client.json"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match=r"client\.json") as error:
            write_private(path, bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno is not None
    assert list(tmp_path.iterdir()) == []
