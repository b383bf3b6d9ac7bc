"""What is wrong with a cluster's state directory and the processes of this machine: see _doctor.py."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
from typing import TYPE_CHECKING

import psutil

from enginery._certificates import Authority
from enginery._files import check_private_directory, read_private
from enginery._finding import Finding, make_private, restart, set_aside, start
from enginery.errors import CertificateError, EngineryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from enginery._state_dir import StateDirectory

_PRIVATE = ("cluster.json", "engine.json", "client.json", "ca.pem", "ca-key.pem")
"""Files that only their owner may read."""
_ROOM = 16 << 20  # bytes: less than the journal takes before it is trimmed
_ELSEWHERE = "enginery up --state-dir DIR, with a directory of your own"


def examine_directory(state: StateDirectory) -> Iterator[Finding]:
    """Check the state directory, the files in it and the processes; ends after a fault that hides others."""
    finding = _examine_path(state)
    yield finding
    if finding.is_fault:
        return
    yield _examine_disk(state.path)
    is_whole = True
    for finding in _examine_files(state):
        is_whole = is_whole and not finding.is_fault
        yield finding
    if not is_whole:
        return
    if not state.is_running():
        yield Finding("controller", f"none runs in {state.path}", start(state.path))
        return
    for finding in _examine_processes(state):
        yield finding
        if finding.is_fault:
            return
    if warning := state.socket_warning():
        mend = "enginery down, then enginery up with a shorter --state-dir"
        yield Finding("client.sock", warning, mend, hides_others=False)
    else:
        yield _examine_socket(state)


def _examine_path(state: StateDirectory) -> Finding:
    name = "state directory"
    path = state.path
    try:
        check_private_directory(path)
    except FileNotFoundError:
        return Finding(name, f"there is none at {path}", start(path))
    except NotADirectoryError as error:
        is_there = path.exists()  # else it is something above that is no directory
        text = str(error) if is_there else f"{path} cannot be: what is above it is no directory"
        return Finding(name, text, _ELSEWHERE)
    except PermissionError as error:
        if error.errno is not None:  # the system says so: what is above it is closed to us
            return Finding(name, f"{path} cannot be reached: {error.strerror}", _ELSEWHERE)
        if not _is_used(state):  # such as a project's folder: its mode is nothing of ours
            return Finding(name, f"{path} is no cluster's, and not private enough for one", _ELSEWHERE)
        return Finding(name, _without_command(error), make_private(path, "700"))
    except OSError as error:
        return Finding(name, f"{path} cannot be used: {error.strerror}", _ELSEWHERE)
    return Finding(name, str(path))


def _is_used(state: StateDirectory) -> bool:
    try:
        return state.is_used
    except OSError:  # whatever is in it is kept from us
        return True


def _without_command(error: OSError) -> str:
    """Return what an error says but for the command, which is shown on a line of its own."""
    return str(error).partition(": chmod ")[0]


def _examine_disk(path: Path) -> Finding:
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    if found.f_flag & os.ST_RDONLY:
        return Finding("disk", f"{path} cannot be written to: its file system is read-only", _ELSEWHERE)
    text = f"{free / 1e6:,.0f} MB are free for {path}"
    if found.f_files and not found.f_favail:
        text = f"no file can be added to {path}: its file system has no inode left"
    elif free >= _ROOM:
        return Finding("disk", text)
    mend = f"df -h {shlex.quote(str(path))} (df -i for inodes), and remove what nobody needs"
    return Finding("disk", text, mend, hides_others=False)


def _examine_files(state: StateDirectory) -> Iterator[Finding]:
    """Check that private files are, that they can be read, and belong together."""
    readable = set()
    is_running = state.is_running()
    for name in _PRIVATE:
        path = state.path / name
        try:
            read_private(path)
        except FileNotFoundError:
            if name == "cluster.json":
                yield _no_cluster(state)
                return
            if name in ("engine.json", "client.json") and is_running:
                text = f"there is no {path}, though a controller runs"
                yield Finding("files", text, restart(state.path))
        except PermissionError as error:
            yield Finding("files", _without_command(error), make_private(path, "600"))
        except OSError as error:
            yield Finding("files", str(error), _again(state, set_aside(path)))
        else:
            readable.add(name)
    if "cluster.json" in readable:
        try:
            state.check_identity()
        except EngineryError as error:
            yield Finding("files", str(error), _again(state, set_aside(state.path / "cluster.json")))
    yield from _examine_authority(state)
    if readable:
        yield Finding("files", f"{len(readable)} private files, readable by you alone")


def _no_cluster(state: StateDirectory) -> Finding:
    path = state.path / "cluster.json"
    if state.is_running():
        text = f"there is no {path}, though a controller runs: what it starts anew is another cluster"
        return Finding("files", text, restart(state.path))
    return Finding("files", f"there is no {path}: no controller was ever started here", start(state.path))


def _examine_authority(state: StateDirectory) -> Iterator[Finding]:
    try:
        Authority.load(state.path)
    except CertificateError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            return  # it cannot be read: said already
        files = " ".join(shlex.quote(str(state.path / name)) for name in ("ca.pem", "ca-key.pem"))
        mend = f"{_again(state, f'rm -f {files}')}; then copy connection files anew"
        yield Finding("certificates", str(error), mend)


def _again(state: StateDirectory, between: str) -> str:
    """Return the command after which a cluster runs there again, with `between` done before."""
    return restart(state.path, between) if state.is_running() else f"{between} && {start(state.path)}"


def _examine_processes(state: StateDirectory) -> Iterator[Finding]:
    """Find processes of this machine that were stopped, as Ctrl-Z does: they look alive, and answer nothing."""
    processes = state.processes()
    controller = state.controller_pid()
    if controller is not None:
        processes[controller] = "controller"
    for pid, kind in sorted(processes.items()):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                text = f"the {kind}, pid {pid}, is stopped: by Ctrl-Z, or by a signal"
                yield Finding("processes", text, f"kill -CONT {pid}")


def _examine_socket(state: StateDirectory) -> Finding:
    path = state.client_socket
    assert path is not None
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2.0)
            probe.connect(str(path))
    except OSError as error:
        text = f"{path} does not answer: {error.strerror or error}"
        return Finding("client.sock", text, restart(state.path), hides_others=False)
    return Finding("client.sock", f"{path} answers")
