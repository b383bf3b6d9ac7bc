"""The commands and how they end: exit codes, one line for an error, a traceback only for a defect."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

import typer

from enginery._channel import prepare_grpc
from enginery.errors import EngineryError

prepare_grpc()

from enginery.cli import (  # noqa: E402 - they may import gRPC
    attach,
    cancel,
    console,
    doctor,
    down,
    execute,
    logs,
    ops,
    protos,
    run_script,
    status,
    up,
)
from enginery.cli.common import Terminated, interrupt  # noqa: E402

app = typer.Typer(
    name="enginery",
    help="Live Python engines behind a gRPC contract.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON)
def controller() -> NoReturn:
    """Run a controller in the foreground. See [bold]enginery controller --help[/bold]."""
    raise AssertionError("enginery.cli.main hands this on")


@app.command(context_settings=_PASS_ON)
def engine() -> NoReturn:
    """Run engines in the foreground; they wait for a controller. See [bold]enginery engine --help[/bold]."""
    raise AssertionError("enginery.cli.main hands this on")


app.command()(up.up)
app.command()(down.down)
app.command()(status.status)
app.command()(logs.logs)
app.command("exec")(execute.execute)
app.command()(ops.ops)
app.command()(attach.attach)
app.command()(cancel.cancel)
app.command()(console.console)
app.command()(doctor.doctor)
app.command()(protos.protos)
app.command("run", context_settings={"ignore_unknown_options": True})(run_script.run)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    """Take what stands before the command."""
    if version:
        from enginery import __version__

        print(f"enginery {__version__}")
        raise typer.Exit


def _terminate(number: int, _frame: object) -> NoReturn:
    raise Terminated(number)


def run() -> int:
    """Run the command line; return its exit code: 2 wrong usage, 1 an error, 130 and 143 signals."""
    signal.signal(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - for the rest of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # engines print what this locale may not have
    code = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough, as `head` has; typer ends with 1 as well then
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return code


def _run() -> int:
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except EngineryError as error:
        print("\n".join([f"enginery: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Terminated as end:
        return 128 + end.number
    return 0
