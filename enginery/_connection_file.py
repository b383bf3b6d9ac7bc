"""Connection files: all that an engine host or a client needs to reach one controller, in one private file.

`engine.json` may only register engines, `client.json` may only use them. A file can be copied to another
machine; it is the whole credential.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginery import _address
from enginery._files import read_private, write_private
from enginery.errors import ConnectionFileError

Role = Literal["engine", "client"]

_WORD = re.compile(r"[!-~]+")  # ASCII that is seen: whatever else breaks metadata and TLS in odd ways

FORMAT = 1
"""Version of the file. A reader refuses others."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What a connection file says. `path` is where it was read from and is not part of it."""

    role: Role
    cluster_id: str
    address: str
    """`host:port` of the controller, as others should use it."""
    server_name: str
    """Name that the controller's certificate bears, whatever the address."""
    ca_pem: str
    """Certificate of the cluster's authority, PEM; empty if `insecure`."""
    token: str
    insecure: bool = False
    """True if the controller speaks plaintext."""
    socket_path: Path | None = None
    """The controller's Unix socket; client role only, and of use on its machine only."""
    pid: int = 0
    """Process id of the controller that wrote the file."""
    created: float = 0.0
    """When that was, Unix seconds."""
    path: Path | None = dataclasses.field(default=None, compare=False)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata that every call carries."""
        return (("authorization", f"Bearer {self.token}"),)

    def __repr__(self) -> str:
        """Show all but the secrets."""
        return f"ConnectionInfo({self.role}, {self.cluster_id}, {self.address}, path={self.path})"


def read(path: Path | str, role: Role) -> ConnectionInfo:
    """Return what the file at `path` says.

    Raises ConnectionFileError, whose text says what to do, if the file is missing, malformed, made for another
    role, owned by another user, or readable by others.
    """
    path = Path(path)
    try:
        data = read_private(path)
    except FileNotFoundError:
        raise ConnectionFileError(f"there is no connection file {path}: is a controller running?") from None
    except OSError as error:
        raise ConnectionFileError(f"the connection file cannot be trusted: {error}") from error
    try:
        info = _parse(json.loads(data), path)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConnectionFileError(
            f"{path} is not a connection file ({reason}): copy it again from the controller"
        ) from error
    if info.role != role:
        raise ConnectionFileError(f"{path} is for the role {info.role}; use {role}.json beside it")
    return info


def _parse(fields: object, path: Path) -> ConnectionInfo:
    """Errors name fields, and show no values: in a file that was mixed up any of them may be the token."""
    if not isinstance(fields, dict):
        raise TypeError("not a JSON object")
    if fields.get("format") != FORMAT:
        raise ValueError(f"its format is another than {FORMAT}")
    known: dict[str, object] = {}
    for field in dataclasses.fields(ConnectionInfo):
        if field.name == "path" or (field.name not in fields and field.default is not dataclasses.MISSING):
            continue
        value = fields[field.name]
        expected = _TYPES[field.name]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise TypeError(f"{field.name} is a {type(value).__name__}")
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{field.name} is no text")  # JSON can spell halves of characters
        known[field.name] = value
    if known["role"] not in ("engine", "client"):
        raise ValueError("role is neither engine nor client")
    if not _address.is_host_port(str(known["address"])):
        raise ValueError("address is not host:port")
    for name in ("token", "server_name") if not known.get("insecure") else ("token",):
        if not _WORD.fullmatch(str(known[name])):
            raise ValueError(f"{name} is empty, or has characters that none has")
    socket = known.pop("socket_path", None)
    return ConnectionInfo(**known, socket_path=Path(str(socket)) if socket else None, path=path)  # type: ignore[arg-type]


_TYPES: dict[str, type | tuple[type, ...]] = {
    "role": str,
    "cluster_id": str,
    "address": str,
    "server_name": str,
    "ca_pem": str,
    "token": str,
    "insecure": bool,
    "socket_path": (str, type(None)),
    "pid": int,
    "created": (int, float),
}


def write(path: Path, info: ConnectionInfo) -> None:
    """Write `info` to `path`, atomically and with mode 0600."""
    fields = {
        field.name: getattr(info, field.name) for field in dataclasses.fields(info) if field.name != "path"
    }
    fields["socket_path"] = str(info.socket_path) if info.socket_path else None
    write_private(path, json.dumps({"format": FORMAT, **fields}, indent=2).encode() + b"\n")
