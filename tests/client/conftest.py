"""A scripted controller for each module, and a client of it for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import enginery
from tests.client.fake import FakeController

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeController]:
    controller = FakeController(tmp_path_factory.mktemp("state") / "client.json")
    yield controller
    controller.close()


@pytest.fixture
def client(controller: FakeController) -> Iterator[enginery.Client]:
    with enginery.connect(controller.path, timeout=5) as client:
        yield client
