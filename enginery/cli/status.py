"""enginery status."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from enginery import _sizes
from enginery._connection_file import read
from enginery.cli.common import StateDir, find_cluster, out, plural
from enginery.cli.shown import Column, iso, print_table, since

if TYPE_CHECKING:
    from enginery.engines import EngineInfo

_COLOURS = {
    "ready": "green",
    "busy": "yellow",
    "draining": "cyan",
    "unresponsive": "red",
    "away": "red",
    "lost": "red",
}
COLUMNS = (
    Column("engine", right=True),
    Column("state", colours=_COLOURS),
    Column("running"),
    Column("queue", right=True, rank=1),
    Column("memory", right=True, rank=2),
    Column("host", least=8, rank=5),
    Column("pid", right=True, rank=4),
    Column("kernel", rank=7),
    Column("up", right=True, rank=6),
    Column("why", least=20),
    Column("last failure", least=16, rank=3),
    Column("operation", rank=8),
)
_KERNEL_DIGITS = 8  # of a kernel's id that tell it from the one before; --json has all


def status(
    lost: Annotated[
        bool, typer.Option("--lost", help="Engines too that were lost within the last hour.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Show the cluster and its engines, as of their last heartbeats.

    [bold]enginery ops[/bold] lists what runs and waits on them.
    """
    from enginery.client import connect

    state = find_cluster(state_dir)
    info = read(state.client_file, "client")
    with connect(state.client_file) as client:
        engines = client.engines
        gone = client.lost_engines() if lost else []
    if as_json:
        cluster = {
            "cluster_id": info.cluster_id,
            "state_dir": str(state.path),
            "address": info.address,
            "pid": info.pid,
            "engines": [_plain(engine) for engine in engines],
            **({"lost_engines": [_plain(engine) for engine in gone]} if lost else {}),
        }
        print(json.dumps(cluster, indent=2))
        return
    out.print(f"{_count(engines)}, controller {info.address} (pid {info.pid}), {state.path}", markup=False)
    if engines or gone:
        print_table(COLUMNS, [row(engine) for engine in [*engines, *gone]])


def _count(engines: list[EngineInfo]) -> str:
    """Return `4 engines: 2 ready, 1 busy, 1 away`."""
    states = Counter(engine.state for engine in engines)
    each = ", ".join(f"{states[name]} {name}" for name in _COLOURS if states[name])
    return plural(len(engines), "engine") + (f": {each}" if each else "")


def _plain(engine: EngineInfo) -> dict[str, object]:
    return {
        "engine_id": engine.engine_id,
        "state": engine.state,
        "state_since": iso(engine.state_since),
        "reason": engine.reason or None,
        "hostname": engine.hostname,
        "pid": engine.pid,
        "incarnation": engine.incarnation,
        "registered_at": iso(engine.registered_at),
        "resident_bytes": engine.resident_bytes,
        "memory_limit": engine.memory_limit or None,
        "queued_count": engine.queued_count,
        "running": engine.operation_method or None,
        "running_since": iso(engine.operation_started_at),
        "operation_id": engine.operation_id or None,
        "last_failure": engine.last_failure or None,
    }


def row(engine: EngineInfo) -> list[str]:
    """Return the cells of COLUMNS for an engine."""
    return [
        str(engine.engine_id),
        engine.state + (f" for {since(engine.state_since)}" if engine.state_since is not None else ""),
        _running(engine),
        str(engine.queued_count),
        _memory(engine),
        engine.hostname,
        str(engine.pid),
        engine.incarnation[:_KERNEL_DIGITS],
        since(engine.registered_at),
        engine.reason,
        engine.last_failure,
        engine.operation_id,
    ]


def _running(engine: EngineInfo) -> str:
    if not engine.operation_method:
        return ""
    began = engine.operation_started_at
    return engine.operation_method + ("" if began is None else f" for {since(began)}")


def _memory(engine: EngineInfo) -> str:
    if not engine.resident_bytes:
        return ""
    limit = f" of {_sizes.show(engine.memory_limit)}" if engine.memory_limit else ""
    return _sizes.show(engine.resident_bytes) + limit
