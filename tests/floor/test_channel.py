"""Settings that gRPC reads once."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys

import grpc.aio
import pytest

from enginery import _channel
from enginery._connection_file import ConnectionInfo

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, INITIAL_WINDOW = 4, 4  # of HTTP/2: a kind of frame, and a setting
NAMES = ("ENABLE_FORK_SUPPORT", "VERBOSITY", "DNS_RESOLVER", "EXPERIMENTS")
SHOW = (
    "import sys; from enginery._channel import prepare_grpc; prepare_grpc(); assert 'grpc' not in sys.modules; "
    f"import os; print(*(os.environ['GRPC_' + n] for n in {NAMES}))"
)


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")} | more


def test_defaults_are_set_before_grpc_is_imported() -> None:
    """All are there, and nothing imported grpc."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "ERROR", "native", "-event_engine_client,-event_engine_listener"]


def test_what_the_user_set_stays() -> None:
    """Environment variables win over our defaults."""
    mine = ("1", "DEBUG", "ares", "mine")
    env = environment(**{f"GRPC_{name}": value for name, value in zip(NAMES, mine, strict=True)})
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(mine)


def test_experiments_only_where_they_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gRPC might not know the names and complain."""
    monkeypatch.setattr(_channel, "_EXPERIMENTS_KNOWN", ((0, 1), (0, 2)))
    assert not _channel._experiments_known()


def test_no_socket_in_the_file() -> None:
    """Asking for a socket that the file does not name is the caller's error."""
    with pytest.raises(ValueError, match="names no socket"):
        _channel.open_channel(ConnectionInfo("client", "c", "h:1", "n", "", "t"), over_socket=True)


async def first_settings(reader: asyncio.StreamReader) -> dict[int, int]:
    """Return what the other end of an HTTP/2 connection says of itself first."""
    head = await asyncio.wait_for(reader.readexactly(9), 10)
    size, kind = int.from_bytes(head[:3], "big"), head[3]
    assert kind == SETTINGS
    return dict(struct.iter_unpack(">HI", await reader.readexactly(size)))


async def test_a_client_lets_a_message_come_at_once() -> None:
    """Else a message of more than 64 KiB would wait for the way there and back."""
    seen: asyncio.Future[dict[int, int]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PREFACE))
        seen.set_result(await first_settings(reader))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        info = ConnectionInfo("client", "c", address, "n", "", "t", insecure=True)
        async with _channel.open_channel(info) as channel:
            channel.get_state(try_to_connect=True)
            assert (await asyncio.wait_for(seen, 10))[INITIAL_WINDOW] == _channel.WINDOW


async def test_a_server_lets_a_message_come_at_once() -> None:
    """The same of what is sent to it."""
    server = grpc.aio.server(options=_channel.SERVER_OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]))
    assert (await first_settings(reader))[INITIAL_WINDOW] == _channel.WINDOW
    writer.close()
    await server.stop(None)
