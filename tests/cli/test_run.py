"""enginery run: a script with a cluster of its own, which goes whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Shell, eventually

CENSUS = """
import sys, enginery
with enginery.connect() as client:
    print(client.ids, sys.argv[1:], flush=True)
"""
WAIT = """
import enginery, time
client = enginery.connect()
print("ready", client.ids, flush=True)
time.sleep(60)
"""


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(text)
    return str(path)


def test_the_script_finds_its_cluster(shell: Shell, tmp_path: Path) -> None:
    """Options may stand behind the script; what is not ours, and all behind --, are its arguments."""
    path = script(tmp_path, CENSUS)
    done = shell.run("run", path, "-n", "2", "word", "--theirs", "--", "-n", "5")
    assert done.stdout == "[0, 1] ['word', '--theirs', '-n', '5']\n"
    assert done.stderr == ""
    Path(path).unlink()
    assert shell.processes() == []
    assert shell.left() == []


@pytest.mark.parametrize(
    ("text", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_code_is_the_scripts(shell: Shell, tmp_path: Path, text: str, code: int) -> None:
    """Codes pass through; death by a signal is 128 and its number."""
    shell.run("run", script(tmp_path, text), "-n", "0", code=code)
    assert shell.processes() == []


def test_a_missing_script(shell: Shell) -> None:
    """Nothing is started for it."""
    assert "does not exist" in shell.run("run", "nothing.py", code=2).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(shell: Shell, tmp_path: Path, number: signal.Signals) -> None:
    """The script gets the signal, its end is the command's, and the cluster is gone."""
    with shell.start("run", script(tmp_path, WAIT), "-n", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "enginery/cli" not in error
    assert shell.processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_it_starts(shell: Shell, tmp_path: Path, number: signal.Signals) -> None:
    """A start that is broken off leaves nothing behind."""
    with shell.start("run", script(tmp_path, WAIT), "-n", "4") as process:
        eventually(lambda: len(shell.processes()) > 1, shell.processes)
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert shell.processes() == []


def test_killed(shell: Shell, tmp_path: Path) -> None:
    """kill -9 of the command ends controller, host, kernels and script, and removes the temporary directory."""
    path = script(tmp_path, WAIT)
    with shell.start("run", path, "-n", "2") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        assert len(shell.processes()) >= 6
        process.kill()
        eventually(lambda: shell.processes() == [], shell.processes)
    Path(path).unlink()
    eventually(lambda: shell.left() == [], shell.left)


def test_ctrl_c_while_something_is_imported(tmp_path: Path) -> None:
    """Named tuples evaluate text; CPython dies of an interrupt there, even a caught one, unless it is ours."""
    (tmp_path / "interrupted.py").write_text(
        "import os, sys\nfrom enginery.cli import app\n"
        "app.app.command('x')(lambda: eval('os.kill(os.getpid(), 2), [0 for _ in range(100_000)]'))\n"
        "sys.argv = ['enginery', 'x']\nsys.exit(app.run())\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, "")
