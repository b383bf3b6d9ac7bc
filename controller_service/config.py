"""Options of the controller."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from controller_service.journal_store import DEFAULT_AGE, DEFAULT_LIMIT
from enginery import _address, _sizes
from enginery._engine import DEFAULT_VALUE_LIMIT
from enginery._logs import FORMATS, LEVELS

DEFAULT_LEASE = 60.0
DEFAULT_WAITING_LIMIT = 256 << 20
PROCESS, POWER = "process", "power"
"""What the journal survives: the end of processes, or the loss of power too."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a controller can be told. Sizes in bytes, times in seconds."""

    state_dir: Path | None = None
    """Where connection files, CA, tokens and port are kept; None means the user's default."""
    port: int | None = None
    """Port to listen on, 0 for any; None means the last one of this state directory, else any."""
    bind: str = "127.0.0.1"
    advertise: str = ""
    """Host, or `host:port`, that others should use; empty means the bound one."""
    insecure: bool = False
    lease: float = DEFAULT_LEASE
    save_ids: bool = False
    value_limit: int = DEFAULT_VALUE_LIMIT
    waiting_limit: int = DEFAULT_WAITING_LIMIT
    journal: bool = True
    """Keep engines and results on disk, so that they outlive the controller."""
    journal_age: float = DEFAULT_AGE
    journal_limit: int = DEFAULT_LIMIT
    durability: str = PROCESS
    temporary: bool = False
    """Remove the state directory at the end."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m controller_service` and `enginery controller`."""
    options = argparse.ArgumentParser(
        prog="enginery controller",
        usage="%(prog)s [options]",
        description="Run a controller: it knows the engines, and passes the calls of clients on to them.",
    )
    options.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where connection files, CA, tokens and port are kept and found again "
        "(default: $ENGINERY_STATE_DIR, else a directory of this user)",
    )
    options.add_argument(
        "--port",
        type=_port,
        metavar="PORT",
        help="port to listen on, 0 for any free one (default: the last one of the state directory)",
    )
    options.add_argument(
        "--bind", default="127.0.0.1", metavar="HOST", help="address to listen on (default: %(default)s)"
    )
    options.add_argument(
        "--advertise",
        type=_reachable,
        metavar="HOST[:PORT]",
        help="address that engines and clients should use (default: that of --bind, or this machine's name "
        "if that is all addresses)",
    )
    options.add_argument(
        "--insecure", action="store_true", help="no TLS; for loopback only (tokens are still required)"
    )
    options.add_argument(
        "--lease",
        type=_seconds,
        default=DEFAULT_LEASE,
        metavar="SECONDS",
        help="how long an engine stays registered without a connection; inf for ever "
        f"(default: {DEFAULT_LEASE:g})",
    )
    options.add_argument(
        "--save-ids", action="store_true", help="never give the id of an engine that left to another"
    )
    options.add_argument(
        "--value-limit",
        type=_size,
        default=DEFAULT_VALUE_LIMIT,
        metavar="SIZE",
        help="largest value that is passed on, in bytes or as 500M or 2G "
        f"(default: {_sizes.show(DEFAULT_VALUE_LIMIT)})",
    )
    options.add_argument(
        "--waiting-limit",
        type=_size,
        default=DEFAULT_WAITING_LIMIT,
        metavar="SIZE",
        help="calls that may wait for replies of one engine, in bytes or as 500M or 2G "
        f"(default: {_sizes.show(DEFAULT_WAITING_LIMIT)})",
    )
    options.add_argument(
        "--no-journal",
        dest="journal",
        action="store_false",
        help="keep no engines and results on disk: results die with their engine's host",
    )
    options.add_argument(
        "--journal-age",
        type=_seconds,
        default=DEFAULT_AGE,
        metavar="SECONDS",
        help=f"how long results are kept; inf for ever (default: {DEFAULT_AGE:g}, a day)",
    )
    options.add_argument(
        "--journal-limit",
        type=_size,
        default=DEFAULT_LIMIT,
        metavar="SIZE",
        help=f"results that are kept, in bytes or as 500M or 2G (default: {_sizes.show(DEFAULT_LIMIT)})",
    )
    options.add_argument(
        "--durability",
        choices=(PROCESS, POWER),
        default=PROCESS,
        help="what the journal survives: the end of processes, or the loss of power too, which takes more time "
        "(default: %(default)s)",
    )
    options.add_argument(
        "--log-level", choices=LEVELS, default="info", help="how much is logged (default: %(default)s)"
    )
    options.add_argument(
        "--log-file", type=Path, metavar="FILE", help="where to log beside stderr (default: one in DIR/logs)"
    )
    options.add_argument(
        "--log-format", choices=FORMATS, default=FORMATS[0], help="how lines look (default: %(default)s)"
    )
    options.add_argument("--life-line", action="store_true", help="stop when standard input ends")
    options.add_argument("--temporary", action="store_true", help="remove the state directory at the end")
    return options


def from_arguments(arguments: argparse.Namespace) -> Config:
    """Return the options that `parser()` read."""
    return Config(
        state_dir=arguments.state_dir,
        port=arguments.port,
        bind=arguments.bind,
        advertise=arguments.advertise or "",
        insecure=arguments.insecure,
        lease=arguments.lease,
        save_ids=arguments.save_ids,
        value_limit=arguments.value_limit,
        waiting_limit=arguments.waiting_limit,
        journal=arguments.journal,
        journal_age=arguments.journal_age,
        journal_limit=arguments.journal_limit,
        durability=arguments.durability,
        temporary=arguments.temporary,
    )


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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan  # it is refused as such
    if math.isnan(seconds) or seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return seconds


def _size(text: str) -> int:
    try:
        return _sizes.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
