"""Connecting, losing the connection, finding it again, and the end."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import enginery
from enginery import _connection_file, _find, _link
from enginery._state_dir import VARIABLE, StateDirectory
from enginery.errors import (
    ConnectionFileError,
    ControllerLost,
    ControllerNotRunning,
    EngineryError,
    FileTimeoutError,
    InvalidEngineID,
    NoEnginesRegistered,
    SeveralClusters,
)
from tests.client.fake import FakeController, info_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def wait(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


# ---- which cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of its own, so that no other cluster of this machine is seen."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def test_no_cluster_is_an_error_at_once(home: Path) -> None:
    """It says how to start one."""
    with pytest.raises(ControllerNotRunning, match="enginery up"):
        enginery.connect()


def test_times_that_make_no_sense_are_refused() -> None:
    """Before a cluster is looked for."""
    with pytest.raises(TypeError, match="timeout is a number of seconds, not str"):
        enginery.connect(timeout="5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reconnect_timeout of nan s"):
        enginery.connect(reconnect_timeout=float("nan"))


def test_the_only_cluster_is_found_and_several_are_listed(home: Path) -> None:
    """connect() takes the one that runs; with several it lists them and guesses none."""
    states = [StateDirectory(home / name) for name in ("one", "two")]
    states[0].prepare()
    states[0].lock()
    assert _find.find(None, 0) == states[0].client_file
    states[1].prepare()
    states[1].lock()
    with pytest.raises(SeveralClusters) as caught:
        enginery.connect()
    assert all(str(state.client_file) in str(caught.value) for state in states)
    for state in states:
        state.unlock()


def test_the_environment_names_a_cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENGINERY_STATE_DIR decides, and is named in the error if nothing runs there."""
    monkeypatch.setenv(VARIABLE, str(home / "mine"))
    with pytest.raises(ControllerNotRunning, match=VARIABLE):
        enginery.connect()


def test_a_named_file_is_waited_for(tmp_path: Path) -> None:
    """Starting both at once is no race; a file that never comes is FileTimeoutError."""
    path = tmp_path / "state" / "client.json"
    with pytest.raises(FileTimeoutError):
        enginery.connect(path, timeout=0.1)
    path.parent.mkdir(mode=0o700)
    started: list[FakeController] = []
    thread = threading.Thread(target=lambda: started.append(FakeController(path)))
    thread.start()
    with enginery.connect(path.parent, timeout=10) as client:
        assert client.ids == [0, 1]
    thread.join()
    started[0].close()


def test_a_bad_file_and_a_dead_controller_are_told_apart(controller: FakeController, tmp_path: Path) -> None:
    """Each is its own error, at once."""
    info = info_of(controller)
    shared = tmp_path / "shared.json"
    _connection_file.write(shared, info)
    shared.chmod(0o644)
    with pytest.raises(ConnectionFileError):
        enginery.connect(shared)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        dead = tmp_path / "dead.json"
        data = controller.path.read_text().replace(info.address, f"127.0.0.1:{port}")
        dead.touch(mode=0o600)
        dead.write_text(data)
        with pytest.raises(ControllerNotRunning, match=str(port)):
            enginery.connect(dead, timeout=5)


# ---- engines


def test_a_client_knows_its_engines(client: enginery.Client, controller: FakeController) -> None:
    """Ids, details and length follow the cluster."""
    assert (client.ids, len(client), bool(client)) == ([0, 1], 2, True)
    controller.engines[5] = controller.engines[0]
    controller.add(5)
    assert client.wait_for_engines(3, timeout=10) == [0, 1, 5]
    engine = client.engines[2]
    assert (engine.engine_id, engine.id, engine.state, engine.pid) == (5, 5, "ready", 42)
    with pytest.raises(TimeoutError, match=r"3 of 4 engines"):
        client.wait_for_engines(4, timeout=0.01)
    controller.lose(0)
    wait(lambda: client.ids == [1, 5])
    assert repr(client).endswith(", 2 engines>")
    assert client.cluster_id == controller.cluster_id


