"""Each fault that the doctor knows is found, named, and comes with what mends it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import errno
import socket
import time
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from enginery import _certificates, _doctor
from enginery._certificates import Authority
from enginery._connection_file import ConnectionInfo, write
from enginery._diagnose import find_silent
from enginery._doctor import examine_connection, examine_controller, examine_engines, read_connection_file
from enginery._finding import COPY_ANEW
from enginery.engines import EngineInfo
from enginery.v1 import cluster_pb2, engine_pb2, engine_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from enginery._finding import Finding

    from .conftest import Served


def fault(findings: Iterable[Finding]) -> Finding:
    """Return the only fault among them."""
    (found,) = [finding for finding in findings if finding.is_fault]
    return found


def names(findings: Iterable[Finding]) -> list[str]:
    return [finding.check for finding in findings]


AGAIN = "get another"


async def ask(info: ConnectionInfo, timeout: float = 5.0) -> list[Finding]:
    return await asyncio.to_thread(lambda: list(examine_connection(info, AGAIN, timeout=timeout)))


def test_a_connection_file(served: Served, tmp_path: Path) -> None:
    """One in order is read; each fault has its own remedy."""
    path = tmp_path / "client.json"
    write(path, served.client)
    info, found = read_connection_file(path, AGAIN)
    assert info is not None
    assert not found.is_fault
    path.chmod(0o644)
    assert read_connection_file(path, AGAIN)[1].mend == f"chmod 600 {path}"
    path.chmod(0o600)
    path.write_text("{}")
    info, found = read_connection_file(path, AGAIN)
    assert info is None
    assert found.mend == AGAIN
    write(tmp_path / "engine.json", dataclasses.replace(served.client, role="engine"))
    found = read_connection_file(tmp_path / "engine.json", AGAIN)[1]
    assert found.mend == f"enginery doctor --file {path}"
    assert read_connection_file(tmp_path / "none.json", AGAIN)[1].mend == AGAIN


async def test_a_connection_in_order(served: Served) -> None:
    """Port, certificate and token are looked at in this order."""
    findings = await ask(served.client)
    assert names(findings) == ["port", "certificate", "token"]
    assert not any(finding.is_fault for finding in findings)


async def test_nobody_listens(served: Served) -> None:
    """A port that is closed."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    found = fault(await ask(dataclasses.replace(served.client, address=f"127.0.0.1:{port}")))
    assert (found.check, found.mend) == ("port", AGAIN)


async def test_a_copied_file_that_leads_to_the_own_machine(served: Served) -> None:
    """The controller that wrote it takes calls from its own machine alone."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        info = dataclasses.replace(served.client, address=f"127.0.0.1:{unused.getsockname()[1]}")
        found = next(iter(await asyncio.to_thread(lambda: list(examine_connection(info, COPY_ANEW)))))
    assert "127.0.0.1 is this machine" in found.text
    assert "--advertise" in found.mend


async def test_no_way_there(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that this machine is not in is not taken for a controller that does not run."""

    def connect(*_: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket, "create_connection", connect)
    found = fault(await ask(served.client))
    assert "cannot be reached from here (No route to host)" in found.text
    assert "tunnel" in found.mend


async def test_what_listens_says_nothing(served: Served) -> None:
    """A frozen controller, whose port is still open, or another program: not called a wrong certificate."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        found = fault(await ask(dataclasses.replace(served.client, address=address), timeout=0.2))
    assert found.check == "port"
    assert "does not answer" in found.text


@pytest.mark.parametrize("name", ["no-such-host.invalid", "x" * 300])
async def test_a_name_that_nobody_knows(served: Served, name: str) -> None:
    """The address that the controller advertises is no address here, or nowhere."""
    found = fault(await ask(dataclasses.replace(served.client, address=f"{name}:1")))
    assert "--advertise" in found.mend


async def test_another_authority(served: Served, tmp_path: Path) -> None:
    """Another cluster has the port now."""
    other = Authority.load_or_create(tmp_path)
    found = fault(await ask(dataclasses.replace(served.client, ca_pem=other.ca_pem)))
    assert (found.check, found.mend) == ("certificate", AGAIN)


@pytest.mark.parametrize(("days", "words"), [(-800, "has expired"), (+30, "not valid yet")])
async def test_a_certificate_out_of_its_time(
    served: Served, monkeypatch: pytest.MonkeyPatch, days: int, words: str
) -> None:
    """One that has ended, and one of a clock ahead."""
    shifted = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    authority = Authority.load_or_create(served.state.path)
    monkeypatch.setattr(_certificates, "_now", lambda: shifted)
    server = grpc.aio.server()
    pair = authority.issue_server(served.client.server_name)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    findings = await ask(dataclasses.replace(served.client, address=f"127.0.0.1:{port}"))
    await server.stop(0)
    found = next(finding for finding in findings if finding.check == "certificate")
    assert found.is_fault
    assert words in found.text
    assert found.mend.startswith("correct the clock if `date` is wrong; else")


async def test_a_certificate_that_ends_soon(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still holds, and the controller is to issue another."""
    monkeypatch.setattr(_doctor, "_SOON", 740 * 86_400)
    found = fault(await ask(served.client))
    assert "more days" in found.text
    assert "issues a new one" in found.mend


