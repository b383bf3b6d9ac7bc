"""What host and kernel say to each other. `kernel_wire` turns it into frames and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enginery._encoded import Codec, Encoded, Stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enginery.errors import RaisedError

Transferred = Encoded | Stored


@dataclass(frozen=True, slots=True)
class Start:
    """What a kernel is told first: who it is, its limits in bytes, and what to run before it is ready."""

    engine_id: int
    host_pid: int
    value_limit: int
    shell: str
    mpi: bool
    exec_lines: tuple[str, ...]
    exec_files: tuple[str, ...]
    properties: Mapping[str, Encoded]


@dataclass(frozen=True, slots=True)
class Ready:
    """What a kernel says once it can run commands."""

    python_version: str
    properties: dict[str, Encoded]
    rank: int = -1
    """Its rank in an MPI job, -1 without."""


@dataclass(slots=True)  # a frozen one takes a few microseconds more for each call
class Command:
    """One call for the kernel.

    `method` is the name as Python spells it, such as `push_function`. Names in `values`: `apply` has `function`
    (unless `function_name` is set) and `arguments`; `push` and `push_function` have `namespace`;
    `push_serialized` and `set_properties` have one for each key.
    """

    method: str
    operation_id: bytes
    engine_id: int
    number: int = 0
    code: str = ""
    function_name: str = ""
    keys: tuple[str, ...] = ()
    values: tuple[tuple[str, Transferred], ...] = ()
    accept: tuple[Codec, ...] = ()
    inline_limit: int = 1 << 20
    is_task: bool = False
    """It may be handed over before the kernel has answered the task before it; functions use captured names."""
    digest: bytes = b""
    """Names the function: the kernel keeps the one that came with it in `values`, and then needs it no more."""
    forgets: bool = False
    """The kernel drops all functions that it keeps by digest, before it takes that of this call."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far running code says that it is: a fraction from 0 to 1, and a text."""

    fraction: float
    text: str


@dataclass(frozen=True, slots=True)
class DisplayData:
    """One displayed object: its forms by MIME type, `text/plain` among them, and hints as JSON.

    The host notes in `blob_ids` which forms have become blobs.
    """

    data: Mapping[str, str | bytes]
    metadata: Mapping[str, object] = field(default_factory=dict)
    blob_ids: dict[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Shown:
    """An object that running code displays; the kernel waits until the host acknowledges the number."""

    number: int
    display: DisplayData


@dataclass(frozen=True, slots=True)
class Failure:
    """What user code raised; the contract's RemoteError without what only the host knows.

    `category` is the contract's without its prefix: USER, INTERRUPTED, SERIALIZATION,
    RESOURCE or REJECTED.
    """

    errors: tuple[RaisedError, ...]
    traceback: str
    category: str = "USER"
    pickled: Encoded | None = None


@dataclass(slots=True)
class Reply:
    """What came of a command.

    `values` has `value` for `execute` and `apply`, `namespace` for `pull` and `pull_function`, and the keys for
    `pull_serialized`. `displays` has what the last expression displays; all else that was displayed or written
    came before. `started_at` is Unix time, `duration` seconds. `properties` is every property there is, only if
    one changed. `was_revoked` says that the command never began; then there is nothing else.
    """

    failure: Failure | None = None
    values: dict[str, Transferred] = field(default_factory=dict)
    text: str | None = None
    pretty: str | None = None
    value_error: str | None = None
    keys: tuple[str, ...] = ()
    displays: list[DisplayData] = field(default_factory=list)
    started_at: float = 0.0
    duration: float = 0.0
    properties: dict[str, Encoded] | None = None
    was_revoked: bool = False
    acknowledgement: int = 0
    """Number by which the kernel waits to learn that its output was read, 0 if it does not."""

    def close(self) -> None:
        """Close the files of stored values that nobody took over."""
        for value in self.values.values():
            if isinstance(value, Stored):
                value.close()
