"""The state directory: what a controller keeps, so that a restart changes nothing for anyone.

    lock            held (flock) while a controller runs; a crash frees it
    cluster.json    cluster id, tokens, port, controller epoch
    ca.pem ca-key.pem
    engine.json client.json     connection files, one per role
    client.sock     plaintext, client role: reaching it takes the same user as reading client.json
    journal/        what a controller must know again: engines, and results of operations
    logs/           one file per process
    processes/      a note for each process of this machine
    launcher.json   where else engines were started, so that `enginery down` can stop them

All of it is private to one user. Where a user's clusters are is found by links in `running/` of the runtime
directory, so that state directories may lie anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginery._files import check_private_directory, make_private_directory, read_private, write_private
from enginery.errors import EngineryError, StateDirectoryInUse

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "ENGINERY_STATE_DIR"
"""Environment variable that names the state directory."""

_MAX_SOCKET_PATH = 100  # bytes; the system's limit is 108 on Linux and 104 on macOS, the end included
_TOKEN = re.compile(r"[!-~]{32,512}")  # what metadata can carry, and nobody guesses
_HIGHEST_EPOCH = 1 << 53  # each start is above the last: so many are never reached
_HIGHEST_PORT = 65_535
_LOCK_PATIENCE = 0.3  # seconds: `discover` probes the lock for a moment


@dataclass(frozen=True, slots=True)
class ClusterIdentity:
    """What stays the same when a controller is started again. Tokens are secrets."""

    cluster_id: str
    engine_token: str
    client_token: str
    port: int = 0
    """Port of the last controller; 0 if there was none."""
    controller_epoch: int = 0
    """Number of the last start, rising."""

    def __repr__(self) -> str:
        """Show all but the secrets."""
        return f"ClusterIdentity({self.cluster_id}, port={self.port}, controller_epoch={self.controller_epoch})"


def runtime_directory() -> Path:
    """Return this user's directory for state: `$XDG_RUNTIME_DIR/enginery`, else `/tmp/enginery-UID`."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):  # noqa: PTH112 - it never raises
        return Path(runtime) / "enginery"
    return Path(f"/tmp/enginery-{os.getuid()}")  # noqa: S108 - 0700, and its owner is checked


