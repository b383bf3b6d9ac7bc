"""Where engines can be started: what names a place, how places share engines, and what refuses to start any."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import enginery
from enginery import launchers
from enginery._connection_file import ConnectionInfo, write
from enginery.errors import ConnectionFileError, EngineryError
from enginery.launchers.dask import DaskLauncher, check_reachable
from enginery.launchers.dask_plugin import EnginesPlugin, Share, even
from enginery.launchers.launcher import HostEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from enginery.launchers.launcher import EngineSpec


@pytest.mark.parametrize(
    "on", ["dask", "dask://", "dask://here", "dask://:1", "dask://here:x", "ray://here:1", "tcp://here:1", ""]
)
def test_what_names_no_place(on: str) -> None:
    """It is refused where it is written, with what would be right."""
    with pytest.raises(ValueError, match="dask://HOST:PORT"):
        enginery.Cluster(1, on=on)


def test_what_names_a_place() -> None:
    """A URL, plain or for TLS; nothing is this machine; a launcher is itself; a note finds it again."""
    assert launchers.find(None) is None
    for on, address in (("dask://here:1", "tcp://here:1"), ("dask+tls://[::1]:2", "tls://[::1]:2")):
        found = launchers.find(on)
        assert isinstance(found, DaskLauncher)
        note = {"dask": address, "name": "enginery-x"}
        assert found.note() == {"dask": address, "name": ""}
        assert launchers.find(found) is found
        assert launchers.noted(note).note() == note


@given(st.integers(0, 50), st.integers(1, 8))
def test_an_even_share(n: int, count: int) -> None:
    """Those that are there have n together, none two more than another; a later one has the largest."""
    workers = {f"tcp://here:{port}": 3 for port in range(count)}
    share = even(n, workers)
    shares = [share.of(worker, 3) for worker in workers]
    assert sum(shares) == n
    assert max(shares) - min(shares) <= 1
    assert share.of("tcp://later:1", 3) == max(shares)
    assert [even(None, workers).of(worker, 3) for worker in [*workers, "tcp://later:1"]] == [3] * (count + 1)


def info(address: str) -> ConnectionInfo:
    return ConnectionInfo("engine", "c", address, "controller.c", "", "t" * 32, insecure=True)


def test_a_controller_that_workers_do_not_reach() -> None:
    """One on loopback is refused if a worker runs elsewhere, and the text says what to do."""
    check_reachable(info("127.0.0.1:1"), {"tcp://127.0.0.1:5": 1, "tcp://[::1]:5": 1, "tcp://localhost:5": 1})
    check_reachable(info("10.1.1.1:1"), {"tcp://203.0.113.7:5": 1})
    with pytest.raises(EngineryError, match=r"203\.0\.113\.7:5 does not reach.*--bind"):
        check_reachable(info("[::1]:1"), {"tcp://127.0.0.1:5": 1, "tcp://203.0.113.7:5": 1})


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_a_worker_that_cannot_read_the_file(tmp_path: Path) -> None:
    """It starts nothing, says why, and keeps no file; one that has no share does not even look."""
    worker: Any = SimpleNamespace(
        address="tcp://here:1", state=SimpleNamespace(nthreads=1), local_directory=str(tmp_path)
    )

    def plugin(share: int, connection: ConnectionInfo | None = None) -> EnginesPlugin:
        file = str(tmp_path / "engine.json")
        return EnginesPlugin(
            "x", Share(later=share), (), connection_file=file, connection=connection, grace=1.0
        )

    await plugin(0).setup(worker)
    refused = plugin(1)
    with pytest.raises(ConnectionFileError, match="is a controller running"):
        await refused.setup(worker)
    write(tmp_path / "engine.json", info("127.0.0.1:1"))
    (tmp_path / "engine.json").chmod(0o644)
    with pytest.raises(ConnectionFileError, match="can be read or changed by others"):
        await refused.setup(worker)
    await refused.teardown(worker)
    assert names(tmp_path) == ["engine.json"]
    assert "t" * 32 not in repr(plugin(1, info("127.0.0.1:1")))


def test_a_scheduler_that_is_gone() -> None:
    """To stop is an error that says so, in place of whatever Dask says."""

    def refuse(*_: object) -> None:
        raise RuntimeError("ConnectionPool is closed")

    launcher = DaskLauncher("tcp://here:1", name="enginery-x")
    gone: Any = SimpleNamespace(status="closed", unregister_worker_plugin=refuse, close=lambda timeout: None)
    launcher._client = gone
    with pytest.raises(EngineryError, match=r"stop engines: its scheduler at tcp://here:1 is there no"):
        launcher.stop(1.0)
    assert launcher._client is None


class Elsewhere:
    """A launcher that starts nothing, and says that its host has ended."""

    def __init__(self) -> None:
        self.told: list[HostEvent] = []
        self.stopped = 0

    def start(self, spec: EngineSpec, connection: Callable[[], ConnectionInfo]) -> int:
        assert connection().role == "engine"
        assert spec.connection_file.exists()
        self.told.append(HostEvent("ended", "host on the moon", "exit code 3", "\nno air"))
        return spec.n or 7

    def events(self) -> list[HostEvent]:
        return self.told

    def last_words(self) -> str:
        return ""

    def signal(self, number: int) -> None:
        raise NotImplementedError

    def stop(self, grace: float) -> None:
        self.stopped += 1
        raise EngineryError("the moon does not answer")

    def note(self) -> None:
        return None


def test_a_launcher_of_ones_own(tmp_path: Path) -> None:
    """A host that ends while the cluster starts fails the start; what it cannot stop keeps nothing up."""
    launcher = Elsewhere()
    cluster = enginery.Cluster(2, on=launcher, state_dir=tmp_path / "state")
    began = time.monotonic()
    with pytest.raises(
        EngineryError, match=r"engine host on the moon ended while it started \(exit code 3\)"
    ) as e:
        cluster.start()
    assert str(e.value).endswith("\nno air")
    assert e.value.__notes__ == ["then, the moon does not answer"]
    assert time.monotonic() - began < 10
    assert launcher.stopped == 1
    assert not enginery._state_dir.StateDirectory(tmp_path / "state").is_running()
