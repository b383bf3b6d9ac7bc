"""The client in Go: its stubs are the contract's, and it does on a live cluster what its page says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import enginery

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "go"
SAYS = """\
engine 0: ENGINE_STATE_READY
printed "hello from Python\\n", value 42
pulled total = 6, greeting = hello Gopher
raised KeyError('missing') in line 1
refused with INVALID_ENGINE_ID, engine 999
squared 1000000 numbers of type <f8
"""


def test_go_calls_engines(tmp_path: Path) -> None:
    """It lists, executes, pushes, pulls, reads both kinds of errors, uploads and downloads."""
    go = shutil.which("go")
    assert go is not None, "Go is needed: .ci/run installs it"
    program = tmp_path / "client"
    subprocess.run([go, "build", "-o", program, "."], cwd=SOURCE, check=True, timeout=300)
    with enginery.Cluster(1, state_dir=tmp_path / "state") as cluster:
        environment = {**os.environ, "https_proxy": "http://127.0.0.1:1"}  # it changes nothing
        command = [str(program), str(cluster.state_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment, check=False)
    assert done.stderr == ""
    assert done.stdout == SAYS


def test_its_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    """They are what buf makes of protos/, byte for byte: whoever changes the contract makes them anew."""
    buf = Path(sys.executable).with_name("buf")
    subprocess.run([buf, "generate", "../../protos", "-o", tmp_path], cwd=SOURCE, check=True, timeout=100)
    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.go")}
    committed = {path.relative_to(SOURCE): path.read_bytes() for path in SOURCE.glob("gen/**/*.go")}
    assert fresh.keys() == committed.keys()
    stale = [str(path) for path, content in committed.items() if fresh[path] != content]
    assert not stale, "run `buf generate ../../protos` in examples/go"
