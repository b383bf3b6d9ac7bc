"""What is wrong with a cluster, found out from outside: checks in order, each with the command that mends it.

A check that fails ends the examination if those after it would only say the same in other words.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginery import _connection_file
from enginery._diagnose import find_problem
from enginery._files import check_private_directory, read_private
from enginery.errors import (
    AuthenticationError,
    CertificateError,
    ConnectError,
    ConnectionFileError,
    EngineryError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from enginery._connection_file import ConnectionInfo
    from enginery._state_dir import StateDirectory
    from enginery.engines import EngineInfo
    from enginery.v1.cluster_pb2 import GetClusterInfoResponse

_SOON = 30 * 86_400  # seconds before the end of a certificate at which it is a fault
_CLOCK = 300.0  # seconds by which clocks may differ
_PRIVATE = ("cluster.json", "engine.json", "client.json", "ca.pem", "ca-key.pem")
"""Files that only their owner may read."""


@dataclass(frozen=True)
class Finding:
    """What one check found. It is a fault if there is a command that mends it."""

    check: str
    text: str
    mend: str = ""
    """What to do, a command where there is one; empty if all is well."""

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong."""
        return bool(self.mend)


def examine_directory(state: StateDirectory) -> Iterator[Finding]:
    """Check the state directory and the files in it; ends after the first fault that hides others."""
    path = state.path
    start = f"enginery up --state-dir {path}"
    try:
        check_private_directory(path)
    except FileNotFoundError:
        yield Finding("state directory", f"there is none at {path}", start)
        return
    except NotADirectoryError as error:
        yield Finding("state directory", str(error), f"rm {path} && {start}")
        return
    except PermissionError as error:
        yield Finding("state directory", str(error), _mode_command(error, path, "chmod 700"))
        return
    yield Finding("state directory", str(path))
    is_whole = True
    for finding in _examine_files(state, start):
        is_whole = is_whole and not finding.is_fault
        yield finding
    if not is_whole:
        return
    if not state.is_running():
        yield Finding("controller", f"none runs in {path}", start)
    elif warning := state.socket_warning():
        yield Finding("client.sock", warning, "enginery down, then enginery up with a shorter --state-dir")
    else:
        yield from _examine_socket(state, start)


def _examine_files(state: StateDirectory, start: str) -> Iterator[Finding]:
    """Check that private files are, and that they can be read."""
    found = 0
    for name in _PRIVATE:
        path = state.path / name
        try:
            read_private(path)
        except FileNotFoundError:
            if name != "cluster.json":
                continue
            yield Finding("files", f"there is no {path}: no controller was ever started here", start)
            return
        except OSError as error:
            yield Finding("files", str(error), _mode_command(error, path, "chmod 600"))
        else:
            found += 1
    try:
        state.check_identity()
    except EngineryError as error:
        yield Finding("files", str(error), f"rm {state.path / 'cluster.json'} && {start}")
    if found:
        yield Finding("files", f"{found} private files, readable by you alone")


def _examine_socket(state: StateDirectory, start: str) -> Iterator[Finding]:
    path = state.client_socket
    assert path is not None
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2.0)
            probe.connect(str(path))
    except OSError as error:
        restart = f"enginery down --keep --state-dir {state.path} && {start}"
        yield Finding("client.sock", f"{path} does not answer: {error.strerror or error}", restart)
    else:
        yield Finding("client.sock", f"{path} answers")


def _mode_command(error: OSError, path: Path, change: str) -> str:
    """Return what makes a file or directory private again."""
    if "belongs to user" in str(error):
        return f'sudo chown "$(id -u)" {path} && {change} {path}'
    return f"{change} {path}"


def read_connection_file(path: Path) -> tuple[ConnectionInfo | None, Finding]:
    """Return what client.json says, and what was found."""
    try:
        info = _connection_file.read(path, "client")
    except ConnectionFileError as error:
        again = f"enginery down --keep --state-dir {path.parent} && enginery up --state-dir {path.parent}"
        return None, Finding("connection file", str(error), f"copy it anew from the controller, or: {again}")
    return info, Finding("connection file", f"{path}: cluster {info.cluster_id}")


