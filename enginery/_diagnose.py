"""Why a connection fails: gRPC says UNAVAILABLE for nearly everything, so this asks socket and TLS."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import time
from typing import TYPE_CHECKING

from enginery._channel import CLIENT_OPTIONS
from enginery._methods import ENGINE_ID_KEY
from enginery.errors import AuthenticationError, CertificateError, ConnectError, ControllerNotRunning

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc

    from enginery._connection_file import ConnectionInfo

_PROBE = "/enginery.v1.ClusterService/GetClusterInfo"
_ASK = "/enginery.v1.EngineService/GetId"
# OpenSSL's verify codes
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62


def diagnose(info: ConnectionInfo, *, timeout: float = 5.0) -> ConnectError:
    """Return the exception that says why a client cannot use the controller of `info`: see `find_problem`.

    If all is well by now, the exception says so.
    """
    again = ConnectError(f"the controller at {_where(info)} can be reached by now: try again")
    return find_problem(info, timeout=timeout) or again


def find_problem(info: ConnectionInfo, *, timeout: float = 5.0) -> ConnectError | None:
    """Return the exception that says why a client cannot use the controller of `info`, None if it can.

    Tells apart: nothing listens, another program or plaintext, wrong or expired certificate or clock, wrong
    token. Blocks for up to about `timeout` seconds a step.
    """
    host, _, port = info.address.rpartition(":")
    where = _where(info)
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), timeout)
    except (socket.gaierror, UnicodeError) as error:  # a UnicodeError: no name can be like that
        return ControllerNotRunning(f"the name in {where} cannot be resolved: {error}")
    except TimeoutError:
        return ControllerNotRunning(
            f"no answer from {where} within {timeout:g} s: the machine is down, or a firewall is in between; "
            "a controller on another machine needs --bind and --advertise"
        )
    except OSError as error:
        if not isinstance(error, ConnectionRefusedError):  # such as no route to there
            return ControllerNotRunning(
                f"{where} cannot be reached from here ({error.strerror or error}): the network is down, a "
                "firewall is in between, or the address is not for this machine"
            )
        return ControllerNotRunning(
            f"no controller runs at {where}: {error.strerror or error}; start one with `enginery up`, "
            f"or use its current connection file{_loopback_hint(host)}"
        )
    with plain:
        problem = _plaintext_problem(plain, where) if info.insecure else _tls_problem(plain, info, where)
    return problem or _call_problem(info, where, timeout)


def _loopback_hint(host: str) -> str:
    """Say what a file that was copied to another machine leads to, if it names the machine itself."""
    if host.strip("[]") not in ("127.0.0.1", "::1", "localhost"):
        return ""
    return f" ({host} is this machine: a controller on another one needs --bind and --advertise)"


def _where(info: ConnectionInfo) -> str:
    return f"{info.address} (from {info.path})" if info.path else info.address


def _tls_problem(plain: socket.socket, info: ConnectionInfo, where: str) -> ConnectError | None:
    try:
        context = ssl.create_default_context(cadata=info.ca_pem)
    except (ssl.SSLError, ValueError) as error:
        return CertificateError(f"the authority's certificate in {info.path} is damaged: {error}")
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(plain, server_hostname=info.server_name).close()
    except ssl.SSLCertVerificationError as error:
        return CertificateError(_certificate_text(error, info, where))
    except TimeoutError:
        return ConnectError(
            f"{where} accepts connections but does not answer: what listens there is frozen or overloaded, "
            "or is another program"
        )
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        return CertificateError(
            f"{where} does not speak TLS ({reason}): another program listens there, or the "
            "controller was started anew with --insecure; use its current connection file"
        )
    return None


def _certificate_text(error: ssl.SSLCertVerificationError, info: ConnectionInfo, where: str) -> str:
    now = dt.datetime.now().astimezone()
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate of {where} has expired, or the clock of this machine ({now:%Y-%m-%d %H:%M %Z}) "
            "is ahead: correct the clock, or restart the controller, which issues a new one"
        )
    if error.verify_code == _NOT_YET_VALID or info.created > time.time() + 86_400:
        return (
            f"the certificate of {where} is not valid yet: the clock of this machine ({now:%Y-%m-%d %H:%M %Z}) "
            "or of the controller's is wrong"
        )
    if error.verify_code == _WRONG_NAME:
        return f"{where} is not the controller of cluster {info.cluster_id}: use its current connection file"
    return (
        f"the certificate of {where} is not signed by this cluster's authority ({error.verify_message}): "
        "another cluster or program listens there now; use its current connection file"
    )


def _plaintext_problem(plain: socket.socket, where: str) -> ConnectError | None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: the question is only whether TLS is spoken
    context.set_alpn_protocols(["h2"])
    try:
        context.wrap_socket(plain).close()
    except OSError:
        return None
    return CertificateError(
        f"{where} speaks TLS but the connection file says plaintext: the controller was started anew without "
        "--insecure; use its current connection file"
    )


def _open(info: ConnectionInfo) -> grpc.Channel:
    import grpc

    if info.insecure:
        return grpc.insecure_channel(info.address, options=CLIENT_OPTIONS)
    credentials = grpc.ssl_channel_credentials(info.ca_pem.encode())
    override = ("grpc.ssl_target_name_override", info.server_name)
    return grpc.secure_channel(info.address, credentials, options=[*CLIENT_OPTIONS, override])


def find_silent(info: ConnectionInfo, engine_ids: Iterable[int], *, timeout: float = 3.0) -> list[int]:
    """Return those of the engines whose hosts do not answer a question within `timeout` seconds."""
    import grpc

    with _open(info) as channel:
        ask = channel.unary_unary(_ASK, request_serializer=bytes, response_deserializer=bytes)
        asked = {
            engine_id: ask.future(
                b"", timeout=timeout, metadata=(*info.metadata, (ENGINE_ID_KEY, str(engine_id)))
            )
            for engine_id in engine_ids
        }
        return [
            engine_id
            for engine_id, answer in asked.items()
            if answer.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # waits for the answer
        ]


def _call_problem(info: ConnectionInfo, where: str, timeout: float) -> ConnectError | None:
    import grpc

    with _open(info) as channel:
        probe = channel.unary_unary(_PROBE, request_serializer=bytes, response_deserializer=bytes)
        try:
            probe(b"", timeout=timeout, metadata=info.metadata, wait_for_ready=True)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return AuthenticationError(f"the controller at {where} refused the token: {details}")
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return ConnectError(f"{where} accepts connections but does not answer within {timeout:g} s")
            return ConnectError(f"the controller at {where} does not serve clients ({code.name}: {details})")
    return None
