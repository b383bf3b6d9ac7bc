"""Options of the engine host, and what they mean."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from enginery import _address, _logs, _sizes
from enginery._encoded import Codec, Encoded
from enginery._engine import DEFAULT_VALUE_LIMIT, MAX_SECONDS
from enginery._state_dir import VARIABLE, StateDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHELLS = ("python", "ipython")
DEFAULT_OUTPUT_LIMIT = 64 << 20
DEFAULT_QUEUE_LIMIT = 10_000
DEFAULT_QUEUE_BYTES = 256 << 20
DEFAULT_DRAIN_GRACE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """How an engine host runs. Sizes in bytes, times in seconds."""

    connection_file: Path
    n: int = 1
    engine_id: int | None = None
    properties: Mapping[str, Encoded] = field(default_factory=dict)
    mpi: bool = False
    shell: str = "python"
    exec_lines: tuple[str, ...] = ()
    exec_files: tuple[Path, ...] = ()
    output_limit: int = DEFAULT_OUTPUT_LIMIT
    value_limit: int = DEFAULT_VALUE_LIMIT
    store_limit: int | None = None
    queue_limit: int = DEFAULT_QUEUE_LIMIT
    queue_bytes: int = DEFAULT_QUEUE_BYTES
    memory_limit: int | None = None
    drain_grace: float = DEFAULT_DRAIN_GRACE
    orphan_timeout: float | None = None
    direct: bool = True
    bind: str = "127.0.0.1"
    advertise: str | None = None
    port: int = 0
    log_level: str = "info"
    log_format: str = "human"
    log_file: Path | None = None
    life_line: bool = False


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="enginery engine",
        usage="%(prog)s [options]",
        description="Serve Python engines. They register with a controller, or wait until there is one.",
    )
    made.add_argument(
        "-n", "--engines", dest="n", type=_positive, default=1, help="number of engines (default: 1)"
    )
    where = made.add_argument_group("which controller")
    where.add_argument(
        "--connection-file", type=Path, metavar="FILE", help="engine.json of the controller; may appear later"
    )
    where.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help=f"state directory that holds engine.json (default: ${VARIABLE}, else per user)",
    )
    where.add_argument(
        "--engine-id", type=_natural, metavar="ID", help="id to ask for, if it is free; with one engine only"
    )
    where.add_argument(
        "--mpi",
        action="store_true",
        help="be a process of an MPI job: mpiexec -n 4 enginery engine --mpi. Its rank is the id to ask for, "
        "and mpi4py's MPI the engine's variable mpi",
    )
    start = made.add_argument_group("what engines start with")
    start.add_argument(
        "--property",
        dest="properties",
        metavar="KEY=VALUE",
        type=_property,
        action="append",
        default=[],
        help="a property of every engine; VALUE is JSON, or else text. May be repeated",
    )
    start.add_argument(
        "--shell",
        choices=SHELLS,
        default="python",
        help="what runs code: ipython takes magics, ? and ! too; it needs IPython here (default: python)",
    )
    start.add_argument(
        "--exec-line", dest="exec_lines", action="append", default=[], metavar="CODE", help="run CODE first"
    )
    start.add_argument(
        "--exec-file",
        dest="exec_files",
        type=_file,
        action="append",
        default=[],
        metavar="FILE",
        help="run FILE first, after all --exec-line",
    )
    limits = made.add_argument_group("limits of each engine")
    limits.add_argument(
        "--queue-limit",
        type=_positive,
        default=DEFAULT_QUEUE_LIMIT,
        metavar="CALLS",
        help=f"calls that may wait (default: {DEFAULT_QUEUE_LIMIT:,})",
    )
    for name, default, text in (
        ("memory-limit", None, "resident memory at which the kernel is killed, before the machine swaps"),
        ("output-limit", DEFAULT_OUTPUT_LIMIT, "output kept of one operation, displays included"),
        ("value-limit", DEFAULT_VALUE_LIMIT, "largest value that may be uploaded or returned"),
        ("queue-bytes", DEFAULT_QUEUE_BYTES, "bytes of calls that may wait"),
        ("store-limit", None, "all uploaded and returned values together"),
    ):
        if default is not None:
            otherwise = _sizes.show(default)
        else:
            otherwise = "twice --value-limit" if name == "store-limit" else "none"
        limits.add_argument(
            f"--{name}", type=_size, default=default, metavar="SIZE", help=f"{text} (default: {otherwise})"
        )
    leaving = made.add_argument_group("when it leaves")
    leaving.add_argument(
        "--drain-grace",
        type=_seconds,
        metavar="SECONDS",
        help="what runs gets so long to end after SIGINT or SIGTERM; a second one stops it at once "
        f"(default: {DEFAULT_DRAIN_GRACE:g}; with --mpi 0, since mpiexec kills what is left a second later)",
    )
    leaving.add_argument(
        "--orphan-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="leave after so long without a controller, as batch jobs should (default: never)",
    )
    port = made.add_argument_group(
        "the host's own port, for direct calls; TLS and the client's token as everywhere"
    )
    port.add_argument(
        "--bind", default="127.0.0.1", metavar="HOST", help="address to listen at (default: 127.0.0.1)"
    )
    port.add_argument(
        "--port", type=_port, default=0, metavar="PORT", help="port to listen at (default: any free one)"
    )
    port.add_argument(
        "--advertise",
        type=_reachable,
        metavar="HOST[:PORT]",
        help="address that clients should use (default: that of --bind, or the one by which this machine "
        "reaches the controller if that is all addresses)",
    )
    port.add_argument("--no-direct", dest="direct", action="store_false", help="open no port")
    logs = made.add_argument_group("logs")
    logs.add_argument(
        "--log-level", choices=_logs.LEVELS, default="info", help="how much is logged (default: info)"
    )
    logs.add_argument(
        "--log-format",
        choices=_logs.FORMATS,
        default="human",
        help="for people, or JSON lines (default: human)",
    )
    logs.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="where to log beside stderr (default: in logs/ beside a local connection file)",
    )
    logs.add_argument("--life-line", action="store_true", help="stop when standard input ends")
    return made


def parse(arguments: Sequence[str] | None = None) -> HostConfig:
    """Return what the command line says; SystemExit with a message if it is wrong."""
    made = parser()
    options = vars(made.parse_args(arguments))
    state_dir = options.pop("state_dir")
    if options["connection_file"] is None:
        options["connection_file"] = StateDirectory(state_dir).engine_file
    elif state_dir is not None:
        made.error("--connection-file and --state-dir say the same: give one of them")
    if options["engine_id"] is not None and options["n"] != 1:
        made.error("--engine-id is for one engine, not several")
    if options["drain_grace"] is None:
        options["drain_grace"] = 0.0 if options["mpi"] else DEFAULT_DRAIN_GRACE
    if options["mpi"]:
        if options["n"] != 1 or options["engine_id"] is not None:
            made.error("--mpi is one engine whose id is its rank: without -n and --engine-id")
        if find_spec("mpi4py") is None:
            made.error("--mpi needs mpi4py on this machine: pip install 'enginery[mpi]'")
    if options["shell"] == "ipython" and find_spec("IPython") is None:
        made.error("--shell ipython needs IPython on this machine: pip install 'enginery[ipython]'")
    options["properties"] = dict(options["properties"])
    options["exec_lines"] = tuple(options["exec_lines"])
    options["exec_files"] = tuple(options["exec_files"])
    return HostConfig(**options)


def _reachable(text: str) -> str:
    try:
        _address.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _port(text: str) -> int:
    try:
        return _address.port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> int:
    value = _whole(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _natural(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _size(text: str) -> int:
    try:
        return _sizes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if math.isnan(value) or not 0 <= value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and {MAX_SECONDS:g} s")
    return value


def _property(text: str) -> tuple[str, Encoded]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        plain = json.loads(value, parse_constant=_no_constant)
    except ValueError:
        plain = value
    return key, Encoded(Codec.JSON, (json.dumps(plain).encode(),))


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path.resolve()
