"""What is wrong with a cluster, found out from outside: checks in order, each with the command that mends it.

A check that fails ends the examination if those after it would only say the same in other words.
"""

from __future__ import annotations

import shlex
import socket
import ssl
import time
from typing import TYPE_CHECKING

from enginery import _connection_file
from enginery._diagnose import find_problem
from enginery._finding import COPY_ANEW, Finding, make_private
from enginery.errors import AuthenticationError, CertificateError, ConnectError, ConnectionFileError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from enginery._connection_file import ConnectionInfo
    from enginery.engines import EngineInfo
    from enginery.v1.cluster_pb2 import GetClusterInfoResponse

_SOON = 30 * 86_400  # seconds before the end of a certificate at which it is a fault
_CLOCK = 60.0  # seconds by which clocks may differ


def read_connection_file(path: Path, again: str) -> tuple[ConnectionInfo | None, Finding]:
    """Return what client.json says, and what was found. `again` is how one gets another."""
    try:
        info = _connection_file.read(path, "client")
    except ConnectionFileError as error:
        text = str(error)
        if isinstance(error.__cause__, PermissionError):
            text, again = text.partition(": chmod ")[0], make_private(path, "600")
        elif path.name == "engine.json" and path.with_name("client.json").is_file():
            again = f"enginery doctor --file {shlex.quote(str(path.with_name('client.json')))}"
        return None, Finding("connection file", text, again)
    return info, Finding("connection file", f"{path}: cluster {info.cluster_id}")


def examine_connection(info: ConnectionInfo, again: str, *, timeout: float = 5.0) -> Iterator[Finding]:
    """Check port, certificate, clock and token, in the order in which they can go wrong.

    `again` mends a connection file that leads elsewhere: it is written or copied anew.
    """
    problem = find_problem(info, timeout=timeout)
    if isinstance(problem, AuthenticationError):
        yield Finding("port", f"{info.address} answers")
        yield from _examine_certificate(info, timeout)
        yield Finding("token", str(problem), again)
    elif isinstance(problem, CertificateError):
        yield Finding("port", f"{info.address} answers")
        is_time = "clock" in str(problem)
        mend = f"correct the clock if `date` is wrong; else, on the controller's machine: {_RESTART}"
        yield Finding("certificate", str(problem), mend if is_time else again)
    elif problem is not None:
        yield Finding("port", str(problem), _mend_port(problem, again))
    else:
        yield Finding("port", f"{info.address} answers")
        yield from _examine_certificate(info, timeout)
        yield Finding("token", "accepted")


_RESTART = "enginery down --keep && enginery up, which issues a new one"
_OPEN = "enginery up --bind 0.0.0.0 --advertise HOST, on the controller's machine, with its name or address"


def _mend_port(problem: ConnectError, again: str) -> str:
    text = str(problem)
    if "cannot be resolved" in text:
        return f"{_OPEN}, as it is known here"
    if "cannot be reached" in text:
        return "enter its network, or change `address` to that of a tunnel: ssh -L PORT:127.0.0.1:PORT HOST"
    if "no answer" in text:
        return f"open the port in the firewall, or: {_OPEN}"
    if again != COPY_ANEW:
        return again
    if "does not answer" in text:
        return f"enginery doctor, on the controller's machine; if all is well there: {COPY_ANEW}"
    if "is this machine" in text:
        return f"{_OPEN}; then {COPY_ANEW}"
    return f"enginery up, on the controller's machine; if it runs there: {COPY_ANEW}"


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
        text = f"the connection broke as it was looked at: {error}"
        yield Finding("certificate", text, "enginery doctor", hides_others=False)
        return
    ends = [certificate, *context.get_ca_certs()]
    left = min(ssl.cert_time_to_seconds(str(one["notAfter"])) for one in ends if one) - time.time()
    text = f"holds for {left / 86_400:.0f} more days"
    if left < _SOON:
        mend = f"{_RESTART}; then copy connection files anew"
        yield Finding("certificate", text, mend, hides_others=False)
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
    if response.HasField("current_time"):
        ahead = response.current_time.ToNanoseconds() / 1e9 - time.time()
        if abs(ahead) > _CLOCK:
            way = "ahead of" if ahead > 0 else "behind"
            text = f"the controller's clock is {abs(ahead):.0f} s {way} this machine's"
            yield Finding("clock", text, "date, on both machines, and correct the clock that is wrong")


def examine_engines(
    engines: Sequence[EngineInfo], silent: Collection[int], version: str, python: str
) -> Iterator[Finding]:
    """Check the engines that are registered, of which those of `silent` do not answer.

    `version` is that of Enginery here, `python` that of Python, such as `3.11.7`.
    """
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
        elif engine.engine_id in silent:
            text = f"its host does not answer: it is frozen or overloaded, or its network is: {engine.hostname}"
            mend = (
                f"if it was stopped there: kill -CONT $(ps -o ppid= {engine.pid}); enginery logs may say more"
            )
            yield Finding(name, text, mend)
        if engine.last_failure:
            yield Finding(name, f"goes on with a new kernel; the last one died: {engine.last_failure}")
        if engine.enginery_version not in ("", version):
            text = f"its host runs Enginery {engine.enginery_version}, here is {version}"
            yield Finding(name, text, f"pip install enginery=={version}, there, and start its host anew")
        if _minor(engine.python_version) != _minor(python):
            text = f"runs Python {engine.python_version}, here is {python}: functions sent by value may fail"
            yield Finding(name, text, "start engines with the Python of the client: python -m engine_service")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
