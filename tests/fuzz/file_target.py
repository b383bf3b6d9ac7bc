"""Connection files: somebody copies them, edits them, and cuts them short; and they hold a token."""

from __future__ import annotations

import json
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginery import _connection_file
from enginery._channel import open_channel
from enginery.errors import ConnectionFileError
from tests.fuzz import mutator
from tests.fuzz.loop import Loop
from tests.fuzz.rules import FAST, SECRET, BrokenRule, Watch, check_secret

if TYPE_CHECKING:
    from random import Random

    from enginery._connection_file import ConnectionInfo

_FIELDS: dict[str, Any] = {
    "format": 1,
    "role": "client",
    "cluster_id": "c",
    "address": "127.0.0.1:7",
    "server_name": "controller.c.enginery",
    "ca_pem": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "token": SECRET,
    "insecure": False,
    "socket_path": "/x",
    "pid": 3,
    "created": 1.5,
}


class FileTarget:
    """Reads each input as a connection file, and opens a channel by what it says."""

    name = "connection files"
    seeds = (
        json.dumps(_FIELDS, indent=2).encode(),
        json.dumps(_FIELDS | {"role": "engine"}).encode(),
        json.dumps(_FIELDS | {"insecure": True, "socket_path": None}).encode(),
    )

    def __init__(self, watch: Watch) -> None:
        """Make a place for the file."""
        self._watch = watch
        self._loop = Loop(watch)
        self._folder = tempfile.TemporaryDirectory(dir=FAST)
        self._path = Path(self._folder.name) / "client.json"
        self._path.touch(mode=0o600)

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil the JSON."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return mutator.spoil(random, data, other)
        return json.dumps(mutator.spoil_json(random, document)).encode()[: mutator.MAX_INPUT]

    def run(self, data: bytes) -> str:
        """Read this."""
        self._path.write_bytes(data)
        with self._watch.in_time():
            try:
                info = _connection_file.read(self._path, "client")
            except ConnectionFileError as error:
                check_secret(*traceback.format_exception(error))
                if len(str(error)) > 2_000:
                    raise BrokenRule(f"an error of {len(str(error))} characters") from error
                return str(error).replace(str(self._path), "FILE")
            self._loop.run(self._open(info))
        self._watch.check()
        return f"read, insecure {info.insecure}"

    async def _open(self, info: ConnectionInfo) -> None:
        if SECRET not in info.address + info.cluster_id:
            check_secret(repr(info))
        ((_, _value),) = info.metadata
        await open_channel(info).close()

    def close(self) -> None:
        """Take the file away."""
        self._loop.close()
        self._folder.cleanup()