async def test_a_wrong_token(served: Served) -> None:
    """The certificate is right, the token is not."""
    found = fault(await ask(dataclasses.replace(served.client, token="old")))
    assert (found.check, found.mend) == ("token", AGAIN)


def _info(**more: object) -> cluster_pb2.GetClusterInfoResponse:
    return cluster_pb2.GetClusterInfoResponse(enginery_version="1.2", python_version="3.11.7", pid=7, **more)  # type: ignore[arg-type]


def test_the_controllers_version_and_clock() -> None:
    """Another version of Enginery, and a clock that is wrong, either way."""
    assert not any(finding.is_fault for finding in examine_controller(_info(), "1.2"))
    assert "pip install enginery==1.2" in fault(examine_controller(_info(), "1.3")).mend
    for seconds, words in ((-4_000, "behind"), (0, ""), (4_000, "ahead")):
        info = _info()
        info.current_time.FromSeconds(int(time.time()) + seconds)
        found = [one for one in examine_controller(info, "1.2") if one.is_fault]
        assert [one.check for one in found] == ["clock"] * bool(words)
        assert all(words in one.text for one in found)


def _engine(**more: object) -> EngineInfo:
    settings: dict[str, object] = {
        "engine_id": 0,
        "incarnation": "",
        "state": "ready",
        "hostname": "here",
        "ip": "127.0.0.1",
        "port": 1,
        "pid": 2,
        "registered_at": dt.datetime.now(dt.UTC),
        "python_version": "3.11.7",
    }
    return EngineInfo(**settings | more)  # type: ignore[arg-type]


def _examined(engine: EngineInfo, *silent: int, python: str = "3.11.9") -> list[Finding]:
    return [one for one in examine_engines([engine], silent, "1.2", python) if one.is_fault]


def test_engines() -> None:
    """None, one that is away, a silent one, other versions; a kernel that was replaced is no fault."""
    assert fault(examine_engines([], (), "1.2", "3.11.7")).mend == "enginery engine -n 4"
    assert not _examined(_engine(last_failure="SIGSEGV", enginery_version="1.2"))
    assert "is away" in fault(_examined(_engine(state="away", reason="its stream broke"))).text
    assert "does not answer" in fault(_examined(_engine(), 0)).text
    assert "runs Python 3.11.7" in fault(_examined(_engine(), python="3.13.0")).text
    assert "runs Enginery 1.1" in fault(_examined(_engine(enginery_version="1.1"))).text


async def test_engines_whose_host_is_silent() -> None:
    """A frozen host is found before its heartbeats are missed."""

    class Engines(engine_pb2_grpc.EngineServiceServicer):
        async def GetId(self, request: object, context: Any) -> engine_pb2.GetIdResponse:  # noqa: N802
            if ("enginery-engine-id", "1") in tuple(context.invocation_metadata()):
                await asyncio.sleep(60)
            return engine_pb2.GetIdResponse()

    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(Engines(), server)  # type: ignore[abstract]
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    info = ConnectionInfo("client", "", address, server_name="", ca_pem="", token="-", insecure=True)
    assert await asyncio.to_thread(find_silent, info, [0, 1, 2], timeout=0.3) == [1]
    await server.stop(0)
