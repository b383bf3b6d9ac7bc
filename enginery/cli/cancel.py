"""enginery cancel."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enginery._engine import DEFAULT_GRACE, MAX_SECONDS
from enginery.cli.common import StateDir, err, find_cluster
from enginery.cli.operations import OperationId, find, hint
from enginery.errors import EngineryError

if TYPE_CHECKING:
    from enginery.operation import Operation

_RESTART = 3.0  # seconds, after the last grace, for a kernel to be killed and the answer to arrive
_ANSWER = 0.5  # seconds, after the last grace, for the answer to arrive if no kernel is killed


def cancel(
    operation_id: OperationId,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=MAX_SECONDS,
            show_default="what its call said, else 5",
            metavar="SECONDS",
            help="How long it gets after each of two interrupts before its kernel is killed.",
        ),
    ] = None,
    interrupt_only: Annotated[
        bool | None,
        typer.Option(
            "--interrupt-only/--kill",
            show_default="what its call said, else --kill",
            help="Whether the kernel, and so the namespace, is kept even if that does not stop it.",
        ),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Stop an operation: one that waits is taken out of the queue, one that runs is interrupted.

    If two interrupts do not stop it, its kernel is killed; the engine gets a new one, with an empty namespace.

    Waits until the operation has ended and says how; Ctrl-C ends only the waiting.
    """
    from enginery.client import connect

    with connect(find_cluster(state_dir).client_file, errors="wrap") as client:
        with err.status("looking for it"):  # which takes long if its engine is away
            operation = find(client, operation_id)
            state = operation.info().state
        if state not in ("queued", "running") or not operation.cancel(grace, interrupt_only):
            print(f"it has ended already: {operation.status.replace('_', ' ')}")
            return
        patience = 2 * (DEFAULT_GRACE if grace is None else grace) + (_ANSWER if interrupt_only else _RESTART)
        with err.status("waiting for its end"):
            ended, _ = concurrent.futures.wait([operation], patience)
        if not ended:
            way = hint("cancel --kill", operation.operation_id, state_dir)
            raise EngineryError(
                f"operation {operation.operation_id} was interrupted and still runs: "
                f"`{way}` kills its kernel if that does not help"
            )
        print(_end(operation))


def _end(operation: Operation[Any]) -> str:
    """Return how it ended. Nothing is unpickled: a value is not looked at."""
    if operation.status == "succeeded":
        return "it succeeded before it could be stopped"
    return str(operation.exception()).partition("\n")[0]
