"""Addresses of ports, `host:port`, with `[...]` around an IPv6 address."""

from __future__ import annotations

import re
import socket

WILDCARDS = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104 - recognised, not bound
"""What a port may be bound to that is no address to reach it by."""

_HOST = re.compile(r"\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]|[0-9A-Fa-f:]+|[A-Za-z0-9_.-]+")
_HIGHEST_PORT = 65_535


def split(address: str) -> tuple[str, int | None]:
    """Return host, without brackets, and port of HOST or HOST:PORT; None if it names no port.

    ValueError if it is neither.
    """
    host, port = address, None
    if "]:" in address or address.count(":") == 1:
        host, _, digits = address.rpartition(":")
        port = int(digits) if digits.isascii() and digits.isdigit() else 0
    if _HOST.fullmatch(host) is None or (port is not None and not 0 < port <= _HIGHEST_PORT):
        raise ValueError(f"{address!r} is not HOST or HOST:PORT")
    return host.strip("[]"), port


def port(text: str) -> int:
    """Return the port that a person wrote, 0 for any free one; ValueError if it is none."""
    if (
        not (text.isascii() and text.isdigit() and len(text) <= len(str(_HIGHEST_PORT)))
        or int(text) > _HIGHEST_PORT
    ):
        raise ValueError(f"{text} is not a port (0 to {_HIGHEST_PORT})")
    return int(text)


def is_host_port(address: str) -> bool:
    """Return whether this is HOST:PORT, and nothing else to which gRPC would go, such as a socket."""
    try:
        return split(address)[1] is not None
    except ValueError:
        return False


def join(host: str, port: int) -> str:
    """Return `host:port`; the host of an IPv6 address may have its brackets or not."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def own_towards(address: str) -> str:
    """Return this machine's own address on the way to `address`, `host:port`; its name if there is no way."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, place = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # sends nothing
            return str(probe.getsockname()[0])
    except (OSError, ValueError):  # ValueError: a name that no machine has
        return socket.gethostname()