def examine_connection(info: ConnectionInfo, *, timeout: float = 5.0) -> Iterator[Finding]:
    """Check port, certificate, clock and token, in the order in which they can go wrong."""
    problem = find_problem(info, timeout=timeout)
    if isinstance(problem, AuthenticationError):
        yield Finding("port", f"{info.address} answers")
        yield from _examine_certificate(info, timeout)
        yield Finding("token", str(problem), "copy client.json anew from the controller's state directory")
    elif isinstance(problem, CertificateError):
        yield Finding("port", f"{info.address} answers")
        is_clock = "clock" in str(problem)
        mend = "correct the clock: date" if is_clock else "copy client.json anew from the controller"
        yield Finding("certificate", str(problem), mend)
    elif problem is not None:
        yield Finding("port", str(problem), _mend_port(problem))
    else:
        yield Finding("port", f"{info.address} answers")
        yield from _examine_certificate(info, timeout)
        yield Finding("token", "accepted")


def _mend_port(problem: ConnectError) -> str:
    if "cannot be resolved" in str(problem):
        return "enginery controller --advertise ADDRESS, with an address that can be reached from here"
    if "does not answer" in str(problem):
        return "enginery logs, on the controller's machine: it is frozen or overloaded"
    if "no answer" in str(problem):
        return "open the port in the firewall, or enginery controller --bind 0.0.0.0 --advertise ADDRESS"
    return "enginery up"


def _examine_certificate(info: ConnectionInfo, timeout: float) -> Iterator[Finding]:
    """Check how long the server's certificate and its authority still hold; the way there was checked."""
    if info.insecure:
        yield Finding("certificate", "none: the controller runs with --insecure, which only loopback allows")
        return
    host, _, port = info.address.rpartition(":")
    context = ssl.create_default_context(cadata=info.ca_pem)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout) as plain,
            context.wrap_socket(plain, server_hostname=info.server_name) as server,
        ):
            certificate = server.getpeercert()
    except OSError as error:
        yield Finding("certificate", f"the connection broke as it was looked at: {error}", "enginery doctor")
        return
    ends = [certificate, *context.get_ca_certs()]
    left = min(ssl.cert_time_to_seconds(str(one["notAfter"])) for one in ends if one) - time.time()
    text = f"holds for {left / 86_400:.0f} more days"
    if left < _SOON:
        again = "enginery down --keep && enginery up, which issues a new one; then copy connection files anew"
        yield Finding("certificate", text, again)
    else:
        yield Finding("certificate", text)


def examine_controller(response: GetClusterInfoResponse, version: str) -> Iterator[Finding]:
    """Check the controller by what it says of itself. `version` is that of Enginery here."""
    text = f"Enginery {response.enginery_version} on Python {response.python_version}, pid {response.pid}"
    if response.enginery_version != version:
        mend = f"pip install enginery=={response.enginery_version}, or restart the controller with this one"
        yield Finding("controller", f"{text}; this is Enginery {version}", mend)
    else:
        yield Finding("controller", text)
    ahead = response.start_time.ToNanoseconds() / 1e9 - time.time()
    if ahead > _CLOCK:
        text = f"the controller's clock is at least {ahead:.0f} s ahead of this machine's"
        yield Finding("clock", text, "correct the clock of either machine: date")


def examine_engines(engines: Sequence[EngineInfo], python: str) -> Iterator[Finding]:
    """Check the engines that are registered. `python` is the version here, such as `3.11.7`."""
    if not engines:
        yield Finding("engines", "none is registered", "enginery engine -n 4")
        return
    states = ", ".join(f"{engine.engine_id} {engine.state}" for engine in engines[:20])
    yield Finding("engines", f"{len(engines)}: {states}" + (", …" if len(engines) > 20 else ""))
    for engine in engines:
        name = f"engine {engine.engine_id}"
        if engine.state in ("away", "unresponsive"):
            reason = f" ({engine.reason})" if engine.reason else ""
            where = f"{engine.hostname}, pid {engine.pid}"
            mend = "enginery logs, there; it is dropped when its lease ends, then: enginery engine"
            yield Finding(name, f"is {engine.state}{reason}: {where}", mend)
        if engine.last_failure:
            yield Finding(name, f"goes on with a new kernel; the last one died: {engine.last_failure}")
        if _minor(engine.python_version) != _minor(python):
            text = f"runs Python {engine.python_version}, here is {python}: functions sent by value may fail"
            yield Finding(name, text, "start engines with the Python of the client: python -m engine_service")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
