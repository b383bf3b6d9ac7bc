"""How a kernel is started, and what it is told of that."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine_service.kernel_messages import Start
from enginery._engine import DEFAULT_VALUE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from enginery._encoded import Encoded


STARTUP_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How a kernel is started. Sizes in bytes, times in seconds.

    `shell` is `python` or `ipython`. With `mpi` it is a process of an MPI job, which nothing can replace.
    `value_limit` is the largest value that an operation may return. `exec_lines` and then `exec_files` run
    before it is ready; one that raises is a failed start.
    """

    engine_id: int = -1
    value_limit: int = DEFAULT_VALUE_LIMIT
    startup_timeout: float = STARTUP_TIMEOUT
    directory: Path | None = None
    shell: str = "python"
    mpi: bool = False
    exec_lines: tuple[str, ...] = ()
    exec_files: tuple[Path, ...] = ()
    properties: Mapping[str, Encoded] = field(default_factory=dict)


def describe_start(options: KernelOptions) -> Start:
    """Return what a kernel with these options is told first, by this host."""
    return Start(
        engine_id=options.engine_id,
        host_pid=os.getpid(),
        value_limit=options.value_limit,
        shell=options.shell,
        mpi=options.mpi,
        exec_lines=options.exec_lines,
        exec_files=tuple(str(file.absolute()) for file in options.exec_files),
        properties=options.properties,
    )


def mpi_descriptors() -> tuple[int, ...]:
    """Return what MPI's launcher left open for its process; not all of them do."""
    text = os.environ.get("PMI_FD", "")
    return (int(text),) if text.isdecimal() else ()
