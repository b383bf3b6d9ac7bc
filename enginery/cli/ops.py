"""enginery ops."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from enginery.cli.common import StateDir, err, find_cluster
from enginery.cli.operations import COLOURS, State
from enginery.cli.shown import Column, iso, print_table, since, span

if TYPE_CHECKING:
    from enginery.operations import OperationInfo

COLUMNS = (
    Column("operation"),
    Column("engine", right=True),
    Column("state", colours=COLOURS),
    Column("age", right=True, rank=2),
    Column("ran", right=True, rank=4),
    Column("method", rank=5),
    Column("arguments", least=12, rank=1),
    Column("label", least=8, rank=3),
)


def ops(
    engine: Annotated[
        int | None, typer.Option("--engine", "-e", help="Only those of this engine.", metavar="ID")
    ] = None,
    states: Annotated[
        list[State] | None, typer.Option("--state", "-s", help="Only those in this state. Repeatable.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="Only so many, the newest.", metavar="N")
    ] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    state_dir: StateDir = None,
) -> None:
    """List operations, the newest first: those that engines know, then those that only the journal knows.

    [bold]enginery attach ID[/bold] shows what one did, [bold]enginery cancel ID[/bold] stops it.
    """
    from enginery.client import connect

    with connect(find_cluster(state_dir).client_file) as client:
        # One more than is shown tells whether there are more.
        names = [state.value for state in states or ()]
        found = client.operations(engine_id=engine, state=names or None, limit=limit + 1)
    shown = sorted(found[:limit], key=_moment, reverse=True)  # what the journal alone knows came last
    if as_json:
        print(json.dumps({"operations": [_plain(info) for info in shown]}, indent=2))
    elif shown:
        print_table(COLUMNS, [_row(info) for info in shown])
    else:
        err.print("no operations" if engine is None and not states else "no such operations")
    if len(found) > limit:
        err.print(f"and more: these are the newest {limit}, -n {10 * limit} shows more")


def _moment(info: OperationInfo) -> float:
    """Return when it was submitted; what the journal has of it is when it ended."""
    moment = info.submitted_at or info.ended_at
    return 0.0 if moment is None else moment.timestamp()


def _row(info: OperationInfo) -> list[str]:
    return [
        info.operation_id,
        "any" if info.engine_id < 0 else str(info.engine_id),
        state_text(info),
        since(info.submitted_at or info.ended_at),
        _ran(info),
        info.method,
        info.arguments,
        info.label,
    ]


def state_text(info: OperationInfo) -> str:
    """Return how it stands in few words, `running 40%`."""
    if info.state != "running":
        return info.state.replace("_", " ")
    percent = "" if info.progress_fraction is None else f" {info.progress_fraction:.0%}"
    return f"stopping{percent}" if info.stopping else f"running{percent}"


def _ran(info: OperationInfo) -> str:
    if info.started_at is None:
        return ""
    return since(info.started_at) if info.ended_at is None else span(info.ended_at - info.started_at)


def _plain(info: OperationInfo) -> dict[str, object]:
    return {
        "operation_id": info.operation_id,
        "engine_id": info.engine_id,
        "state": info.state,
        "stopping": info.stopping,
        "method": info.method,
        "arguments": info.arguments or None,
        "session_id": info.session_id or None,
        "incarnation": info.incarnation or None,
        "submitted_at": iso(info.submitted_at),
        "started_at": iso(info.started_at),
        "ended_at": iso(info.ended_at),
        "progress_fraction": info.progress_fraction,
        "progress_text": info.progress_text or None,
        "last_sequence": info.last_sequence,
        "attempts": info.attempts,
        "label": info.label or None,
    }
