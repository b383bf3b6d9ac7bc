"""Cluster: the same from Python."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import enginery
from enginery._state_dir import StateDirectory
from enginery.errors import EngineryError, SeveralClusters, StateDirectoryInUse

from .conftest import Shell, eventually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_runtime(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of this process live in the shell's runtime directory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shell.runtime))
    monkeypatch.delenv("ENGINERY_STATE_DIR", raising=False)


def test_it_takes_what_the_commands_take(shell: Shell, tmp_path: Path) -> None:
    """Each option arrives where it belongs; nothing is left at the end."""
    code = tmp_path / "start.py"
    code.write_text("from_file = 1")
    with enginery.Cluster(
        1, properties={"a": [1, "x"]}, exec_lines=["from_line = 2"], exec_files=[code], output_limit=1000,
        queue_limit=7, value_limit=1 << 20, lease=9.0, save_ids=True, log_level="debug", port=0,
        bind="127.0.0.1", advertise="localhost", memory_limit="2G", journal=False, log_format="json",
        drain_grace=1.0, orphan_timeout=60.0, reconnect_timeout=20.0,
    ) as cluster:  # fmt: skip
        assert cluster.client.engines[0].memory_limit == 2 << 30
        engine = cluster.client[0]
        assert engine.get_properties() == {"a": [1, "x"]}
        assert engine.pull(["from_file", "from_line"]) == [1, 2]
        assert engine.execute("print('x' * 5000)").dropped_bytes > 0
        with pytest.raises(enginery.errors.ValueTooLarge, match="--value-limit"):
            engine.push({"big": b"x" * (2 << 20)})
        assert cluster.state_dir is not None
        address = enginery._connection_file.read(cluster.state_dir / "client.json", "client").address
        assert address.startswith("localhost:")
        logs = [path.read_text() for path in (cluster.state_dir / "logs").iterdir()]
        assert all('"level": "debug"' in text for text in logs)
        assert not list(cluster.state_dir.glob("journal*"))
    code.unlink()
    assert shell.left() == []


def test_several_at_once(shell: Shell) -> None:
    """Each has its own engines; connect() without a name lists them; stopping one leaves the other."""
    with enginery.Cluster(1) as first:
        with enginery.Cluster(1) as second:
            first.client[0]["a"] = 1
            second.client[0]["a"] = 2
            assert first.client[0]["a"] == 1
            with pytest.raises(SeveralClusters) as caught:
                enginery.connect()
            assert str(first.state_dir) in str(caught.value)
            assert str(second.state_dir) in str(caught.value)
        with enginery.connect() as client:
            assert client[0]["a"] == 1
    assert shell.left() == []


def test_a_named_state_directory_stays(tmp_path: Path) -> None:
    """Port and cluster are the same the next time; a second cluster on it is refused."""
    ids = []
    for _ in range(2):
        with enginery.Cluster(0, state_dir=tmp_path / "state") as cluster:
            ids.append(StateDirectory(tmp_path / "state").load_identity())
            with pytest.raises(StateDirectoryInUse, match="runs already"):
                enginery.Cluster(0, state_dir=tmp_path / "state").start()
            assert cluster.client.ids == []
    assert (ids[0].cluster_id, ids[0].port) == (ids[1].cluster_id, ids[1].port)


def test_insecure() -> None:
    """It works on loopback without TLS."""
    with enginery.Cluster(1, insecure=True) as cluster:
        assert cluster.client[0].apply(abs, -1) == 1


def test_a_start_that_fails(shell: Shell) -> None:
    """The end of the log is in the error, and nothing is left."""
    with pytest.raises(EngineryError, match=r"ended while it started[\s\S]*nothing"):
        enginery.Cluster(1, exec_lines=["import nothing"]).start()
    assert shell.left() == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n": "4"}, TypeError),
        ({"n": True}, TypeError),
        ({"n": -1}, ValueError),
        ({"log_level": "loud"}, ValueError),
        ({"log_format": "yaml"}, ValueError),
        ({"durability": "for ever"}, ValueError),
        ({"memory_limit": "2X"}, ValueError),
        ({"memory_limit": 0}, ValueError),
        ({"drain_grace": "5"}, TypeError),
        ({"orphan_timeout": -1}, ValueError),
        ({"timeout": None}, TypeError),
        ({"exec_lines": "import os"}, TypeError),
        ({"exec_files": "setup.py"}, TypeError),
        ({"exec_files": ["nowhere.py"]}, FileNotFoundError),
        ({"properties": {"a": object()}}, enginery.errors.InvalidProperty),
    ],
)
def test_options_that_cannot_be_right(options: dict[str, Any], error: type[Exception]) -> None:
    """They are refused where they are written, before a process is started."""
    with pytest.raises(error):
        enginery.Cluster(**options)


def test_its_client_keeps_it_running(shell: Shell) -> None:
    """A cluster of which only the client, or a view, is held does not end; one that is dropped whole does."""
    view = enginery.Cluster(1).start().client[0]
    gc.collect()
    assert view.apply(abs, -2) == 2
    del view
    gc.collect()
    eventually(lambda: not shell.processes(), shell.processes)


def test_without_a_start() -> None:
    """Asking for the client then is an error that says what to do; stop does nothing; n is checked."""
    cluster = enginery.Cluster(2)
    assert "not running" in repr(cluster)
    with pytest.raises(RuntimeError, match="start"):
        _ = cluster.client
    cluster.stop()
    with pytest.raises(ValueError, match="n is -1"):
        enginery.Cluster(-1)


SCRIPT = """
import enginery, os, sys, time
cluster = enginery.Cluster(1).start()
print(cluster.client[0].apply(lambda: 1), flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise ZeroDivisionError", 1), ("os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
def test_it_ends_with_its_process(shell: Shell, end: str, code: int) -> None:
    """Forgotten, failed or killed: no process and no file is left."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(end=end)], env=shell.environment, capture_output=True, text=True,
        timeout=40, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "1\n"), done.stderr
    eventually(lambda: shell.processes() == [], shell.processes)
    eventually(lambda: shell.left() == [], shell.left)


def test_a_forked_child_leaves_it_alone() -> None:
    """The end of a child that was forked does not end the parent's cluster."""
    with enginery.Cluster(1) as cluster:
        pid = os.fork()
        if pid == 0:
            try:
                cluster.stop()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert cluster.client[0].apply(abs, -3) == 3
