"""One cluster for all tests of this folder. Its engines sleep five times as fast as they are told."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import enginery

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEED = 5
"""How much faster: CPython's tests pass `time.sleep` to workers, and would take half a minute."""
DEBIAN = "/usr/lib/python{}.{}/test".format(*sys.version_info)
"""Where Debian's package has Python's own tests (libpython3.11-testsuite), for builds that come without."""
HAS_MORE_TESTS = Path(DEBIAN).is_dir() and importlib.util.find_spec("test") is not None
_TESTS = f"import test; test.__path__.append({DEBIAN!r})" if HAS_MORE_TESTS else "pass"
_FASTER = f"""
import functools, time
if not isinstance(time.sleep, functools.partial):
    time.sleep = functools.partial(lambda sleep, seconds: sleep(seconds / {SPEED}), time.sleep)
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(2, exec_lines=[_FASTER, _TESTS]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def client(cluster: enginery.Cluster) -> enginery.Client:
    return cluster.client