def test_views_are_fixed_or_follow(client: enginery.Client, controller: FakeController) -> None:
    """[:] is what there was when it was made; "all" is what there is at each call."""
    fixed, following, one = client[:], client["all"], client[1]
    controller.add(2)
    client.wait_for_engines(3, timeout=10)
    assert fixed.targets == [0, 1]
    assert following.pull("id") == [0, 1, 2]
    assert (len(fixed), len(following), one.targets) == (2, 3, [1])
    controller.lose(1)
    wait(lambda: client.ids == [0, 2])
    assert following.pull("id") == [0, 2]
    assert "(gone)" in repr(one)
    assert repr(following).startswith("<EnginesView all: [0, 2] of <Client")
    assert client[0:1].targets == [0]
    assert client[[2, 0]].targets == client[np.array([2, 0])].targets == [2, 0]
    assert (client[-1].id, client[-2].id) == (2, 0)


def test_iterating_gives_engines(client: enginery.Client) -> None:
    """Of a client and of a view of several: a view of each. One engine is no sequence; no name is looked up."""
    assert [engine.id for engine in client] == [0, 1]
    assert [engine.id for engine in client[[1, 0]]] == [1, 0]
    assert 0 in client
    assert 7 not in client
    for wrong in (lambda: list(client[0]), lambda: "a" in client[0], lambda: "a" in client[:]):  # type: ignore[call-overload,operator]
        with pytest.raises(TypeError, match=r"iter|contain"):
            wrong()


def test_engines_that_are_not_there(client: enginery.Client, controller: FakeController) -> None:
    """An unknown id is InvalidEngineID and says which there are; what is no id is TypeError."""
    for wrong in (7, -3, [0, 7], [-1], slice(5, 9), []):
        with pytest.raises(InvalidEngineID, match="there are: 0, 1"):
            client[wrong]
    for nonsense in ("0", 1.0, True, [0.5], None):
        with pytest.raises(TypeError):
            client[nonsense]  # type: ignore[index]
    with pytest.raises(ValueError, match="twice"):
        client[[0, 0]]
    everything = client["all"]
    controller.lose(0)
    controller.lose(1)
    wait(lambda: not client.ids)
    with pytest.raises(NoEnginesRegistered):
        client[0]
    with pytest.raises(NoEnginesRegistered):
        everything.execute("1")


# ---- a connection that breaks


