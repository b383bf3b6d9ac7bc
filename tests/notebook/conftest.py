"""A notebook that is executed cell by cell, as a front end does it, and real engines."""

from __future__ import annotations

import re
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

import enginery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_PATIENCE = 15  # seconds for one cell


@dataclass
class Notebook:
    """A notebook whose kernel runs."""

    client: Any

    def run(
        self,
        source: str,
        *,
        fails: bool = False,
        at: str = "",
        shows: str = "",
        then: Callable[[], object] | None = None,
    ) -> list[Any]:
        """Execute a cell and return its outputs; calls `then` once it has printed `at` and displays `shows`."""
        cell = nbformat.v4.new_code_cell(source)  # type: ignore[no-untyped-call]
        self.client.nb.cells.append(cell)
        self.client.allow_errors = True
        watcher = threading.Thread(target=_watch, args=(cell, at, shows, then))
        watcher.start()
        self.client.execute_cell(cell, len(self.client.nb.cells) - 1)
        watcher.join()
        outputs: list[Any] = cell.outputs
        reply_failed = any(output.output_type == "error" for output in outputs)
        assert reply_failed == fails, outputs
        return outputs

    def begin(self, cluster: enginery.Cluster) -> None:
        """Connect to the cluster, and load the magics."""
        self.run(f"import enginery\nclient = enginery.connect({str(cluster.state_dir)!r})\n%load_ext enginery")

    def restart(self) -> None:
        """Restart its kernel, which is not asked."""
        run_sync(self.client.km.restart_kernel)(now=True)
        run_sync(self.client.kc.wait_for_ready)(timeout=_PATIENCE)

    def interrupt(self) -> None:
        """Press the stop button."""
        self.client.km.provisioner.process.send_signal(signal.SIGINT)


def _watch(cell: Any, at: str, shows: str, then: Callable[[], object] | None) -> None:
    if then is not None:
        eventually(lambda: at in stream(cell.outputs) and shows in "\n".join(forms(cell.outputs)))
        then()


def stream(outputs: list[Any], name: str = "stdout") -> str:
    """Return what a cell printed."""
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == name)


def forms(outputs: list[Any], mime: str = "text/plain") -> list[Any]:
    """Return what a cell displayed in one form."""
    return [output.data[mime] for output in outputs if mime in output.get("data", {})]


def error(outputs: list[Any]) -> str:
    """Return the error that a cell ended with, as shown."""
    (shown,) = [output for output in outputs if output.output_type == "error"]
    return _ESCAPES.sub("", "\n".join(shown.traceback))


@pytest.fixture(scope="package")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(n=2) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def notebook(cluster: enginery.Cluster) -> Iterator[Notebook]:
    empty = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    client = NotebookClient(empty, timeout=_PATIENCE, kernel_name="python3", shutdown_kernel="immediate")
    with client.setup_kernel():
        made = Notebook(client)
        made.begin(cluster)
        yield made


def eventually(condition: Any, timeout: float = 15.0) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
