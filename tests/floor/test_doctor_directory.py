"""Each fault of a state directory is found, and the command that is printed mends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from enginery import _doctor_directory
from enginery._certificates import CA_FILE, CA_KEY_FILE, Authority
from enginery._doctor_directory import examine_directory
from enginery._finding import make_private
from enginery._state_dir import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from enginery._finding import Finding


def fault(findings: Iterable[Finding]) -> Finding:
    """Return the only fault among them."""
    (found,) = [finding for finding in findings if finding.is_fault]
    return found


def names(findings: Iterable[Finding]) -> list[str]:
    return [finding.check for finding in findings]


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """What a controller leaves behind, below a path that a shell must have quoted."""
    directory = StateDirectory(tmp_path / "the state")
    directory.prepare()
    directory.load_identity()
    Authority.load_or_create(directory.path)
    for file in (directory.client_file, directory.engine_file):
        file.touch(mode=0o600)
    return directory


@pytest.fixture
def running(state: StateDirectory) -> Iterator[StateDirectory]:
    """A state directory that a controller seems to hold, with a socket that is listened at."""
    state.lock()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state.client_socket))
        listener.listen()
        yield state
    state.unlock()


def carry_out(command: str, folder: Path) -> str:
    """Run a printed command, `enginery` being a program that says how it was called; return what it said."""
    folder.mkdir(exist_ok=True)
    program = folder / "enginery"
    program.write_text('#!/bin/sh\necho "enginery $*"\n')
    program.chmod(0o700)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, check=True, capture_output=True, text=True, timeout=10
    )
    return done.stdout


def test_a_directory_in_order_has_no_fault(running: StateDirectory) -> None:
    """Directory, files and socket are looked at in this order."""
    findings = list(examine_directory(running))
    assert names(findings) == ["state directory", "disk", "files", "client.sock"]
    assert not any(finding.is_fault for finding in findings)


def test_no_directory(tmp_path: Path) -> None:
    """Nothing was ever started there."""
    found = fault(examine_directory(StateDirectory(tmp_path / "none")))
    assert "there is none" in found.text
    assert found.mend == f"enginery up --state-dir {tmp_path / 'none'}"


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    """A project's folder, or a file, that was named by mistake is left as it is."""
    (tmp_path / "file").touch()
    tmp_path.chmod(0o755)
    for path in (tmp_path, tmp_path / "file"):
        assert fault(examine_directory(StateDirectory(path))).mend.startswith("enginery up --state-dir DIR")


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    """Below a file, or round in a circle of links: another directory has to do."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "file" / "below", tmp_path / "loop"):
        assert fault(examine_directory(StateDirectory(path))).mend.startswith("enginery up --state-dir DIR")


def test_a_directory_that_another_user_keeps_from_us(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither chmod nor chown is for us."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(_doctor_directory, "check_private_directory", refuse)
    found = fault(examine_directory(StateDirectory(tmp_path)))
    assert "cannot be reached: Permission denied" in found.text
    assert "a directory of your own" in found.mend


def test_what_belongs_to_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after `sudo enginery up`: it is made ours."""
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    (tmp_path / "cluster.json").touch()
    command = f'sudo chown -R "$(id -u)" {tmp_path} && chmod 700 {tmp_path}'
    assert make_private(tmp_path, "700") == command
    assert fault(examine_directory(StateDirectory(tmp_path))).mend == command


def test_a_directory_open_to_others(running: StateDirectory, tmp_path: Path) -> None:
    """Others could exchange the files: nothing else is looked at."""
    running.path.chmod(0o755)
    findings = list(examine_directory(running))
    assert names(findings) == ["state directory"]
    assert fault(findings).text == f"{running.path} can be entered by others (mode 0755)"
    carry_out(fault(findings).mend, tmp_path / "bin")
    assert not any(finding.is_fault for finding in examine_directory(running))


