"""enginery doctor."""

from __future__ import annotations

import platform
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from enginery import __version__
from enginery._diagnose import find_silent
from enginery._doctor import examine_connection, examine_controller, examine_engines, read_connection_file
from enginery._doctor_directory import examine_directory
from enginery._finding import COPY_ANEW, Finding, restart
from enginery._state_dir import StateDirectory
from enginery.cli.common import StateDir, find_own_cluster, out, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginery._connection_file import ConnectionInfo


def doctor(
    state_dir: StateDir = None,
    connection_file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Check what can be checked with a client.json from another machine, and nothing else.",
        ),
    ] = None,
) -> None:
    """Find out what is wrong with a cluster, and say which command mends it.

    It looks at state directory, disk, files, processes, port, certificate, token, controller, clock, engines
    and versions, in this order. Exit code 1: something is wrong.
    """
    faults = 0
    for finding in examine(state_dir, connection_file):
        faults += finding.is_fault
        _show(finding)
    if faults:
        out.print(f"{plural(faults, 'fault')}")
        raise typer.Exit(1)
    out.print("all is well")


def examine(state_dir: Path | None, connection_file: Path | None) -> Iterator[Finding]:
    """Yield what is found; what comes after a fault that hides it is not looked at."""
    if connection_file is None and state_dir is not None and StateDirectory(state_dir).is_remote:
        connection_file = StateDirectory(state_dir).client_file
    again = COPY_ANEW
    if connection_file is None:
        state = find_own_cluster(state_dir)
        for finding in examine_directory(state):
            yield finding
            if finding.is_fault and finding.hides_others:
                return
        connection_file = state.client_file
        again = restart(state.path)
    info, finding = read_connection_file(connection_file, again)
    yield finding
    if info is None:
        return
    for finding in examine_connection(info, again):
        yield finding
        if finding.is_fault and finding.hides_others:
            return
    yield from _ask(info)


def _ask(info: ConnectionInfo) -> Iterator[Finding]:
    from enginery.client import connect

    assert info.path is not None
    with connect(info.path) as client:
        yield from examine_controller(client._link.run(client._link.cluster_info()), __version__)
        engines = client.engines
    there = [engine.engine_id for engine in engines if engine.state in ("ready", "busy")]
    yield from examine_engines(engines, find_silent(info, there), __version__, platform.python_version())


def _show(finding: Finding) -> None:
    mark, colour = ("FAULT", "red") if finding.is_fault else ("ok", "green")
    out.print(f"[{colour}]{mark:<5}[/{colour}] {finding.check:<16} ", end="")
    out.print(finding.text, markup=False)
    if finding.is_fault:
        out.print("      mend it by:      ", end="")
        out.print(finding.mend, markup=False, style="bold")
