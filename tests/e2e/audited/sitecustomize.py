"""Put on PYTHONPATH by a test: in controller and engine host, unpickling what names a class is the end.

Python imports this at start. Each process that it watches leaves a file named by role and pid in the directory
that ENGINERY_TEST_AUDIT names, so that the test knows that it was watched.
"""

import os
import sys
from pathlib import Path


def _role() -> str | None:
    """Return which service this process is, None if neither. A kernel is allowed to unpickle."""
    arguments = sys.orig_argv
    if "-m" not in arguments:
        return None
    module = arguments[arguments.index("-m") + 1]
    return module if module in {"controller_service", "engine_service", "tests.e2e.unpickles"} else None


def _abort(event: str, arguments: tuple[object, ...]) -> None:
    if event == "pickle.find_class":
        os.write(2, f"unpickling {arguments} in a process that never may\n".encode())
        os._exit(99)


if (role := _role()) is not None:
    sys.addaudithook(_abort)
    Path(os.environ["ENGINERY_TEST_AUDIT"], f"{role}-{os.getpid()}").touch()