def test_calls_go_on_when_the_controller_is_back(
    client: enginery.Client, controller: FakeController, caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent and what is called meanwhile is answered by the next controller, and a log line says so;
    the client finds it by itself, in the same session."""
    controller.frozen.add(0)
    sent = client[0].execute("6 * 7", block=False)
    wait(lambda: len(controller.held) == 1)
    controller.stop()
    late = client[1].execute("1 + 1", block=False)
    wait(lambda: "reconnecting" in repr(client))
    assert not sent.done()
    controller.frozen.clear()
    controller.start()
    assert sent.result(10).value == 42
    assert late.result(10).value == 2
    assert [call.sent_epoch for call in controller.calls if call.call_id == 1] == [
        0,
        controller.engines[0].epoch,
    ]
    said = [record.getMessage() for record in caplog.records if record.name == "enginery"]
    assert "connecting again" in said[0]
    assert "calls go on" in said[1]
    assert client[1].execute("3").value == 3
    assert client.statistics()["reconnects"] == 1
    assert len(set(controller.sessions)) == 1


def test_connections_that_do_not_last_are_not_opened_in_a_rush(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that breaks at once is followed by a longer pause, up to two seconds."""
    pauses: list[float] = []
    reopen = _link.Link._reopen

    async def noted(link: _link.Link, cause: str, delay: float) -> object:
        pauses.append(delay)
        return await reopen(link, cause, 0.001)

    monkeypatch.setattr(_link.Link, "_reopen", noted)
    controller.ends_sessions = True
    with enginery.connect(controller.path):
        wait(lambda: len(pauses) > 7)
    assert pauses[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_a_call_waits_for_a_connection_only_so_long(controller: FakeController) -> None:
    """`reconnect_timeout` of connect bounds it, and the error says whether the call was sent; so for large
    values."""
    with enginery.connect(controller.path, reconnect_timeout=0.3) as client:
        controller.frozen.add(0)
        sent = client[0].execute("1", block=False)
        wait(lambda: len(controller.held) == 1)
        controller.stop()
        controller.frozen.clear()
        wait(lambda: not client.statistics()["connected"])
        small, large = client[0].execute("1", block=False), client[1].push({"a": b"x" * 100_000}, block=False)
        for operation in (small, large):
            with pytest.raises(ControllerLost, match="not sent"):
                operation.result(10)
        with pytest.raises(ControllerLost, match="may have run"):
            sent.result(10)
        controller.start()
        wait(lambda: bool(client.statistics()["connected"]))
        assert client[0].execute("1").value == 1


def test_another_cluster_at_the_same_place_is_refused(controller: FakeController) -> None:
    """Views of one cluster never act on another one's engines."""
    with enginery.connect(controller.path, reconnect_timeout=0.3) as client:
        controller.stop()
        controller.cluster_id = "99999999-2222-4333-8444-555555555555"
        controller.start()
        wait(lambda: not client.statistics()["connected"])
        with pytest.raises(ControllerLost, match="99999999"):
            client[0].execute("1")


# ---- the end


def test_close_sends_what_was_submitted(controller: FakeController) -> None:
    """Closing right after unwaited calls loses none of them; those that wait end with ControllerLost."""
    controller.frozen.add(1)
    client = enginery.connect(controller.path)
    for n in range(100):
        client[0].push({"n": n}, block=False)
    large = client[0].push({"large": b"x" * 1_000_000}, block=False)
    stuck = client[1].execute("1", block=False)
    client.close()
    wait(lambda: "large" in controller.engines[0].namespace)
    assert controller.engines[0].namespace["n"] == 99
    assert large.done()
    with pytest.raises(ControllerLost, match="closed"):
        stuck.result(10)
    client.close()
    assert repr(client).endswith(", closed>")
    for use in (lambda: client[0], lambda: client["all"].execute("1"), lambda: client.wait_for_engines(1, 1)):
        with pytest.raises(ControllerLost, match="closed"):
            use()


def test_a_client_that_is_dropped_ends_its_connection(controller: FakeController) -> None:
    """Nobody has to call close; a view keeps its client."""
    view = enginery.connect(controller.path)[0]
    gc.collect()
    assert view.execute("1").value == 1
    assert len(controller._watchers) == 1
    del view
    gc.collect()
    wait(lambda: not controller._watchers)


def test_what_is_left_of_a_dropped_client_is_answered(controller: FakeController) -> None:
    """An operation that waits, and a result whose value was not fetched yet, keep the connection."""
    controller.frozen.add(0)
    operation = enginery.connect(controller.path)[0].execute("b'x' * 3_000_000", block=False)
    wait(lambda: len(controller.held) == 1)
    gc.collect()
    controller.thaw()
    result = operation.result(10)
    del operation
    gc.collect()
    assert len(result.value) == 3_000_000
    assert len(controller._watchers) == 1
    del result
    gc.collect()
    wait(lambda: not controller._watchers)


def test_a_value_is_not_waited_for_on_a_closed_client(controller: FakeController) -> None:
    """It says at once why it cannot be had."""
    with enginery.connect(controller.path) as client:
        result = client[0].execute("b'x' * 3_000_000")
    with pytest.raises(ControllerLost, match="closed"):
        _ = result.value


def test_kill_waits_until_the_engines_are_gone(client: enginery.Client, controller: FakeController) -> None:
    """Losing an engine is the success of kill; when it returns the ids are true."""
    client[0].kill()
    assert client.ids == [1]
    controller.add(2)
    client.wait_for_engines(2, timeout=10)
    client[[1]].kill()
    assert client.ids == [2]
    assert client["all"].kill(block=False).result(10) == [None]
    wait(lambda: not client.ids)
    controller.add(3)
    client.wait_for_engines(1, timeout=10)
    client.kill()
    assert client.ids == []


def test_kill_of_the_controller(controller: FakeController) -> None:
    """It stops everything and closes the client."""
    client = enginery.connect(controller.path)
    client.kill(controller=True)
    assert controller.shut_down.is_set()
    assert client.closed
    assert isinstance(client.statistics(), dict)


def test_exceptions_of_connecting_have_one_root() -> None:
    """`except EngineryError` catches whatever connect raises; so does ConnectionError, as Python has it."""
    assert issubclass(SeveralClusters, EngineryError)
    assert issubclass(SeveralClusters, ConnectionError)


def test_grpc_is_set_up_before_it_is_imported() -> None:
    """What the client sets in the environment counts only then, and is a quarter of the cost of a call."""
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name != 'grpc' or 'GRPC_VERBOSITY' in os.environ\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import enginery.client\n"
        "assert 'grpc' in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
