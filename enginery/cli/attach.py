"""enginery attach."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from enginery._engine import MAX_SEQUENCE
from enginery.cli.common import StateDir, find_cluster
from enginery.cli.operations import Follower, OperationId, find, hint

if TYPE_CHECKING:
    from pathlib import Path


def attach(
    operation_id: OperationId,
    after: Annotated[
        int,
        typer.Option(
            "--after", min=0, max=MAX_SEQUENCE, help="Only events above this sequence.", metavar="SEQUENCE"
        ),
    ] = 0,
    state_dir: StateDir = None,
) -> None:
    """Show what an operation printed so far, then follow it to its end and show its value or its error.

    What it printed goes to stdout and stderr as it did there, all else that is said about it to stderr.

    Ctrl-C detaches and stops nothing. Any number may be attached, from anywhere.

    The exit code says how it ended: 0 succeeded, 1 failed, 3 cancelled, 4 timed out, 5 lost.
    """
    from enginery.client import connect

    with connect(find_cluster(state_dir).client_file, errors="wrap") as client:
        operation = find(client, operation_id)
        follower = Follower()
        if operation.info().state == "queued":
            where = "to be placed" if operation.engine_id < 0 else f"on engine {operation.engine_id}"
            print(f"[it waits {where}]", file=sys.stderr, flush=True)
        try:
            code = follower.follow(operation, after)
        except KeyboardInterrupt:
            follower.end_lines()
            print(_ways_back(operation.operation_id, follower.last, state_dir), file=sys.stderr)
            raise
    raise typer.Exit(code)


def _ways_back(operation_id: str, last: int, state_dir: Path | None) -> str:
    return (
        f"\ndetached, the operation goes on\n"
        f"  come back        {hint('attach', f'{operation_id} --after {last}', state_dir)}\n"
        f"  stop it          {hint('cancel', operation_id, state_dir)}"
    )