def default_path() -> Path:
    """Return the state directory to use if none is named: `$ENGINERY_STATE_DIR`, else `default` at run time."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else runtime_directory() / "default"


class StateDirectory:
    """One state directory. Making the object touches nothing."""

    def __init__(self, path: Path | str | None = None) -> None:
        """Take the path; None means `default_path()`."""
        self.path = (Path(path) if path is not None else default_path()).expanduser().absolute()
        self._lock_fd = -1

    def __repr__(self) -> str:
        """Show the path."""
        return f"StateDirectory({str(self.path)!r})"

    @property
    def engine_file(self) -> Path:
        """Connection file of the role engine."""
        return self.path / "engine.json"

    @property
    def client_file(self) -> Path:
        """Connection file of the role client."""
        return self.path / "client.json"

    @property
    def logs(self) -> Path:
        """Directory of log files."""
        return self.path / "logs"

    @property
    def journal(self) -> Path:
        """Directory of the controller's journal; one that was damaged lies beside it, as `journal.damaged`."""
        return self.path / "journal"

    @property
    def client_socket(self) -> Path | None:
        """The controller's Unix socket; None if its path is too long for a socket."""
        path = self.path / "client.sock"
        return path if len(os.fsencode(path)) <= _MAX_SOCKET_PATH else None

    def socket_warning(self) -> str:
        """Return why there is no `client_socket`; empty if there is one."""
        if self.client_socket is not None:
            return ""
        return (
            f"no client.sock: its path would be over {_MAX_SOCKET_PATH} bytes, the system's limit for sockets; "
            "use a shorter --state-dir to have one"
        )

    def prepare(self) -> None:
        """Make the directory and `logs/`, 0700.

        EngineryError if it is another user's, open to others, or the folder of another machine's `client.json`.
        """
        if self.is_remote:
            raise EngineryError(
                f"{self.client_file} is that of a cluster elsewhere, and would be overwritten: "
                "use another --state-dir, or remove it"
            )
        try:
            base = runtime_directory()
            if base in self.path.parents:
                make_private_directory(base)
            make_private_directory(self.path)
            make_private_directory(self.logs)
            make_private_directory(self.processes_directory)
        except OSError as error:
            raise EngineryError(f"the state directory {self.path} cannot be used: {error}") from error

    # Lock

    def lock(self) -> None:
        """Hold the directory until `unlock` or the end of the process; `prepare` comes first.

        Raises StateDirectoryInUse, naming the holder, if another process has it.
        """
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(fd)
                raise StateDirectoryInUse(
                    f"another controller (pid {holder}) uses the state directory {self.path}: "
                    f"stop it by `enginery down --state-dir {self.path}`, or use another --state-dir"
                )
            time.sleep(0.01)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd
        self._announce()

    def unlock(self) -> None:
        """Give the directory back; the second time does nothing."""
        if self._lock_fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                self._announcement().unlink()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def is_running(self) -> bool:
        """Return whether a controller holds the directory now."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    @property
    def is_remote(self) -> bool:
        """Whether all that is here of a cluster is a `client.json`: it was copied from another machine."""
        client, *others = (os.path.exists(self.path / name) for name in _OF_REMOTE)  # noqa: PTH110 - it never raises
        return client and not any(others)

    @property
    def is_used(self) -> bool:
        """Whether a controller or a host keeps files here, or left some: else it is somebody else's folder."""
        known = any((self.path / name).exists() for name in ("lock", "cluster.json"))
        return known or any(self.processes_directory.glob("[0-9]*"))

    def controller_pid(self) -> int | None:
        """Return the process id of the controller that holds the directory, None if none does."""
        if not self.is_running():
            return None
        try:
            return int((self.path / "lock").read_text())
        except (OSError, ValueError):
            return None

    # Its processes on this machine

    def add_process(self, pid: int, kind: str) -> None:
        """Note a process of this cluster, so that `enginery down` finds it even without a controller.

        EngineryError if that cannot be written, such as for want of room.
        """
        note = json.dumps({"kind": kind, "start": _start_time(pid)}).encode()
        try:
            write_private(self.processes_directory / str(pid), note)
        except OSError as error:
            raise EngineryError(f"the state directory {self.path} cannot be used: {error}") from error

    def remove_process(self, pid: int) -> None:
        """Forget a process; one that is not known does nothing."""
        (self.processes_directory / str(pid)).unlink(missing_ok=True)

    def processes(self) -> dict[int, str]:
        """Return the noted processes that live, kinds by pid; another one that got the same pid is none."""
        found = {}
        for path in self.processes_directory.glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, KeyError):  # a note that went away or was cut
                note = json.loads(read_private(path))
                if note["start"] is not None and note["start"] == _start_time(int(path.name)):
                    found[int(path.name)] = str(note["kind"])
        return found

    # Its engines elsewhere

    def note_launcher(self, note: Mapping[str, str] | None) -> None:
        """Keep what a launcher needs to stop its engines; None forgets what was kept."""
        path = self.path / "launcher.json"
        if note is None:
            path.unlink(missing_ok=True)
        else:
            write_private(path, json.dumps(dict(note)).encode())

    def launcher(self) -> dict[str, str] | None:
        """Return what was kept of a launcher; None if there is nothing that can be used."""
        try:
            note = json.loads(read_private(self.path / "launcher.json"))
        except (OSError, ValueError):
            return None
        return {str(key): str(value) for key, value in note.items()} if isinstance(note, dict) else None

    @property
    def processes_directory(self) -> Path:
        """Directory of notes about processes of this machine, and of the locks that its hosts hold."""
        return self.path / "processes"

    # What is kept

    def load_identity(self) -> ClusterIdentity:
        """Return what is kept of the cluster, made now if there is nothing. For the holder of the lock only."""
        path = self.path / "cluster.json"
        try:
            return _identity(json.loads(read_private(path)))
        except FileNotFoundError:
            identity = ClusterIdentity(str(uuid.uuid4()), secrets.token_urlsafe(32), secrets.token_urlsafe(32))
            self.save_identity(identity)
            return identity
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise _unusable(path, error) from error

    def check_identity(self) -> None:
        """Raise EngineryError, which says what to do, if what is kept of the cluster cannot be used."""
        path = self.path / "cluster.json"
        try:
            _identity(json.loads(read_private(path)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise _unusable(path, error) from error

    def save_identity(self, identity: ClusterIdentity) -> None:
        """Keep `identity`. For the holder of the lock only."""
        write_private(self.path / "cluster.json", json.dumps(dataclasses.asdict(identity)).encode())

    def next_epoch(self) -> int:
        """Return the number of this start of the controller, above every earlier one, and keep it."""
        identity = self.load_identity()
        epoch = max(identity.controller_epoch + 1, time.time_ns() // 1_000_000)
        self.save_identity(dataclasses.replace(identity, controller_epoch=epoch))
        return epoch

    def remember_port(self, port: int) -> None:
        """Keep the port for the next start."""
        self.save_identity(dataclasses.replace(self.load_identity(), port=port))

    def remove(self) -> None:
        """Remove everything that Enginery keeps here, and the directory if nothing else is in it."""
        for name in _OWN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for leftover in self.path.glob(".*.json.*"):
            leftover.unlink(missing_ok=True)
        for journal in (self.journal, self.path / "journal.damaged"):
            shutil.rmtree(journal, ignore_errors=True)
        shutil.rmtree(self.logs, ignore_errors=True)
        shutil.rmtree(self.processes_directory, ignore_errors=True)
        for directory in (self.path, runtime_directory() / "running", runtime_directory()):
            with contextlib.suppress(OSError):  # not empty, or not there
                directory.rmdir()

    # Which clusters run

    def _announcement(self) -> Path:
        digest = uuid.uuid5(uuid.NAMESPACE_URL, self.path.as_uri())
        return runtime_directory() / "running" / str(digest)

    def _announce(self) -> None:
        link = self._announcement()
        try:
            make_private_directory(runtime_directory())
            make_private_directory(link.parent)
            link.unlink(missing_ok=True)
            link.symlink_to(self.path)
        except OSError as error:
            # The cluster works all the same; only connect() without a path will not find it.
            print(f"enginery: this cluster cannot be announced to connect(): {error}", file=sys.stderr)

    @classmethod
    def discover(cls) -> list[StateDirectory]:
        """Return the state directories of this user's running clusters, by path; dead links are removed."""
        running = runtime_directory() / "running"
        try:
            check_private_directory(runtime_directory())
            links = list(running.iterdir())
        except OSError:
            return []
        found = []
        for link in links:
            try:
                state = cls(link.readlink())
            except OSError:
                continue
            if state.is_running():
                found.append(state)
            else:
                link.unlink(missing_ok=True)
        return sorted(found, key=lambda state: state.path)


def _unusable(path: Path, error: Exception) -> EngineryError:
    return EngineryError(f"{path} cannot be used ({error}): remove it to start a new cluster")


def _identity(fields: Any) -> ClusterIdentity:
    """Return what a file says; ValueError if it is not whole: an empty token lets anybody in.

    Errors name fields and show no values: in a file that was mixed up any of them may be a token.
    """
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    known = {
        field.name: fields[field.name] for field in dataclasses.fields(ClusterIdentity) if field.name in fields
    }
    for name in ("engine_token", "client_token"):
        token = known.get(name)
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError(f"{name} is damaged")
    if known["engine_token"] == known["client_token"]:
        raise ValueError("both tokens are the same")
    for name, highest in (("port", _HIGHEST_PORT), ("controller_epoch", _HIGHEST_EPOCH)):
        if type(known.setdefault(name, 0)) is not int or not 0 <= known[name] <= highest:
            raise ValueError(f"{name} is damaged")
    if not _is_id(known.get("cluster_id")):
        raise ValueError("cluster_id is damaged")
    return ClusterIdentity(**known)


def _is_id(text: object) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _start_time(pid: int) -> float | None:
    """Return when a process started, which with its pid names it for good; None if it is gone."""
    import psutil  # here, since services that only read paths need not pay for it

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


_OWN_FILES = (
    "lock", "cluster.json", "ca.pem", "ca-key.pem", "engine.json", "client.json", "client.sock",
    "launcher.json",
)  # fmt: skip


_OF_REMOTE = ("client.json", "lock", "cluster.json")


def _try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
