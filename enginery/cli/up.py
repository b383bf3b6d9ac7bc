"""enginery up."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated

import typer

from enginery import launchers
from enginery._launch import Launched, LaunchOptions, connected, noted_on
from enginery._state_dir import VARIABLE, StateDirectory, default_path
from enginery.cli import launching
from enginery.cli.common import plural, undisturbed


@launching.takes_options()
def up(
    settings: LaunchOptions,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar=VARIABLE, show_default="per-user", metavar="DIR", help="Where the cluster keeps its files."
        ),
    ] = None,
    on: launching.On = None,
    timeout: launching.Timeout = 30.0,
) -> None:
    """Start a controller and engines in the background; return when all engines are registered."""
    began = time.monotonic()
    state = StateDirectory(state_dir)
    launched = Launched(state, settings, attached=False, temporary=False, launcher=launchers.find(on))
    try:
        client = launching.start(launched, timeout)
    except BaseException as error:
        with undisturbed(), noted_on(error):
            launched.stop()
        raise
    with client:
        address = launched.wait_for_controller(time.monotonic()).address
        ready = connected(client.engines)
    print(f"{plural(ready, 'engine')} ready in {time.monotonic() - began:.1f} s")
    print(f"  state directory  {state.path}")
    print(f"  controller       {address} (pid {launched.controller_pid})")
    if settings.bind not in _LOOPBACK:
        print("  elsewhere        enginery.connect('client.json'), with a copy of that file from there")
    _print_ways(state)


_LOOPBACK = (None, "127.0.0.1", "localhost", "::1", "[::1]")
"""What the controller listens on if nobody on another machine can reach it."""


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
