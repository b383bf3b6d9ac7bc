"""Tests that are interrupted leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.architecture.source import ROOT
from tests.e2e.services import PATIENCE, until
from tests.leftovers import is_alive

if TYPE_CHECKING:
    from pathlib import Path

# It starts what lives on by itself, as `enginery up` does.
TEST = """
import pathlib, subprocess, time

def test_endless():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    pathlib.Path({path!r}).write_text(f"{{process.pid}}\\n")
    time.sleep(600)
"""


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, "0"), (signal.SIGINT, "1")])
def test_an_interrupted_run_of_tests_leaves_no_process(tmp_path: Path, number: int, processes: str) -> None:
    """Neither Ctrl-C nor a CI that has lost its patience; in the same process or in others."""
    path = tmp_path / "pid"
    (tmp_path / "test_it.py").write_text(TEST.format(path=str(path)))
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", processes, "-q", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as run:
        until(lambda: path.exists() and path.read_text().endswith("\n"), "the test to run", 30)
        pid = int(path.read_text())
        assert is_alive(pid)
        run.send_signal(number)
        run.communicate(timeout=PATIENCE)
    until(lambda: not is_alive(pid), "its end", 5)
