"""One cluster for all tests of this folder. Its engines sleep five times as fast as they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import enginery

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEED = 5
"""How much faster: CPython's tests pass `time.sleep` to workers, and would take half a minute."""
_FASTER = f"""
import functools, time
if not isinstance(time.sleep, functools.partial):
    time.sleep = functools.partial(lambda sleep, seconds: sleep(seconds / {SPEED}), time.sleep)
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(2, exec_lines=[_FASTER]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def client(cluster: enginery.Cluster) -> enginery.Client:
    return cluster.client
