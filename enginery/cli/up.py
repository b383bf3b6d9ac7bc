"""enginery up."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated

import typer

from enginery._launch import Launched
from enginery._state_dir import VARIABLE, StateDirectory, default_path
from enginery.cli import launching
from enginery.cli.common import plural, undisturbed


def up(
    n: launching.N = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar=VARIABLE, show_default="per-user", metavar="DIR", help="Where the cluster keeps its files."
        ),
    ] = None,
    port: launching.Port = None,
    bind: launching.Bind = None,
    advertise: launching.Advertise = None,
    insecure: launching.Insecure = False,
    lease: launching.Lease = None,
    save_ids: launching.SaveIds = False,
    properties: launching.Property = None,
    exec_line: launching.ExecLine = None,
    exec_file: launching.ExecFile = None,
    output_limit: launching.OutputLimit = None,
    queue_limit: launching.QueueLimit = None,
    queue_bytes: launching.QueueBytes = None,
    store_limit: launching.StoreLimit = None,
    direct: launching.Direct = True,
    value_limit: launching.ValueLimit = None,
    waiting_limit: launching.WaitingLimit = None,
    log_level: launching.LogLevel = None,
    timeout: launching.Timeout = 30.0,
) -> None:
    """Start a controller and engines in the background; return when all engines are registered."""
    began = time.monotonic()
    settings = launching.options(
        n, port=port, bind=bind, advertise=advertise, insecure=insecure, lease=lease, save_ids=save_ids,
        properties=properties, exec_line=exec_line, exec_file=exec_file, output_limit=output_limit,
        queue_limit=queue_limit, queue_bytes=queue_bytes, store_limit=store_limit, direct=direct,
        value_limit=value_limit, waiting_limit=waiting_limit, log_level=log_level,
    )  # fmt: skip
    state = StateDirectory(state_dir)
    launched = Launched(state, settings, attached=False, temporary=False)
    try:
        client = launching.start(launched, timeout)
    except BaseException:
        with undisturbed():
            launched.stop()
        raise
    with client:
        address = launched.wait_for_controller(time.monotonic()).address
        ids = client.ids
    print(f"{plural(len(ids), 'engine')} ready in {time.monotonic() - began:.1f} s")
    print(f"  state directory  {state.path}")
    print(f"  controller       {address} (pid {launched.pids['controller']})")
    _print_ways(state)


def _print_ways(state: StateDirectory) -> None:
    """Print what to type next, naming the state directory unless that is found without."""
    found = state.path == default_path() and (VARIABLE in os.environ or len(StateDirectory.discover()) == 1)
    argument = "" if found else repr(str(state.path))
    option = "" if found else f" --state-dir {shlex.quote(str(state.path))}"
    print(f"  from Python      enginery.connect({argument})")
    if state.client_socket is not None:
        print(f"  from a shell     grpcurl -plaintext -unix {shlex.quote(str(state.client_socket))} list")
    else:
        print(f"  {state.socket_warning()}")
    print(f"  more engines     enginery engine -n 2{option}")
    print(f"  stop             enginery down{option}")
