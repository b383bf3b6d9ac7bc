"""Each fault that the doctor knows is found, named, and comes with what mends it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import socket
import time
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from enginery import _certificates, _doctor
from enginery._certificates import Authority
from enginery._connection_file import write
from enginery._doctor import (
    Finding,
    examine_connection,
    examine_controller,
    examine_directory,
    examine_engines,
    read_connection_file,
)
from enginery._state_dir import StateDirectory
from enginery.engines import EngineInfo
from enginery.v1 import cluster_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from enginery._connection_file import ConnectionInfo

    from .conftest import Served


def fault(findings: Iterable[Finding]) -> Finding:
    """Return the only fault among them."""
    (found,) = [finding for finding in findings if finding.is_fault]
    return found


def names(findings: Iterable[Finding]) -> list[str]:
    return [finding.check for finding in findings]


async def ask(info: ConnectionInfo) -> list[Finding]:
    return await asyncio.to_thread(lambda: list(examine_connection(info)))


@pytest.fixture
def running(state: StateDirectory) -> Iterator[StateDirectory]:
    """A state directory that a controller seems to hold, with a socket that is listened at."""
    state.load_identity()
    state.lock()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state.client_socket))
        listener.listen()
        yield state
    state.unlock()


def test_a_directory_in_order_has_no_fault(running: StateDirectory) -> None:
    """Directory, files and socket are looked at in this order."""
    findings = list(examine_directory(running))
    assert names(findings) == ["state directory", "files", "client.sock"]
    assert not any(finding.is_fault for finding in findings)


def test_no_directory(tmp_path: Path) -> None:
    """Nothing was ever started there."""
    found = fault(examine_directory(StateDirectory(tmp_path / "none")))
    assert "there is none" in found.text
    assert found.mend == f"enginery up --state-dir {tmp_path / 'none'}"


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    """It has to go."""
    (tmp_path / "file").touch(mode=0o700)
    assert fault(examine_directory(StateDirectory(tmp_path / "file"))).mend.startswith("rm ")


def test_a_directory_open_to_others(running: StateDirectory) -> None:
    """Others could exchange the files: nothing else is looked at."""
    running.path.chmod(0o755)
    findings = list(examine_directory(running))
    assert names(findings) == ["state directory"]
    assert fault(findings).mend == f"chmod 700 {running.path}"


@pytest.mark.parametrize("name", ["cluster.json", "client.json"])
def test_a_file_that_others_can_read(running: StateDirectory, name: str) -> None:
    """The command that mends it names the file."""
    path = running.path / name
    path.touch(mode=0o600)
    path.chmod(0o644)
    found = [one for one in examine_directory(running) if one.mend == f"chmod 600 {path}"]
    assert len(found) == 1


def test_a_damaged_cluster_file(running: StateDirectory) -> None:
    """Half a file is not taken for a cluster."""
    (running.path / "cluster.json").write_text('{"cluster_id"')
    assert "cannot be used" in fault(examine_directory(running)).text


def test_no_controller_ever(state: StateDirectory) -> None:
    """A directory without a cluster."""
    assert "no controller was ever started" in fault(examine_directory(state)).text


def test_no_controller_now(state: StateDirectory) -> None:
    """A directory that nobody holds."""
    state.load_identity()
    found = fault(examine_directory(state))
    assert (found.check, found.mend) == ("controller", f"enginery up --state-dir {state.path}")


def test_a_dead_socket(running: StateDirectory) -> None:
    """The socket's file without anybody behind it."""
    assert running.client_socket is not None
    running.client_socket.unlink()
    assert fault(examine_directory(running)).check == "client.sock"


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """Then there is none, which is said."""
    state = StateDirectory(tmp_path / ("long" * 30))
    state.prepare()
    state.load_identity()
    state.lock()
    found = fault(examine_directory(state))
    state.unlock()
    assert "shorter --state-dir" in found.mend


def test_a_connection_file(served: Served, tmp_path: Path) -> None:
    """One in order is read; one that is damaged or missing is to be copied anew."""
    write(tmp_path / "client.json", served.client)
    info, found = read_connection_file(tmp_path / "client.json")
    assert info is not None
    assert not found.is_fault
    (tmp_path / "client.json").write_text("{}")
    info, found = read_connection_file(tmp_path / "client.json")
    assert info is None
    assert "copy it anew" in found.mend


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
    assert (found.check, found.mend) == ("port", "enginery up")


async def test_a_name_that_nobody_knows(served: Served) -> None:
    """The address that the controller advertises is no address here."""
    found = fault(await ask(dataclasses.replace(served.client, address="no-such-host.invalid:1")))
    assert "--advertise" in found.mend


async def test_another_authority(served: Served, tmp_path: Path) -> None:
    """Another cluster has the port now."""
    other = Authority.load_or_create(tmp_path)
    found = fault(await ask(dataclasses.replace(served.client, ca_pem=other.ca_pem)))
    assert (found.check, found.mend) == ("certificate", "copy client.json anew from the controller")


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


async def test_a_certificate_that_ends_soon(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still holds, and the controller is to issue another."""
    monkeypatch.setattr(_doctor, "_SOON", 740 * 86_400)
    found = fault(await ask(served.client))
    assert "more days" in found.text
    assert "issues a new one" in found.mend


async def test_a_wrong_token(served: Served) -> None:
    """The certificate is right, the token is not."""
    found = fault(await ask(dataclasses.replace(served.client, token="old")))
    assert found.check == "token"
    assert "client.json" in found.mend


def _info(**more: object) -> cluster_pb2.GetClusterInfoResponse:
    return cluster_pb2.GetClusterInfoResponse(enginery_version="1.2", python_version="3.11.7", pid=7, **more)  # type: ignore[arg-type]


def test_the_controllers_version_and_clock() -> None:
    """Another version of Enginery, and a controller that started in the future."""
    assert not any(finding.is_fault for finding in examine_controller(_info(), "1.2"))
    assert "pip install enginery==1.2" in fault(examine_controller(_info(), "1.3")).mend
    ahead = _info()
    ahead.start_time.FromSeconds(int(time.time()) + 4_000)
    assert fault(examine_controller(ahead, "1.2")).check == "clock"


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


def test_engines() -> None:
    """None, one that is away, one of another Python; a kernel that died and was replaced is no fault."""
    assert fault(examine_engines([], "3.11.7")).mend == "enginery engine -n 4"
    assert not any(one.is_fault for one in examine_engines([_engine(last_failure="SIGSEGV")], "3.11.9"))
    assert (
        "is away" in fault(examine_engines([_engine(state="away", reason="its stream broke")], "3.11.7")).text
    )
    assert "runs Python 3.11.7" in fault(examine_engines([_engine()], "3.13.0")).text
