"""The state directory is private, held by one controller, and found again."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from enginery._state_dir import StateDirectory, default_path, runtime_directory
from enginery.errors import EngineryError, StateDirectoryInUse

HOLD = (
    "import sys; from enginery._state_dir import *; s = StateDirectory(sys.argv[1]); s.lock(); "
    "print('held', flush=True); sys.stdin.read()"
)


def test_default_path(own_runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENGINERY_STATE_DIR wins, then the runtime directory, then one in /tmp that carries the user's id."""
    assert default_path() == own_runtime_directory / "enginery" / "default"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_directory() == Path(f"/tmp/enginery-{os.getuid()}")
    monkeypatch.setenv("ENGINERY_STATE_DIR", "/somewhere")
    assert default_path() == Path("/somewhere")
    assert StateDirectory().path == Path("/somewhere")


def test_everything_is_private(state: StateDirectory) -> None:
    """Directories are 0700 and files 0600, whatever the umask."""
    old = os.umask(0)
    try:
        state.lock()
        state.load_identity()
        state.add_process(os.getpid(), "controller")
    finally:
        os.umask(old)
        state.unlock()
    modes = {path.relative_to(state.path): path.stat().st_mode & 0o777 for path in state.path.rglob("*")}
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert all(mode == (0o700 if (state.path / path).is_dir() else 0o600) for path, mode in modes.items()), (
        modes
    )


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    """The text says what to do."""
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(EngineryError, match="chmod 700"):
        StateDirectory(tmp_path / "open").prepare()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    """A plain file is no state directory."""
    (tmp_path / "file").touch()
    with pytest.raises(EngineryError, match="not a directory"):
        StateDirectory(tmp_path / "file").prepare()


def test_the_folder_of_a_copied_client_file_is_refused(tmp_path: Path) -> None:
    """A cluster of its own there would overwrite what leads to the other."""
    file = tmp_path / "client.json"
    file.write_text("{}")
    with pytest.raises(EngineryError, match=f"{file} is that of a cluster elsewhere"):
        StateDirectory(tmp_path).prepare()
    assert list(tmp_path.iterdir()) == [file]


def test_identity_stays(state: StateDirectory) -> None:
    """Cluster id, tokens and port are made once; the epoch always rises; tokens are not shown."""
    first = state.load_identity()
    state.remember_port(4711)
    epochs = [state.next_epoch(), state.next_epoch()]
    again = StateDirectory(state.path).load_identity()
    assert (again.cluster_id, again.client_token, again.port) == (first.cluster_id, first.client_token, 4711)
    assert epochs[0] < epochs[1] == again.controller_epoch
    assert first.engine_token != first.client_token
    assert first.client_token not in repr(first)


def test_damaged_identity_is_named(state: StateDirectory) -> None:
    """A file that cannot be read is an error that names it, never a new identity in silence."""
    (state.path / "cluster.json").write_text("{")
    (state.path / "cluster.json").chmod(0o600)
    with pytest.raises(EngineryError, match=r"cluster\.json cannot be used"):
        state.load_identity()


@pytest.mark.parametrize(
    "damage",
    [
        {"port": "x"},
        {"port": 70_000},
        {"controller_epoch": "x"},
        {"cluster_id": 5},
        {"cluster_id": "../c"},
        {"engine_token": ""},
        {"client_token": None},
    ],
)
def test_spoilt_identity_is_named(state: StateDirectory, damage: dict[str, object]) -> None:
    """So is a part that is wrong: above all a token that is empty, which everybody has."""
    path = state.path / "cluster.json"
    state.load_identity()
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(EngineryError, match=r"cluster\.json cannot be used"):
        state.load_identity()


def test_a_damaged_identity_shows_no_token(state: StateDirectory) -> None:
    """Where fields were mixed up, any of them may hold a token: none is shown, and long ones are not either."""
    good = dataclasses.asdict(state.load_identity())
    token = good["client_token"]
    for damage in (
        {"port": token},
        {"cluster_id": token},
        {"controller_epoch": token},
        {"engine_token": token},
    ):
        (state.path / "cluster.json").write_text(json.dumps({**good, **damage}))
        with pytest.raises(EngineryError, match="remove it") as caught:
            state.load_identity()
        assert token not in "".join(traceback.format_exception(caught.value))
    (state.path / "cluster.json").write_text(json.dumps({**good, "x" * 5_000: 1}))
    assert state.load_identity().client_token == token  # what is not known, a newer Enginery wrote


def test_one_holder(state: StateDirectory) -> None:
    """The second controller is refused with the pid of the first; a dead holder frees the directory."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        assert state.is_running()
        assert state.controller_pid() == holder.pid
        with pytest.raises(StateDirectoryInUse, match=f"pid {holder.pid}.*--state-dir"):
            state.lock()
        assert [found.path for found in StateDirectory.discover()] == [state.path]
        holder.kill()
    assert not state.is_running()
    assert state.controller_pid() is None
    assert StateDirectory.discover() == []
    state.lock()
    state.unlock()


def test_discover_lists_running_clusters_wherever_they_are(tmp_path: Path) -> None:
    """Links in the runtime directory lead to state directories that are held; dead links go."""
    states = [StateDirectory(tmp_path / name) for name in ("b", "a")]
    for state in states:
        state.prepare()
        state.lock()
    assert [found.path.name for found in StateDirectory.discover()] == ["a", "b"]
    states[0].unlock()
    assert [found.path.name for found in StateDirectory.discover()] == ["a"]
    states[1].unlock()
    assert list((runtime_directory() / "running").iterdir()) == []


def test_processes_are_those_that_live(state: StateDirectory) -> None:
    """A noted process counts while it lives; a pid that another process has now does not."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        state.add_process(child.pid, "host")
        assert state.processes() == {child.pid: "host"}
        note = state.path / "processes" / str(child.pid)
        note.rename(note.with_name(str(os.getpid())))
        assert state.processes() == {}
        note.with_name(str(os.getpid())).rename(note)
        child.kill()
        child.wait()
        assert state.processes() == {}


def test_remove_leaves_nothing_of_ours(state: StateDirectory) -> None:
    """Everything goes, the runtime directory included; a stranger's file and its directory stay."""
    state.lock()
    state.load_identity()
    state.unlock()
    state.remove()
    assert not state.path.exists()
    assert not runtime_directory().exists()
    state.prepare()
    (state.path / "mine.txt").touch()
    state.remove()
    assert [path.name for path in state.path.iterdir()] == ["mine.txt"]


def test_too_long_for_a_socket(tmp_path: Path) -> None:
    """Sockets have a limit on their path: then there is none, and a text says why."""
    assert StateDirectory("/tmp/x").client_socket == Path("/tmp/x/client.sock")
    assert StateDirectory("/tmp/x").socket_warning() == ""
    long = StateDirectory(tmp_path / ("x" * 100))
    assert long.client_socket is None
    assert "shorter --state-dir" in long.socket_warning()
