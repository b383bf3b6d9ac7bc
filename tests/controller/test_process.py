"""`python -m controller_service`: what it prints, writes and leaves, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from enginery import _connection_file
from enginery._channel import open_channel
from enginery.v1 import cluster_pb2, cluster_pb2_grpc
from tests.controller.fakes import until
from tests.controller.processes import controller_process, finish, start

if TYPE_CHECKING:
    from pathlib import Path


async def test_secure_by_default(tmp_path: Path) -> None:
    """TLS and token on the port, neither on the socket; files are private; the printed line holds no secret."""
    state = tmp_path / "state"
    async with controller_process(state) as cluster:
        welcome = await cluster.host().hello()
        assert welcome.engine_id == 0
        await cluster.cluster.GetClusterInfo(cluster_pb2.GetClusterInfoRequest(), metadata=cluster.metadata)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await cluster.cluster.GetClusterInfo(cluster_pb2.GetClusterInfoRequest())
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        channel = open_channel(cluster.client_info, over_socket=True)
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        info = await stub.GetClusterInfo(cluster_pb2.GetClusterInfoRequest())
        assert (info.pid, info.engine_count) == (cluster.pid, 1)
        await channel.close()
        modes = {
            path.name: path.stat().st_mode & 0o777
            for path in (state, state / "engine.json", state / "client.json")
        }
        assert modes == {"state": 0o700, "engine.json": 0o600, "client.json": 0o600}
        cluster.process.send_signal(signal.SIGTERM)
        code, out, err = await finish(cluster.process)
        assert code == 128 + signal.SIGTERM
        assert "grpcurl -plaintext -unix" in out
        assert "Traceback" not in err
        assert not {cluster.client_info.token, cluster.engine_info.token} & set((out + err).split())
        assert not (state / "client.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_stop_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """An exit code that names the signal, no traceback, and a state directory that serves again."""
    state = tmp_path / "state"

    async def run() -> _connection_file.ConnectionInfo:
        process = start(state, "--insecure")
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        info = _connection_file.read(state / "client.json", "client")
        process.send_signal(number)
        code, _, err = await finish(process)
        assert code == 128 + number, err
        assert "Traceback" not in err
        return info

    first, second = await run(), await run()
    assert (first.address, first.token, first.cluster_id) == (second.address, second.token, second.cluster_id)


async def test_two_controllers_on_one_state_directory(tmp_path: Path) -> None:
    """The second says who has it, and what to do, and exits with 1."""
    async with controller_process(tmp_path / "state") as cluster:
        code, _, err = await finish(start(tmp_path / "state"))
        assert code == 1
        assert f"another controller (pid {cluster.pid})" in err
        assert "Traceback" not in err


async def test_two_controllers_on_one_port(tmp_path: Path) -> None:
    """A port that was asked for and is taken is a clear error; nothing shares it silently."""
    async with controller_process(tmp_path / "first") as cluster:
        port = cluster.client_info.address.rpartition(":")[2]
        code, _, err = await finish(start(tmp_path / "second", "--port", port))
        assert code == 1
        assert f"port {port} of 127.0.0.1 is taken" in err
        assert "Traceback" not in err


async def test_remembered_port_that_is_taken(tmp_path: Path) -> None:
    """The last port of a state directory is a wish: if it is taken, another one serves."""
    state = tmp_path / "state"
    async with controller_process(state) as cluster:
        port = int(cluster.client_info.address.rpartition(":")[2])
    (state / "client.json").unlink()
    with socket.create_server(("127.0.0.1", port)):
        process = start(state)
        await until(lambda: (state / "client.json").exists() or process.poll() is not None)
        process.terminate()
        assert (await finish(process))[0] == 128 + signal.SIGTERM
    assert not _connection_file.read(state / "client.json", "client").address.endswith(f":{port}")


async def test_insecure_is_for_loopback(tmp_path: Path) -> None:
    """--insecure with any other bind is refused."""
    code, _, err = await finish(start(tmp_path / "state", "--insecure", "--bind", "0.0.0.0"))
    assert code == 1
    assert "--insecure is refused" in err


@pytest.mark.parametrize(
    "options",
    [
        ("--port", "70000"),
        ("--lease", "0"),
        ("--value-limit", "-1"),
        ("--advertise", "two words"),
        ("--advertise", "host:0"),
    ],
)
async def test_impossible_options(tmp_path: Path, options: tuple[str, str]) -> None:
    """Options out of range are refused by name."""
    code, _, err = await finish(start(tmp_path / "state", *options))
    assert code == 2
    assert options[0] in err


async def test_life_line_and_temporary(tmp_path: Path) -> None:
    """The end of stdin is the end of the process, and a temporary state directory goes with it."""
    state = tmp_path / "state"
    process = start(state, "--life-line", "--temporary", life_line=True)
    await until(lambda: (state / "client.json").exists() or process.poll() is not None)
    code, out, err = await finish(process)  # closes stdin
    assert (code, out) == (0, ""), err
    assert not state.exists()


def test_imports_neither_codec_nor_pickle_by_value() -> None:
    """A fresh process that imports the controller has neither cloudpickle nor the codec."""
    script = (
        "import sys, controller_service.app, controller_service.__main__\n"
        "bad = {'cloudpickle', 'enginery._codec', 'engine_service'} & set(sys.modules)\n"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
