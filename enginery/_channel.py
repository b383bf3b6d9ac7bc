"""gRPC settings that every process shares, and how a channel to a controller is opened.

`prepare_grpc()` must run before the first `import grpc` of a process, so this module imports grpc only in its
functions. Each number below was measured; the comment beside it says what goes wrong without it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc.aio

    from enginery._connection_file import ConnectionInfo

Options = list[tuple[str, int | str]]

MAX_MESSAGE = 8 << 20
"""Largest message that is received, in bytes. Ours stay below 4 MiB, gRPC's default in every other language."""

WINDOW = 2 << 20
"""Bytes of a stream that may be on their way, or wait to be read: 10 MB a second where the way takes 0.2 s.
More costs the controller memory, several times as much for each transfer."""

_COMMON: Options = [
    ("grpc.keepalive_time_ms", 10_000),
    # The documented timeout never fires in today's core; this undocumented one does. Without it a frozen peer
    # is noticed after 70 s instead of 15.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),  # sets TCP_USER_TIMEOUT: lost packets
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_http_proxy", 0),  # clusters export http_proxy, and gRPC would obey it
    ("grpc.http2.bdp_probe", 0),  # its pings cost more than they find on a local network
    # What may be on its way, unread, on a stream. With HTTP/2's 64 KiB every larger message waits for the way
    # there and back once more, and 1 MiB is the most that a far link carries in that time.
    ("grpc.http2.lookahead_bytes", WINDOW),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
]

SERVER_OPTIONS: Options = [
    *_COMMON,
    # The server drops clients that ping more often; the name without `recv` is the one that works.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.so_reuseport", 0),  # or two controllers silently share a port
    ("grpc.max_concurrent_streams", 4_096),  # waiting calls must not keep an interrupt out
]

CLIENT_OPTIONS: Options = [
    *_COMMON,
    ("grpc.http2.max_pings_without_data", 0),  # no limit: idle streams must notice a dead peer too
    ("grpc.use_local_subchannel_pool", 1),  # each channel has a connection of its own: bulk apart from calls
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    (
        "grpc.max_reconnect_backoff_ms",
        5_000,
    ),  # the default lets a client wait two minutes for a restarted server
]

_EXPERIMENTS = "-event_engine_client,-event_engine_listener"
_ours: set[str] = set()  # variables that the user had not set
_EXPERIMENTS_KNOWN = ((1, 80), (1, 86))  # first version that was measured, first that was not


def prepare_grpc() -> None:
    """Set environment defaults that gRPC reads when it is imported. What the user set stays."""
    if "grpc" in sys.modules:
        return
    # User code and the launchers fork; gRPC's fork handlers print noise then, and have crashed the child.
    _set_default("GRPC_ENABLE_FORK_SUPPORT", "0")
    _set_default("GRPC_VERBOSITY", "ERROR")
    # Names as the rest of the system resolves them. gRPC's own resolver knows no mDNS, and waits for minutes
    # for a name server that does not answer although the name is in /etc/hosts.
    _set_default("GRPC_DNS_RESOLVER", "native")
    if _experiments_known():
        # Halves the round trip. Unknown names would make gRPC complain, hence the guard.
        _set_default("GRPC_EXPERIMENTS", _EXPERIMENTS)


def _set_default(name: str, value: str) -> None:
    if name not in os.environ:
        os.environ[name] = value
        _ours.add(name)


def environment() -> dict[str, str]:
    """Return the environment for another program: without what `prepare_grpc` set for this one.

    Kernels get this, since user code may use gRPC in its own way; so do services, which would else take for the
    user's what was ours.
    """
    return {name: value for name, value in os.environ.items() if name not in _ours}


def _experiments_known() -> bool:
    """Read the version from grpc's own file: importlib.metadata would cost every start 20 ms."""
    spec = importlib.util.find_spec("grpc")
    if spec is None or spec.origin is None:
        return False
    text = Path(spec.origin).with_name("_grpcio_metadata.py").read_text()
    found = re.search(r"(\d+)\.(\d+)", text)
    return found is not None and _EXPERIMENTS_KNOWN[0] <= (int(found[1]), int(found[2])) < _EXPERIMENTS_KNOWN[1]


def open_channel(
    info: ConnectionInfo, *, over_socket: bool = False, options: Sequence[tuple[str, int | str]] = ()
) -> grpc.aio.Channel:
    """Return a channel to the controller of `info`; nothing is connected yet.

    TLS checks the cluster's CA and its fixed name, so the address may be an IP, a tunnel or a port forward.
    `over_socket` uses `info.socket_path` instead, which is plaintext and needs no token. Every call must carry
    `info.metadata`. `options` are added last and win.
    """
    prepare_grpc()
    import grpc
    import grpc.aio

    if over_socket:
        if info.socket_path is None:
            raise ValueError(f"the connection file {info.path} names no socket")
        socket_options = [*CLIENT_OPTIONS, ("grpc.default_authority", "localhost"), *options]
        return grpc.aio.insecure_channel(f"unix:{info.socket_path}", options=socket_options)
    if info.insecure:
        return grpc.aio.insecure_channel(info.address, options=[*CLIENT_OPTIONS, *options])
    credentials = grpc.ssl_channel_credentials(root_certificates=info.ca_pem.encode())
    override = ("grpc.ssl_target_name_override", info.server_name)
    return grpc.aio.secure_channel(info.address, credentials, options=[*CLIENT_OPTIONS, override, *options])
