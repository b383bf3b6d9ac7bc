"""Controller and engine host never unpickle: they do real work under a hook that would end them if they did."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import enginery
from tests.architecture.source import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

AUDITED = Path(__file__).parent / "audited"


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have every service that starts from here watched; return where they leave their marks."""
    monkeypatch.setenv("PYTHONPATH", f"{AUDITED}:{ROOT}")
    monkeypatch.setenv("ENGINERY_TEST_AUDIT", str(tmp_path))
    return tmp_path


@pytest.fixture
def cluster(watched: Path) -> Iterator[enginery.Cluster]:
    """Return a cluster whose services are watched."""
    with enginery.Cluster(2) as cluster:
        yield cluster


def test_the_hook_bites(watched: Path) -> None:
    """A watched process that unpickles dies at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.unpickles"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 99, done.stderr
    assert list(watched.iterdir())


def test_real_work_under_the_hook(watched: Path, cluster: enginery.Cluster) -> None:
    """Classes, functions, arrays, large values, properties and exceptions pass both services unread."""
    client = cluster.client
    one, everyone = client[0], client[:]
    everyone.push({"price": Decimal("1.5"), "array": np.arange(6).reshape(2, 3)})
    assert everyone.pull("price") == [Decimal("1.5")] * 2
    assert one.apply(lambda x, y: {x, y}, Decimal(1), y=Decimal(2)) == {Decimal(1), Decimal(2)}
    large = np.arange(3_000_000, dtype=np.float64)
    one["large"] = large
    assert np.array_equal(one["large"], large)
    one.push_function({"double": lambda x: 2 * x})
    assert one.pull_function("double")(4) == 8
    one.set_properties({"kind": Decimal(3)})
    assert one.get_properties() == {"kind": Decimal(3)}
    with pytest.raises(ZeroDivisionError):
        one.execute("import decimal; 1/0")
    assert one.get_result().error is not None
    one.execute("get_engine().properties['seen'] = decimal.Decimal(4)")
    assert one.get_properties("seen") == {"seen": Decimal(4)}
    with pytest.raises(enginery.KernelDied):
        one.execute("import os; os._exit(3)")
    assert one.execute("1+1").value == 2
    roles = sorted(path.name.rsplit("-", 1)[0] for path in watched.iterdir())
    assert roles == ["controller_service", "engine_service"]