def test_a_full_disk(running: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and what comes after is looked at all the same."""
    monkeypatch.setattr(_doctor_directory, "_ROOM", 1 << 60)
    findings = list(examine_directory(running))
    assert fault(findings).check == "disk"
    assert fault(findings).mend.startswith("df -h ")
    assert names(findings)[-1] == "client.sock"


def _damage(name: str, text: str) -> Callable[[StateDirectory], object]:
    return lambda state: (state.path / name).write_text(text)


def _replace_by_directory(state: StateDirectory) -> None:
    (state.path / "cluster.json").unlink()
    (state.path / "cluster.json").mkdir()


def _replace_by_pipe(state: StateDirectory) -> None:
    (state.path / "cluster.json").unlink()
    os.mkfifo(state.path / "cluster.json", 0o600)


FILES: dict[str, Callable[[StateDirectory], object]] = {
    "others can read cluster.json": lambda state: (state.path / "cluster.json").chmod(0o644),
    "others can read client.json": lambda state: (state.path / "client.json").chmod(0o640),
    "half a cluster.json": _damage("cluster.json", '{"cluster_id"'),
    "a directory": _replace_by_directory,
    "a pipe": _replace_by_pipe,
    "a damaged certificate": _damage(CA_FILE, "junk"),
    "a damaged key": _damage(CA_KEY_FILE, "junk"),
    "a lost key": lambda state: (state.path / CA_KEY_FILE).unlink(),
}


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("fault_name", FILES)
def test_files_that_the_next_controller_would_refuse(
    fault_name: str, is_running: bool, state: StateDirectory, tmp_path: Path
) -> None:
    """The command ends a controller that runs, does what it says it does, and nothing is wrong any more."""
    if is_running:
        state.lock()
    try:
        FILES[fault_name](state)
        command = fault(examine_directory(state) if is_running else _of_files(state)).mend.partition(";")[0]
        said = carry_out(command, tmp_path / "bin")
        assert not any(f"'{state.path}'" in line for line in said.splitlines())  # the shell has seen its quotes
        if "can read" not in fault_name:
            assert [line.split()[1] for line in said.splitlines()] == ["down"] * is_running + ["up"]
        state.unlock()
        left = _of_files(state)
        assert not left or "no controller was ever started here" in left[0].text
    finally:
        state.unlock()


def _of_files(state: StateDirectory) -> list[Finding]:
    return [one for one in examine_directory(state) if one.is_fault and one.check in ("files", "certificates")]


@pytest.mark.parametrize("name", ["cluster.json", "client.json", "engine.json"])
def test_a_file_that_a_running_controller_has_lost(running: StateDirectory, name: str) -> None:
    """A start alone would be refused, since one runs."""
    (running.path / name).unlink()
    found = fault(examine_directory(running))
    assert "though a controller runs" in found.text
    assert found.mend.startswith("enginery down --keep ")


def test_no_controller_ever(tmp_path: Path) -> None:
    """A directory without a cluster."""
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    assert "no controller was ever started" in fault(examine_directory(state)).text


def test_no_controller_now(state: StateDirectory) -> None:
    """A directory that nobody holds."""
    found = fault(examine_directory(state))
    assert (found.check, found.mend) == ("controller", f"enginery up --state-dir '{state.path}'")


def test_a_stopped_process(running: StateDirectory, tmp_path: Path) -> None:
    """Ctrl-Z, or a signal: it looks alive and answers nothing, and goes on after the printed command."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        running.add_process(process.pid, "host")
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        found = fault(examine_directory(running))
        assert f"the host, pid {process.pid}, is stopped" in found.text
        carry_out(found.mend, tmp_path / "bin")
        assert not any(one.is_fault for one in examine_directory(running))
        process.kill()


def test_a_dead_socket(running: StateDirectory) -> None:
    """The socket's file without anybody behind it."""
    assert running.client_socket is not None
    running.client_socket.unlink()
    found = fault(examine_directory(running))
    assert found.check == "client.sock"
    assert not found.hides_others


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """Then there is none, which is said."""
    state = StateDirectory(tmp_path / ("long" * 30))
    state.prepare()
    state.load_identity()
    for file in (state.client_file, state.engine_file):
        file.touch(mode=0o600)
    state.lock()
    found = fault(examine_directory(state))
    state.unlock()
    assert "shorter --state-dir" in found.mend
