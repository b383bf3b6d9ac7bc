"""The command `enginery`."""

from __future__ import annotations

import os
import signal
import sys

_SERVICES = {"controller": "controller_service.__main__", "engine": "engine_service.__main__"}


def main() -> None:
    """Run the command of sys.argv, and exit with its code."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # until the command has its own handlers, there is nothing to do
        signal.signal(number, lambda number, _frame: os._exit(128 + number))
    if len(sys.argv) > 1 and sys.argv[1] in _SERVICES:
        # These are the services themselves, and they start without the command line's libraries.
        import importlib

        service = importlib.import_module(_SERVICES[sys.argv[1]])
        sys.argv[:2] = [f"enginery {sys.argv[1]}"]
        sys.exit(service.main())
    from enginery.cli import app

    sys.exit(app.run())
