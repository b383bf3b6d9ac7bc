"""docs/from-ipyparallel.md and docs/from-ipython-kernel.md: what they say to write now works, row by row."""

from __future__ import annotations

import atexit
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import enginery
from tests.e2e import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = ("from-ipyparallel.md", "from-ipython-kernel.md")
ROWS = [row for page in PAGES for row in pages.rows(page)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[enginery.Cluster]:
    with enginery.Cluster(n=2, state_dir=tmp_path_factory.mktemp("cluster") / "state") as cluster:
        yield cluster


@pytest.fixture
def namespace(
    cluster: enginery.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What the pages take as given: a client, a script, and a module that engines do not have."""
    monkeypatch.setenv("ENGINERY_STATE_DIR", str(cluster.state_dir))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("b = 3\n")
    (tmp_path / "mymodule.py").write_text("def f(x):\n    return x + 1\n")
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    import mymodule  # type: ignore[import-not-found]

    cluster.client[:].reset()
    with enginery.connect() as client:
        yield {
            "__name__": "__main__",
            "client": client,
            "state_dir": cluster.state_dir,
            "script": tmp_path / "script.py",
            "mymodule": mymodule,
        }
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    """An IPython that keeps no history."""
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))  # type: ignore[no-untyped-call]
    yield shell
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_is_true(
    row: pages.Row,
    namespace: dict[str, Any],
    shell: InteractiveShell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each snippet of the row runs, and gives what stands behind its arrow."""
    before = namespace["client"]
    pages.evaluate(row.setup, namespace)
    for code, expected in row.snippets:
        if code.startswith("$ "):
            if row.snippets[0][0].startswith("$ enginery up"):
                monkeypatch.setenv("ENGINERY_STATE_DIR", str(tmp_path / "state"))
            _shell(code[2:])
        elif code.startswith("%"):
            _magic(shell, code, namespace)
        else:
            value = pages.evaluate(code, namespace)
            assert expected is None or repr(value) == expected, code
    if namespace["client"] is not before:
        namespace["client"].close()


def _shell(command: str) -> None:
    program, *arguments = command.split()
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _magic(shell: InteractiveShell, code: str, namespace: dict[str, Any]) -> None:
    """Run a magic after another, a cell's with a cell."""
    shell.user_ns["client"] = namespace["client"]
    try:
        for line in ("%load_ext enginery", "%px x = 1", f"{code}\nx = 1" if code.startswith("%%") else code):
            shell.run_cell(line).raise_error()  # type: ignore[no-untyped-call]
    finally:
        shell.run_cell("%unload_ext enginery")  # type: ignore[no-untyped-call]


def test_the_pages_have_many_rows() -> None:
    """The tables are found: were they not, the test above would prove nothing."""
    counts = [len(pages.rows(page)) for page in PAGES]
    assert counts[0] > 70
    assert counts[1] > 40
