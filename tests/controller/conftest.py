"""A controller in this process for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.controller.fakes import FakeCluster, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[FakeCluster]:
    """A cluster without engines, with a lease of two seconds."""
    async with running(tmp_path / "state", lease=2.0) as made:
        yield made
