"""Connection files are private and checked before they are used."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path

import pytest

from enginery._connection_file import ConnectionInfo, read, write
from enginery.errors import ConnectionFileError

INFO = ConnectionInfo(
    "client",
    "cluster",
    "127.0.0.1:7",
    "controller.cluster.enginery",
    "PEM",
    "secret",
    socket_path=Path("/x"),
    pid=3,
)


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read; the path is added; the file is 0600; no temporary file stays."""
    path = tmp_path / "client.json"
    write(path, INFO)
    write(path, INFO)
    assert read(path, "client") == INFO
    assert read(path, "client").path == path
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert INFO.metadata == (("authorization", "Bearer secret"),)


def test_the_token_is_not_shown() -> None:
    """Logs and tracebacks show representations."""
    assert "secret" not in repr(INFO)


def test_missing(tmp_path: Path) -> None:
    """The text names the file and asks the likely question."""
    with pytest.raises(ConnectionFileError, match=r"no connection file .*x\.json: is a controller running"):
        read(tmp_path / "x.json", "client")


def test_readable_by_others(tmp_path: Path) -> None:
    """A file that others can read is refused with the command that mends it."""
    path = tmp_path / "client.json"
    write(path, INFO)
    path.chmod(0o640)
    with pytest.raises(ConnectionFileError, match=r"mode 0640\): chmod 600 "):
        read(path, "client")


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe is refused at once, instead of waiting for somebody who writes into it."""
    path = tmp_path / "client.json"
    os.mkfifo(path, 0o600)
    with pytest.raises(ConnectionFileError, match="is not a file"):
        read(path, "client")


def test_wrong_role(tmp_path: Path) -> None:
    """The other file is named."""
    path = tmp_path / "client.json"
    write(path, INFO)
    with pytest.raises(ConnectionFileError, match=r"role client; use engine\.json"):
        read(path, "engine")


def _without(name: str) -> object:
    return {key: value for key, value in _fields().items() if key != name}


def _fields() -> dict[str, object]:
    texts = {
        "role": "client",
        "cluster_id": "c",
        "address": "h:1",
        "server_name": "n",
        "ca_pem": "p",
        "token": "t",
    }
    return {"format": 1, **texts}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        *(
            json.dumps(fields).encode()
            for fields in (
                _fields() | {"format": 2},
                _fields() | {"role": "admin"},
                _fields() | {"address": "nowhere"},
                _fields() | {"address": 5},
                _fields() | {"address": "h:70000"},
                _fields() | {"address": "unix:/socket:7"},
                _fields() | {"address": "google-c2p:///h:7"},
                _fields() | {"address": "h:\u0663"},
                _fields() | {"address": "h\ud800:1"},
                _fields() | {"ca_pem": "\udfff"},
                _fields() | {"token": ""},
                _fields() | {"token": "two\nlines"},
                _fields() | {"server_name": ""},
                _fields() | {"server_name": "a\0b"},
                _fields() | {"insecure": 1},
                _fields() | {"pid": True},
                _without("token"),
            )
        ),
    ],
)
def test_malformed(tmp_path: Path, content: bytes) -> None:
    """Anything else than a whole connection file is refused by name, without a traceback of ours."""
    path = tmp_path / "client.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConnectionFileError, match=r"is not a connection file"):
        read(path, "client")


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    """A later version may add fields."""
    path = tmp_path / "client.json"
    path.write_text(json.dumps(_fields() | {"later": 1}))
    path.chmod(0o600)
    assert read(path, "client").address == "h:1"


@pytest.mark.parametrize(
    "changed",
    [
        {"token": ["secret"]},
        {"token": {"secret": 1}},
        {"address": "secret"},
        {"role": "secret"},
        {"format": "secret"},
        {"pid": "secret" * 1000},
    ],
)
def test_errors_show_no_values(tmp_path: Path, changed: dict[str, object]) -> None:
    """In a file that was mixed up any value may be the token; and an error is short."""
    path = tmp_path / "client.json"
    path.touch(0o600)
    path.write_text(json.dumps(_fields() | changed))
    with pytest.raises(ConnectionFileError, match=next(iter(changed))) as raised:
        read(path, "client")
    assert "secret" not in "".join(traceback.format_exception(raised.value))
