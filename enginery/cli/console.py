"""enginery console."""

from __future__ import annotations

from typing import Annotated

import typer

from enginery.cli.common import StateDir, find_cluster
from enginery.errors import EngineryError


def console(
    target: Annotated[
        int | None,
        typer.Option("-t", "--target", metavar="ID", show_default="the first", help="The engine's id."),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Talk to one live engine: IPython's terminal, with the engine's names completed and explained.

    What runs there already goes first. Leaving changes nothing on the engine.
    """
    try:
        from enginery.console import run
    except ModuleNotFoundError as error:
        if error.name not in ("IPython", "traitlets", "prompt_toolkit"):
            raise
        raise EngineryError(
            "the console is IPython's, and that is not installed: pip install 'enginery[ipython]'"
        ) from None
    from enginery.client import connect

    with connect(find_cluster(state_dir).client_file) as client:
        ids = client.ids
        if target is None and not ids:
            raise EngineryError("no engine is registered: start one by `enginery engine`")
        run(client[ids[0] if target is None else target])
