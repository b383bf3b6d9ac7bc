"""Options of the commands that start a cluster, and the start itself with its progress."""

from __future__ import annotations

import functools
import inspect
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from enginery import _sizes, launchers
from enginery._launch import Launched, LaunchOptions, connected
from enginery.cli.common import err, plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginery.client import Client

_Level = Literal["debug", "info", "warning", "error"]
_Format = Literal["human", "json"]
_Shell = Literal["python", "ipython"]
_Durability = Literal["process", "power"]
_CONTROLLER = "Controller"
_ENGINES = "Engines"


def _size(text: str) -> int:
    try:
        return _sizes.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _option(
    kind: Any, text: str, *flags: str, panel: str | None = None, default: str | bool = False, **more: Any
) -> Any:
    """Return a type for typer: `kind`, and what the help says. `default` is what None stands for."""
    if kind is bool:
        return Annotated[bool, typer.Option(*flags, help=text, rich_help_panel=panel, **more)]
    return Annotated[
        kind | None, typer.Option(*flags, help=text, rich_help_panel=panel, show_default=default, **more)
    ]


_controller = functools.partial(_option, panel=_CONTROLLER)
_engines = functools.partial(_option, panel=_ENGINES)
_size_option: Any = {"parser": _size, "metavar": "SIZE"}

# By name of LaunchOptions: the type for typer. One that is not given is None, or what LaunchOptions has.
_OPTIONS: dict[str, Any] = {
    "n": _option(int, "How many engines.", "-n", default="one per CPU", min=0, metavar="N"),
    "value_limit": _option(int, "Largest value that is taken or given.", default="4 GiB", **_size_option),
    "log_level": _option(_Level, "How much is logged.", default="info"),
    "log_format": _option(_Format, "How logs are written.", default="human"),
    "port": _controller(
        int, "Port of the controller.", default="the last one, else free", min=0, max=65535, metavar="PORT"
    ),
    "bind": _controller(str, "Address that the controller listens on.", default="127.0.0.1", metavar="HOST"),
    "advertise": _controller(
        str,
        "Address that others should use.",
        default="that of --bind, or this machine's name",
        metavar="HOST[:PORT]",
    ),
    "insecure": _controller(bool, "No TLS; tokens stay. For loopback only.", "--insecure"),
    "lease": _controller(
        float, "How long an engine without a connection keeps its id.", default="60", min=0, metavar="SECONDS"
    ),
    "save_ids": _controller(bool, "Never give the id of an engine that left to another.", "--save-ids"),
    "journal": _controller(
        bool, "Whether the controller keeps engines and results on disk.", "--journal/--no-journal"
    ),
    "journal_age": _controller(
        float, "How long it keeps a result.", default="86400, a day", min=0, metavar="SECONDS"
    ),
    "journal_limit": _controller(int, "All results together that it keeps.", default="1 GiB", **_size_option),
    "durability": _controller(
        _Durability, "What results survive: the end of the process, or of power too.", default="process"
    ),
    "waiting_limit": _controller(
        int, "Calls that wait for an engine's replies.", default="256 MiB", **_size_option
    ),
    "shell": _engines(_Shell, "What runs code: ipython takes magics, ? and ! too.", default="python"),
    "properties": _engines(
        list[str], "A property of the engines: JSON, else text. Repeatable.", "--property", metavar="KEY=VALUE"
    ),
    "exec_lines": _engines(
        list[str], "Code that each engine runs at start. Repeatable.", "--exec-line", metavar="CODE"
    ),
    "exec_files": _engines(
        list[Path],
        "File that each engine runs at start. Repeatable.",
        "--exec-file",
        exists=True,
        dir_okay=False,
        metavar="FILE",
    ),
    "memory_limit": _engines(
        int, "Resident memory at which a kernel is killed.", default="none", **_size_option
    ),
    "output_limit": _engines(int, "Output kept of each call.", default="64 MiB", **_size_option),
    "queue_limit": _engines(
        int, "How many calls may wait on an engine.", default="10000", min=1, metavar="CALLS"
    ),
    "queue_bytes": _engines(int, "Calls that may wait on an engine.", default="256 MiB", **_size_option),
    "store_limit": _engines(
        int, "All large values held for an engine.", default="twice --value-limit", **_size_option
    ),
    "drain_grace": _engines(
        float, "What runs when engines are stopped has so long to end.", default="5", min=0, metavar="SECONDS"
    ),
    "orphan_timeout": _engines(
        float, "Engines that find no controller for so long end.", default="never", min=0, metavar="SECONDS"
    ),
    "direct": _engines(bool, "Whether hosts open a port of their own.", "--direct/--no-direct"),
}


def _place(text: str) -> str:
    try:
        launchers.check(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


On = Annotated[
    str | None,
    typer.Option(
        help="Where engines run: dask://HOST:PORT, or dask+tls://, is a Dask scheduler.",
        show_default="this machine",
        parser=_place,
        metavar="URL",
    ),
]
Timeout = Annotated[float, typer.Option(help="In which all engines must be there.", min=0, metavar="SECONDS")]


def takes_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a cluster in the place of its parameter `settings`, a LaunchOptions.

    `defaults` are those of the command, where the services' own do not fit it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            command(settings=_settings(defaults, {name: given.pop(name) for name in _OPTIONS}), **given)

        own = inspect.signature(command, eval_str=True).parameters.values()
        fields = inspect.signature(LaunchOptions).parameters
        kept = [parameter for parameter in own if parameter.name != "settings"]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=fields[name].default if isinstance(fields[name].default, bool) else None,
                annotation=annotation,
            )
            for name, annotation in _OPTIONS.items()
        ]
        parameters = added + [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer goes by it
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _settings(defaults: dict[str, Any], given: dict[str, Any]) -> LaunchOptions:
    said = {name: value for name, value in given.items() if value is not None}
    said["properties"] = dict(_property(text) for text in said.get("properties", ()))
    said["exec_files"] = [file.absolute() for file in said.get("exec_files", ())]
    return LaunchOptions(**{**defaults, **said})


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
    with err.status("starting a controller and engines") as progress:
        launched.start(deadline)
        progress.update(f"starting a controller and {plural(launched.engines, 'engine')}")
        from enginery.client import connect  # only now: the processes come up while this imports gRPC

        info = launched.wait_for_controller(deadline)
        with launched.connecting():
            client = connect(info.path, timeout=max(1.0, deadline - time.monotonic()))
        try:

            def count() -> int:
                found = connected(client.engines)
                progress.update(f"{found} of {plural(launched.engines, 'engine')}")
                return found

            launched.wait_for_engines(count, deadline)
        except BaseException:
            client.close()
            raise
    return client
