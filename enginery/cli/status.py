"""enginery status."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from enginery._connection_file import read
from enginery.cli.common import StateDir, find_cluster, out, plural

if TYPE_CHECKING:
    from enginery.engines import EngineInfo

_NUMBERS = {"engine", "pid", "memory", "queue", "up"}
_COLOURS = {"ready": "green", "busy": "yellow", "unresponsive": "red", "away": "red"}


def status(
    state_dir: StateDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the cluster and its engines, as of their last heartbeats."""
    from enginery.client import connect

    state = find_cluster(state_dir)
    info = read(state.client_file, "client")
    with connect(state.client_file) as client:
        engines = client.engines
    if as_json:
        cluster = {
            "cluster_id": info.cluster_id,
            "state_dir": str(state.path),
            "address": info.address,
            "pid": info.pid,
            "engines": [_plain(engine) for engine in engines],
        }
        print(json.dumps(cluster, indent=2))
        return
    out.print(f"{plural(len(engines), 'engine')}, controller {info.address} (pid {info.pid}), {state.path}")
    if engines:
        out.print(_table(engines))


def _plain(engine: EngineInfo) -> dict[str, object]:
    return {
        "engine_id": engine.engine_id,
        "state": engine.state,
        "hostname": engine.hostname,
        "pid": engine.pid,
        "resident_bytes": engine.resident_bytes,
        "queued_count": engine.queued_count,
        "running": engine.operation_method or None,
        "operation_id": engine.operation_id or None,
        "last_failure": engine.last_failure or None,
    }


def _table(engines: list[EngineInfo]) -> Table:
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False)
    for name in ("engine", "state", "host", "pid", "memory", "queue", "running", "up"):
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    failures = any(engine.last_failure for engine in engines)
    if failures:
        table.add_column("last failure")
    for engine in engines:
        colour = _COLOURS.get(engine.state, "red")
        row = [
            str(engine.engine_id),
            f"[{colour}]{engine.state}[/{colour}]",
            engine.hostname,
            str(engine.pid),
            _megabytes(engine.resident_bytes),
            str(engine.queued_count),
            _running(engine),
            _span(dt.datetime.now(dt.UTC) - engine.registered_at),
        ]
        table.add_row(*row, *([engine.last_failure] if failures else []))
    return table


def _running(engine: EngineInfo) -> str:
    if not engine.operation_method:
        return "-"
    since = engine.operation_started_at
    return engine.operation_method + ("" if since is None else f" for {_span(dt.datetime.now(dt.UTC) - since)}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size else "-"


def _span(span: dt.timedelta) -> str:
    seconds = max(0, int(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
