"""Options of the commands that start a cluster, and the start itself with its progress."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from enginery._launch import Launched, LaunchOptions, default_engines
from enginery.cli.common import err, plural

if TYPE_CHECKING:
    from enginery.client import Client

_Level = Literal["debug", "info", "warning", "error"]
_C = "Controller"
_E = "Engines"


def _option(text: str, *flags: str, panel: str | None = None, default: str | bool = True, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, show_default=default, **more)


N = Annotated[int | None, _option("How many engines.", "-n", default="one per CPU", min=0, metavar="N")]
Port = Annotated[
    int | None,
    _option(
        "Port of the controller.", panel=_C, default="the last one, else free", min=0, max=65535, metavar="PORT"
    ),
]
Bind = Annotated[
    str | None,
    _option("Address that the controller listens on.", panel=_C, default="127.0.0.1", metavar="HOST"),
]
Advertise = Annotated[
    str | None,
    _option("Address that others should use.", panel=_C, default="that of --bind", metavar="HOST[:PORT]"),
]
Insecure = Annotated[bool, _option("No TLS; tokens stay. For loopback only.", "--insecure", panel=_C)]
Lease = Annotated[
    float | None,
    _option("How long a lost engine keeps its id.", panel=_C, default="60", min=0, metavar="SECONDS"),
]
SaveIds = Annotated[
    bool, _option("Never give the id of an engine that left to another.", "--save-ids", panel=_C)
]
WaitingLimit = Annotated[
    int | None,
    _option("Calls that wait for an engine's replies.", panel=_C, default="256 MiB", min=1, metavar="BYTES"),
]
Property = Annotated[
    list[str] | None,
    _option(
        "A property of the engines: JSON, else text. Repeatable.", "--property", panel=_E, metavar="KEY=VALUE"
    ),
]
ExecLine = Annotated[
    list[str] | None, _option("Code that each engine runs at start. Repeatable.", panel=_E, metavar="CODE")
]
ExecFile = Annotated[
    list[Path] | None,
    _option(
        "File that each engine runs at start. Repeatable.",
        panel=_E,
        exists=True,
        dir_okay=False,
        metavar="FILE",
    ),
]
OutputLimit = Annotated[
    int | None,
    _option("Output kept per call and stream.", panel=_E, default="64 MiB", min=1, metavar="BYTES"),
]
QueueLimit = Annotated[
    int | None,
    _option("How many calls may wait on an engine.", panel=_E, default="10000", min=1, metavar="CALLS"),
]
QueueBytes = Annotated[
    int | None,
    _option("Calls that may wait on an engine.", panel=_E, default="256 MiB", min=1, metavar="BYTES"),
]
StoreLimit = Annotated[
    int | None,
    _option(
        "All large values held for an engine.", panel=_E, default="twice --value-limit", min=1, metavar="BYTES"
    ),
]
Direct = Annotated[bool, _option("Whether hosts open a port of their own.", "--direct/--no-direct", panel=_E)]
ValueLimit = Annotated[
    int | None, _option("Largest value that is taken or given.", default="4 GiB", min=1, metavar="BYTES")
]
LogLevel = Annotated[_Level | None, _option("How much is logged.", default="info")]
Timeout = Annotated[float, _option("In which all engines must be there.", min=0, metavar="SECONDS")]


def options(
    n: int | None,
    *,
    port: int | None,
    bind: str | None,
    advertise: str | None,
    insecure: bool,
    lease: float | None,
    save_ids: bool,
    properties: list[str] | None,
    exec_line: list[str] | None,
    exec_file: list[Path] | None,
    output_limit: int | None,
    queue_limit: int | None,
    queue_bytes: int | None,
    store_limit: int | None,
    direct: bool,
    value_limit: int | None,
    waiting_limit: int | None,
    log_level: _Level | None,
) -> LaunchOptions:
    """Return the options of a cluster from those of the command line."""
    return LaunchOptions(
        n=default_engines() if n is None else n,
        port=port,
        bind=bind,
        advertise=advertise,
        insecure=insecure,
        lease=lease,
        save_ids=save_ids,
        value_limit=value_limit,
        output_limit=output_limit,
        queue_limit=queue_limit,
        queue_bytes=queue_bytes,
        store_limit=store_limit,
        direct=direct,
        waiting_limit=waiting_limit,
        properties=dict(_property(text) for text in properties or ()),
        exec_lines=exec_line or (),
        exec_files=[file.absolute() for file in exec_file or ()],
        log_level=log_level,
    )


def _property(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--property")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def start(launched: Launched, timeout: float) -> Client:
    """Start the processes, show progress on a terminal, and return a client once all engines are registered.

    Errors as in `Launched`; the caller stops what runs.
    """
    deadline = time.monotonic() + timeout
    wanted = launched.options.n
    launched.start()
    with err.status(f"starting a controller and {plural(wanted, 'engine')}") as progress:
        from enginery.client import connect  # only now: the processes come up while this imports gRPC

        info = launched.wait_for_controller(deadline)
        client = connect(info.path, timeout=max(1.0, deadline - time.monotonic()))
        try:

            def count() -> int:
                found = len(client.ids)
                progress.update(f"{found} of {plural(wanted, 'engine')}")
                return found

            launched.wait_for_engines(count, deadline)
        except BaseException:
            client.close()
            raise
    return client
