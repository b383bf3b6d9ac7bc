"""Each way in which a connection fails has an exception and a text of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from enginery import _certificates
from enginery._certificates import Authority
from enginery._diagnose import diagnose
from enginery.errors import AuthenticationError, CertificateError, ConnectError, ControllerNotRunning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginery._connection_file import ConnectionInfo

    from .conftest import Served


async def ask(info: ConnectionInfo, timeout: float = 5.0) -> ConnectError:
    return await asyncio.to_thread(diagnose, info, timeout=timeout)


async def test_no_controller(served: Served) -> None:
    """Nothing listens: ControllerNotRunning, with the address and the file."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    info = dataclasses.replace(served.client, address=f"127.0.0.1:{port}", path=Path("client.json"))
    error = await ask(info)
    assert type(error) is ControllerNotRunning
    assert f"127.0.0.1:{port} (from client.json)" in str(error)
    assert "enginery up" in str(error)


async def test_unknown_host_name(served: Served) -> None:
    """A name that cannot be resolved is said to be one."""
    error = await ask(dataclasses.replace(served.client, address="no-such-host.invalid:1"))
    assert type(error) is ControllerNotRunning
    assert "cannot be resolved" in str(error)


async def test_wrong_token(served: Served) -> None:
    """The controller answers, but not to this token."""
    error = await ask(dataclasses.replace(served.client, token="old"))
    assert type(error) is AuthenticationError
    assert "token" in str(error)


async def test_role_that_may_not(served: Served) -> None:
    """A token of the wrong role is an authentication matter too, and the text names the role."""
    error = await ask(dataclasses.replace(served.client, token=served.engine.token))
    assert type(error) is AuthenticationError
    assert "role engine" in str(error)


async def test_another_authority(served: Served, tmp_path: Path) -> None:
    """Another cluster listens on the port now."""
    other = Authority.load_or_create(tmp_path)
    error = await ask(dataclasses.replace(served.client, ca_pem=other.ca_pem))
    assert type(error) is CertificateError
    assert "not signed by this cluster's authority" in str(error)


async def test_another_name(served: Served) -> None:
    """The authority is right but the server is not the controller."""
    error = await ask(dataclasses.replace(served.client, server_name="controller.other.enginery"))
    assert type(error) is CertificateError
    assert "is not the controller of cluster" in str(error)


async def test_damaged_authority_in_the_file(served: Served) -> None:
    """A PEM that is none is said to be damaged."""
    error = await ask(dataclasses.replace(served.client, ca_pem="nonsense"))
    assert type(error) is CertificateError
    assert "damaged" in str(error)


@pytest.mark.parametrize(("days", "words"), [(-800, "has expired"), (+30, "not valid yet")])
async def test_certificate_out_of_its_time(
    served: Served, monkeypatch: pytest.MonkeyPatch, days: int, words: str
) -> None:
    """An expired certificate, and one from a clock ahead, are told apart, and the clock is mentioned."""
    shifted = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    authority = Authority.load_or_create(served.state.path)
    monkeypatch.setattr(_certificates, "_now", lambda: shifted)
    server = grpc.aio.server()
    pair = authority.issue_server(served.client.server_name)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    error = await ask(dataclasses.replace(served.client, address=f"127.0.0.1:{port}"))
    await server.stop(0)
    assert type(error) is CertificateError
    assert words in str(error)
    assert "clock" in str(error)


@pytest.fixture
def mute() -> Iterator[str]:
    """A program that accepts connections and answers nonsense."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(b"SSH-2.0-OpenSSH\r\n" * 4)
                while connection.recv(4096):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


async def test_another_program(served: Served, mute: str) -> None:
    """What does not speak TLS is no controller of ours."""
    error = await ask(dataclasses.replace(served.client, address=mute))
    assert type(error) is CertificateError
    assert "does not speak TLS" in str(error)


async def test_tls_where_the_file_says_plaintext(served: Served) -> None:
    """The file is from a controller with --insecure, the controller is not."""
    error = await ask(dataclasses.replace(served.client, insecure=True))
    assert type(error) is CertificateError
    assert "speaks TLS but the connection file says plaintext" in str(error)


async def test_all_is_well(served: Served) -> None:
    """If the trouble is over, the text says so."""
    error = await ask(served.client)
    assert type(error) is ConnectError
    assert "try again" in str(error)
