"""enginery exec."""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from enginery._engine import MAX_SECONDS
from enginery.cli.common import StateDir, Terminated, find_cluster, plural
from enginery.cli.operations import Follower, describe, hint
from enginery.errors import EngineryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from enginery.client import Client
    from enginery.operation import Operation

_STOPPING = 3.0  # seconds that interrupted code has to end before the command goes


def execute(
    code: Annotated[
        str, typer.Argument(help="Python source; - reads it from stdin.", show_default=False, metavar="CODE")
    ],
    targets: Annotated[
        str, typer.Option("-t", "--targets", metavar="IDS", help="all, one id, or several as 0,2.")
    ] = "all",
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0,
            max=MAX_SECONDS,
            metavar="SECONDS",
            show_default="none",
            help="Stop code that runs for longer.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Leave it running, and print the ids of the operations.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Run code on engines and print what each printed, and the value of the last expression.

    Ctrl-C interrupts the code. A closed terminal leaves it running: see [bold]enginery ops[/bold].

    The exit code is 1 if an engine failed; on one engine it says how, as that of [bold]enginery attach[/bold].
    """
    from enginery.client import connect

    source = sys.stdin.read() if code == "-" else code
    with connect(find_cluster(state_dir).client_file, errors="wrap") as client:
        ids = client.ids if targets == "all" else _ids(targets)
        if not ids:
            raise EngineryError("no engine is registered: start one by `enginery engine`")
        engines = [client[engine_id] for engine_id in ids]  # all are there, before the first gets its call
        _warn(client, ids)
        operations = [engine.execute(source, timeout=timeout, block=False) for engine in engines]
        if detach:
            for operation in operations:
                operation.info()  # its engine has it
                print(operation.operation_id)
            return
        try:
            exit_code = _show(operations)
        except (KeyboardInterrupt, Terminated) as end:
            if not isinstance(end, Terminated) or end.number != signal.SIGHUP:
                _stop(operations, state_dir)
            raise
    raise typer.Exit(exit_code)


def _warn(client: Client, ids: Sequence[int]) -> None:
    """Say why nothing will happen for now."""
    for engine in client.engines:
        if engine.state == "away" and engine.engine_id in ids:
            print(f"enginery: engine {engine.engine_id} is away, its call waits for it", file=sys.stderr)


def _show(operations: Sequence[Operation[Any]]) -> int:
    """Print what they do: one as it goes, several one after the other. Return the exit code."""
    if len(operations) == 1:
        return Follower().follow(operations[0])
    failed = False
    for operation in operations:
        label = f"[{operation.engine_id}] "
        error = operation.exception()
        _lines(label, operation.stdout, sys.stdout)
        value = None if error is not None else operation.result()
        for display in operation.displays if value is None or value.shown is None else value.displays[:-1]:
            _lines(label, repr(display), sys.stdout)
        _lines(label, operation.stderr, sys.stderr)
        if value is not None:
            _lines(label, value.text or "", sys.stdout)
        for line in describe(error):
            _lines(label, line, sys.stderr)
        failed = failed or error is not None
    return int(failed)


def _lines(label: str, text: str, stream: TextIO) -> None:
    for line in text.splitlines():
        print(f"{label}{line}", file=stream)
    stream.flush()


def _stop(operations: Sequence[Operation[Any]], state_dir: Path | None) -> None:
    """Interrupt what runs, take out what waits, and say what did not stop. No kernel is killed."""
    from enginery.operation import stop

    until = time.monotonic() + _STOPPING
    going = [operation for operation in operations if not operation.done()]
    if going:
        with contextlib.suppress(EngineryError, TimeoutError):  # what was not told to stop is listed below
            stop(going, None, interrupt_only=True, timeout=_STOPPING)
        concurrent.futures.wait(going, max(0.0, until - time.monotonic()))
    left = [operation for operation in going if not operation.done()]
    if left:
        ways = "".join(f"\n  {hint('cancel', operation.operation_id, state_dir)}" for operation in left)
        print(f"enginery: {plural(len(left), 'operation')} did not stop yet:{ways}", file=sys.stderr)


def _ids(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not `all` or ids such as 0,2", param_hint="--targets") from None
