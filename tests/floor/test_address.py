"""Addresses: taken apart and put together."""

from __future__ import annotations

import socket

import pytest

from enginery import _address


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("here", ("here", None)),
        ("here:7", ("here", 7)),
        ("10.0.0.1:65535", ("10.0.0.1", 65_535)),
        ("fd00::1", ("fd00::1", None)),
        ("[fd00::1]", ("fd00::1", None)),
        ("[fd00::1]:7", ("fd00::1", 7)),
        ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
    ],
)
def test_parts(address: str, parts: tuple[str, int | None]) -> None:
    """A name, an IPv4 or an IPv6 address, with or without a port."""
    assert _address.split(address) == parts
    if parts[1] is not None:
        assert _address.join(parts[0], parts[1]) == address


@pytest.mark.parametrize(
    "address", ["", ":7", "here:", "here:0", "here:65536", "here:x", "two words", "https://here"]
)
def test_no_address(address: str) -> None:
    """What is none is refused."""
    with pytest.raises(ValueError, match="is not HOST or HOST:PORT"):
        _address.split(address)


@pytest.mark.parametrize(
    "address",
    ["here", "unix:/socket:7", "unix:socket:7", "xds:///here:7", "dns://10.0.0.1/here:7", "here:7/x", "[x]:7"],
)
def test_no_address_of_a_port(address: str) -> None:
    """What gRPC would take for a socket, or for the name of another resolver, is none."""
    assert not _address.is_host_port(address)


def test_brackets_are_not_doubled() -> None:
    """An IPv6 host that has its brackets keeps them."""
    assert _address.join("[::1]", 7) == "[::1]:7"


def test_own_address() -> None:
    """Loopback is reached from loopback; where there is no way, there is the name."""
    assert _address.own_towards("127.0.0.1:7") == "127.0.0.1"
    assert _address.own_towards("[::]:7") in {"::1", "::", socket.gethostname()}
    for nowhere in ("no-such-name.invalid:7", "..:7", "here:x"):
        assert _address.own_towards(nowhere) == socket.gethostname()
