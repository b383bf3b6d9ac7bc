"""Settings that gRPC reads once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from enginery import _channel
from enginery._connection_file import ConnectionInfo

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
