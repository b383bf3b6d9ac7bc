"""The files of a state directory: half written, restored from a bad backup, edited by hand.

An input is a byte that names a file, and what is in it; with a high byte the file is gone. The others are as a
controller left them.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from enginery import _certificates, _connection_file
from enginery._certificates import Authority, controller_name
from enginery._state_dir import ClusterIdentity, StateDirectory
from enginery.errors import ConnectionFileError, EngineryError
from tests.fuzz import mutator
from tests.fuzz.rules import FAST, SECRET, BrokenRule, Watch, check_secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from enginery._connection_file import ConnectionInfo

_FILES = (
    "cluster.json", "ca.pem", "ca-key.pem", "lock", "launcher.json", "processes/1",
    "engine.json", "client.json",
)  # fmt: skip
_KEPT = ("cluster.json", "ca.pem", "ca-key.pem")
"""What no start may replace, whatever is in it: who has a connection file would be shut out."""
_GONE = 0x80
_CLUSTER = "01020304-0506-4708-890a-0b0c0d0e0f10"
_TOKENS = (SECRET + "-of-engines", SECRET + "-of-clients")
_AUTHORITY: dict[str, bytes] = {}


def _files() -> dict[str, bytes]:
    """Return the files as they should be."""
    if not _AUTHORITY:  # keys take long to make
        with tempfile.TemporaryDirectory() as folder:
            Authority.load_or_create(Path(folder))
            for name in ("ca.pem", "ca-key.pem"):
                _AUTHORITY[name] = (Path(folder) / name).read_bytes()
    identity = {
        "cluster_id": _CLUSTER,
        "engine_token": _TOKENS[0],
        "client_token": _TOKENS[1],
        "port": 7,
        "controller_epoch": 5,
    }
    connection = {
        "format": 1,
        "role": "client",
        "cluster_id": _CLUSTER,
        "address": "127.0.0.1:7",
        "server_name": controller_name(_CLUSTER),
        "ca_pem": _AUTHORITY["ca.pem"].decode(),
        "token": _TOKENS[1],
    }
    return {
        "cluster.json": json.dumps(identity).encode(),
        **_AUTHORITY,
        "lock": b"77\n",
        "launcher.json": json.dumps({"on": "dask", "address": "a"}).encode(),
        "processes/1": json.dumps({"kind": "host", "start": 1.5}).encode(),
        "engine.json": json.dumps({**connection, "role": "engine", "token": _TOKENS[0]}).encode(),
        "client.json": json.dumps(connection).encode(),
    }


class StateTarget:
    """Starts as a controller does on each input, as far as files go."""

    name = "state"
    seeds = tuple(
        bytes((number | gone,)) + _files()[name] for number, name in enumerate(_FILES) for gone in (0, _GONE)
    )

    def __init__(self, watch: Watch) -> None:
        """Make the directory."""
        self._watch = watch
        self._folder = tempfile.TemporaryDirectory(dir=FAST)
        self._state = StateDirectory(Path(self._folder.name) / "state")
        self._state.prepare()
        self._runtime = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = self._folder.name
        self._good = _files()
        for name in _FILES:
            self._write(name, self._good[name])

    def _write(self, name: str, data: bytes) -> None:
        path = self._state.path / name
        path.write_bytes(data)
        path.chmod(0o600)

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil the JSON, or cut the file."""
        which, rest = data[:1], data[1:]
        if random.randrange(4) == 0:
            return which + rest[: random.randrange(len(rest) + 1)]
        try:
            document = json.loads(rest)
        except (ValueError, RecursionError):
            return which + mutator.spoil(random, rest, other)
        return which + json.dumps(mutator.spoil_json(random, document)).encode()[: mutator.MAX_INPUT]

    def run(self, data: bytes) -> str:
        """Start with this file."""
        which = (data[:1] or b"\0")[0]
        name = _FILES[which % len(_FILES)]
        self._write(name, data[1:])
        if which & _GONE:
            (self._state.path / name).unlink()
        before = self._kept()
        try:
            with self._watch.in_time():
                outcome = self._start()
            after = {kept: data for kept, data in self._kept().items() if kept in before}
            if name == "ca.pem" and which & _GONE:
                before.clear()  # as after a crash between the two: a new pair is made
                after.clear()
            if self._has_epoch and "cluster.json" in before:
                self._check_epoch(before["cluster.json"], after["cluster.json"])
                del before["cluster.json"], after["cluster.json"]
            if after != before:
                raise BrokenRule("a file that others rely on was replaced")
        finally:
            for kept in {name, *_KEPT}:
                self._write(kept, self._good[kept])
        self._watch.check()
        return f"{name}: {outcome}".replace(self._folder.name, "DIR")

    def _kept(self) -> dict[str, bytes]:
        return {
            name: (self._state.path / name).read_bytes() for name in _KEPT if (self._state.path / name).exists()
        }

    def _start(self) -> str:
        state, said = self._state, []
        self._has_epoch = False
        said.append(f"{len(state.processes())} processes, launcher {bool(state.launcher())}")
        state.lock()
        try:
            identity = state.load_identity()
            _check_identity(identity)
            state.next_epoch()
            self._has_epoch = True
            state.remember_port(8)
            authority = Authority.load_or_create(state.path)
            authority.issue_server(controller_name(identity.cluster_id))
            said.append("starts")
        except EngineryError as error:
            said.append(_refusal(error))
        finally:
            state.unlock()
        state.controller_pid()
        for path, role in ((state.engine_file, "engine"), (state.client_file, "client")):
            try:
                info: ConnectionInfo = _connection_file.read(path, role)  # type: ignore[arg-type]
                if not info.insecure:
                    _certificates.issuer(info.ca_pem.encode())
            except (ConnectionFileError, EngineryError) as error:
                said.append(_refusal(error))
        return "; ".join(said)

    def _check_epoch(self, before: bytes, after: bytes) -> None:
        """The identity stays, the epoch rises."""
        old, new = json.loads(before), json.loads(after)
        for key in ("cluster_id", "engine_token", "client_token"):
            if old[key] != new[key]:
                raise BrokenRule(f"{key} is another now")
        if not isinstance(new["controller_epoch"], int) or new["controller_epoch"] <= old.get(
            "controller_epoch", 0
        ):
            raise BrokenRule("the epoch does not rise")
        if not 0 <= new["controller_epoch"] < 1 << 63:
            raise BrokenRule("an epoch that fits into no message")

    def close(self) -> None:
        """Take the directory away."""
        if self._runtime is None:
            os.environ.pop("XDG_RUNTIME_DIR", None)
        else:
            os.environ["XDG_RUNTIME_DIR"] = self._runtime
        self._folder.cleanup()


def _check_identity(identity: ClusterIdentity) -> None:
    tokens = (identity.engine_token, identity.client_token)
    if tokens[0] == tokens[1]:
        raise BrokenRule("one token for both roles")
    for token in tokens:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise BrokenRule("a token that no metadata can carry")
    check_secret(repr(identity))


def _refusal(error: EngineryError) -> str:
    """Return what a refusal says; BrokenRule if it shows a secret, or no way out."""
    shown = "\n".join(_shown(error))
    check_secret(shown)
    if any(line in shown for line in _key_lines()):
        raise BrokenRule("a key is shown")
    text = str(error)
    if len(text) > 2_000:
        raise BrokenRule(f"an error of {len(text)} characters")
    return text


def _shown(error: BaseException) -> Iterator[str]:
    """Yield the texts that a traceback of an error holds; to make tracebacks would take most of the time."""
    following: BaseException | None = error
    while following is not None:
        yield str(following)
        hidden = following.__suppress_context__
        following = following.__cause__ or (None if hidden else following.__context__)


def _key_lines() -> list[str]:
    return _AUTHORITY["ca-key.pem"].decode().splitlines()[1:-1]
