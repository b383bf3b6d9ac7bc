"""enginery exec."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from enginery.cli.common import StateDir, find_cluster
from enginery.errors import EngineryError, remote_of

if TYPE_CHECKING:
    from enginery.result import ExecuteResult
    from enginery.view import EngineView


def execute(
    code: Annotated[
        str, typer.Argument(help="Python source; - reads it from stdin.", show_default=False, metavar="CODE")
    ],
    targets: Annotated[
        str, typer.Option("-t", "--targets", metavar="IDS", help="all, one id, or several as 0,2.")
    ] = "all",
    state_dir: StateDir = None,
) -> None:
    """Run code on engines and print what each printed, and the value of the last expression."""
    from enginery.client import connect

    source = sys.stdin.read() if code == "-" else code
    state = find_cluster(state_dir)
    with connect(state.client_file) as client:
        ids = client.ids if targets == "all" else _ids(targets)
        if not ids:
            raise EngineryError("no engine is registered: start one by `enginery engine`")
        operations = [client[engine_id].execute(source, block=False) for engine_id in ids]
        failures = 0
        try:
            for engine_id, operation in zip(ids, operations, strict=True):
                label = f"[{engine_id}] " if len(ids) > 1 else ""
                try:
                    _show(label, operation.result())
                except Exception as error:
                    failures += 1
                    _show_error(label, client[engine_id], error)
        except BaseException:  # Ctrl-C here stops the code there
            client[ids].interrupt()
            raise
    if failures:
        raise typer.Exit(1)


def _show(label: str, result: ExecuteResult) -> None:
    _lines(label, result.stdout, sys.stdout)
    _lines(label, result.stderr, sys.stderr)
    if result.text is not None:
        _lines(label, result.text, sys.stdout)


def _show_error(label: str, engine: EngineView, error: Exception) -> None:
    """Show what the failed code printed, which its record has, and the remote traceback."""
    remote = remote_of(error)
    if remote is None:
        if not isinstance(error, EngineryError):
            raise error
        _lines(label, f"{type(error).__name__}: {error}", sys.stderr)
        return
    record = engine.get_result()
    if record.operation_id == remote.operation_id:  # not if another client was faster
        _lines(label, record.stdout, sys.stdout)
        _lines(label, record.stderr, sys.stderr)
    _lines(label, remote.traceback, sys.stderr)


def _lines(label: str, text: str, stream: TextIO) -> None:
    for line in text.splitlines():
        print(f"{label}{line}", file=stream)
    stream.flush()


def _ids(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not `all` or ids such as 0,2", param_hint="--targets") from None
