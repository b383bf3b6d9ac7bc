"""up, status, exec, logs and down on one cluster."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from enginery._connection_file import read
from enginery.cli.app import app
from enginery.errors import ControllerNotRunning

from .conftest import Shell, eventually

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = (
    "controller", "engine", "up", "down", "status", "logs", "exec", "ops", "attach", "cancel", "run"
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_real(shell: Shell, command: str) -> None:
    """Each command says what it does and lists its options."""
    said = shell.run(command, "--help").stdout
    assert f"enginery {command}" in said
    assert "--help" in said
    assert len(said.splitlines()) > 8


def test_the_first_word(shell: Shell) -> None:
    """All commands are listed; a version can be asked for; an unknown command is exit code 2."""
    said = shell.run("--help").stdout
    assert all(command in said for command in COMMANDS)
    assert shell.run("--version").stdout.startswith("enginery 0.")
    assert "No such command" in shell.run("nonsense", code=2).stderr


def test_without_a_cluster(shell: Shell) -> None:
    """The commands that need one say how to start one; down has nothing to do."""
    for arguments in (("status",), ("exec", "1")):
        assert "enginery up" in shell.run(*arguments, code=1).stderr
    assert "no cluster has run" in shell.run("logs", code=1).stderr
    assert "no cluster in" in shell.run("down").stdout
    assert shell.left() == []


def test_the_environment_names_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENGINERY_STATE_DIR is meant, not whatever else runs here."""
    monkeypatch.setenv("ENGINERY_STATE_DIR", str(tmp_path))
    said = CliRunner().invoke(app, ["status"])
    assert isinstance(said.exception, ControllerNotRunning)
    assert f"no controller runs in {tmp_path}" in str(said.exception)


def test_up_said_where(running: Shell) -> None:
    """A cluster that runs refuses a second one on its state directory, naming the ways out."""
    error = running.run("up", "-n", "1", code=1).stderr
    assert "runs already in" in error
    for way in ("enginery engine", "enginery down", "--state-dir"):
        assert way in error
    assert len(json.loads(running.run("status", "--json").stdout)["engines"]) == 2


def test_status_is_a_table(running: Shell) -> None:
    """One row an engine, with state, host, process and memory."""
    lines = running.run("status").stdout.splitlines()
    assert lines[0].startswith("2 engines: 2 ready, controller 127.0.0.1:")
    assert lines[1].split()[:5] == ["engine", "state", "queue", "memory", "host"]
    assert [line.split()[:2] for line in lines[2:4]] == [["0", "ready"], ["1", "ready"]]
    plain = json.loads(running.run("status", "--json", "--lost").stdout)
    assert [engine["engine_id"] for engine in plain["engines"]] == [0, 1]
    assert plain["lost_engines"] == []


def test_exec_prints_for_each_engine(running: Shell) -> None:
    """Output and values carry the engine's id if there are several, and nothing if there is one."""
    both = running.run("exec", "print('hello'); start * 6").stdout
    assert both.splitlines() == ["[0] hello", "[0] 42", "[1] hello", "[1] 42"]
    rich = "class C:\n    def _repr_html_(self): return ''\n    def __repr__(self): return 'rich'\n"
    assert running.run("exec", f"{rich}display('seen'); C()").stdout == (
        "[0] 'seen'\n[0] rich\n[1] 'seen'\n[1] rich\n"
    )
    assert running.run("exec", "-t", "1", "print('hello'); id").stdout == "hello\n1\n"
    assert running.run("exec", "-t", "1,0", "id").stdout == "[1] 1\n[0] 0\n"


def test_exec_shows_errors(running: Shell) -> None:
    """What was printed before, the remote traceback on stderr, exit code 1; no traceback of ours."""
    done = running.run("exec", "-t", "0", "print('before'); 1/0", code=1)
    assert done.stdout == "before\n"
    assert "ZeroDivisionError" in done.stderr
    assert "enginery/cli" not in done.stderr
    assert "no engine 9" in running.run("exec", "-t", "9", "1", code=1).stderr
    assert running.run("exec", "-t", "x", "1", code=2).returncode == 2


def test_ctrl_c_of_exec_stops_the_code(running: Shell) -> None:
    """SIGINT ends the command with 130, and the engine is free again."""
    with running.start("exec", "-t", "0", "import time\ntime.sleep(60)") as process:
        eventually(lambda: bool(_engine(running, 0)["running"]), lambda: _engine(running, 0), timeout=20)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    began = time.monotonic()
    assert running.run("exec", "-t", "0", "1").stdout == "1\n"
    assert time.monotonic() - began < 20


def _engine(shell: Shell, engine_id: int) -> dict[str, object]:
    engines = json.loads(shell.run("status", "--json").stdout)["engines"]
    return next(engine for engine in engines if engine["engine_id"] == engine_id)


def test_properties_reach_the_engines(running: Shell) -> None:
    """--property is JSON where it can be, else text."""
    code = "from enginery import get_engine; dict(get_engine().properties)"
    assert running.run("exec", "-t", "0", code).stdout == "{'colour': 'red', 'size': 3}\n"


def test_logs(running: Shell) -> None:
    """What each process logged, in the order of time; an engine's own part; the last lines; private files."""
    lines = running.run("logs").stdout.splitlines()
    assert any("controller:" in line for line in lines)
    assert any("host:" in line for line in lines)
    stamped = [line[:23] for line in lines if line[:2] == "20"]
    assert stamped == sorted(stamped)
    one = running.run("logs", "1").stdout
    assert "engine 1" in one
    assert "engine 0 " not in one
    assert len(running.run("logs", "-n", "1").stdout.splitlines()) == 1
    files = list((running.runtime / "enginery" / "default" / "logs").iterdir())
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * len(files)


def test_logs_of_both_formats(shell: Shell, tmp_path: Path) -> None:
    """Lines for people (local time) and JSON (UTC) are put in order; an engine is found in either.

    What follows a line, such as a traceback, stays with it.
    """
    directory = tmp_path / "state" / "logs"
    directory.mkdir(parents=True)
    (directory / "controller-1.log").write_text(
        "2026-01-01 12:00:00,100 INFO    controller engine 3: first\nTraceback of it\n"
        "2026-01-01 12:00:00,300 INFO    controller engine 31: third\n"
    )
    (directory / "host-1.log").write_text(
        '{"time": "2026-01-01T12:00:00.200+00:00", "process": "host", "engine": 3, "message": "second"}\n'
    )
    arguments = ("logs", "--state-dir", str(tmp_path / "state"))
    every = shell.run(*arguments, TZ="UTC").stdout
    places = [every.index(word) for word in ("first", "Traceback", "second", "third")]
    assert places == sorted(places)
    one = shell.run(*arguments, "3", TZ="UTC").stdout
    assert "Traceback" in one
    assert "second" in one
    assert "third" not in one


def test_logs_follow(running: Shell) -> None:
    """-f goes on until it is interrupted: another engine's arrival shows."""
    with running.start("logs", "-f", PYTHONUNBUFFERED="1") as logs, running.start("engine") as engine:
        assert logs.stdout is not None
        for line in logs.stdout:
            if "engine 2" in line:
                break
        logs.send_signal(signal.SIGINT)
        engine.terminate()
        _, error = logs.communicate(timeout=20)
        assert logs.returncode == 130
        assert "Traceback" not in error
        engine.communicate(timeout=20)
        assert engine.returncode == 143


def test_down_leaves_nothing(shell: Shell) -> None:
    """What runs has time to end; no process and no file is left; engines started by hand stop too."""
    said = shell.run("up", "-n", "1").stdout
    for word in (
        "1 engine ready",
        "state directory",
        "127.0.0.1:",
        "enginery.connect()",
        "grpcurl",
        "enginery down",
    ):
        assert word in said
    with shell.start("engine") as engine:
        eventually(
            lambda: len(json.loads(shell.run("status", "--json").stdout)["engines"]) == 2, shell.processes
        )
        finished = shell.runtime / "finished"
        shell.run("exec", "-d", "-t", "0", f"import time; time.sleep(1); open({str(finished)!r}, 'w').close()")
        assert shell.run("down").stdout.startswith("stopped 3 processes, removed ")
        finished.unlink()
        _, error = engine.communicate(timeout=20)
        assert "Traceback" not in error
    assert shell.processes() == []
    assert shell.left() == []


def test_down_after_the_controller_was_killed(shell: Shell) -> None:
    """Nobody answers, and everything is stopped all the same."""
    shell.run("up", "-n", "1")
    pid = json.loads(shell.run("status", "--json").stdout)["pid"]
    subprocess.run(["kill", "-9", str(pid)], check=True)
    eventually(lambda: shell.run("status", code=1).returncode == 1, shell.processes)
    shell.run("down")
    assert shell.processes() == []
    assert shell.left() == []


def test_down_leaves_a_folder_alone_that_is_no_clusters(shell: Shell, tmp_path: Path) -> None:
    """Whatever is in it: it was named by mistake."""
    for name in ("logs", "journal", "processes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").touch()
    assert shell.run("down", "--state-dir", str(tmp_path)).stdout.startswith("no cluster in ")
    assert len(list(tmp_path.glob("*/mine.txt"))) == 3


def test_a_kept_state_directory_is_used_again(shell: Shell, tmp_path: Path) -> None:
    """--keep: the next cluster has the same id, port, authority and token, so connection files stay good."""
    state = tmp_path / "state"
    shell.run("up", "-n", "0", "--state-dir", str(state))
    before = read(state / "client.json", "client")
    shell.run("down", "--keep", "--state-dir", str(state))
    assert shell.processes() == []
    shell.run("up", "-n", "0", ENGINERY_STATE_DIR=str(state))
    after = read(state / "client.json", "client")
    for name in ("cluster_id", "address", "ca_pem", "token"):
        assert getattr(before, name) == getattr(after, name), name
    assert before.pid != after.pid
    shell.run("down", "--state-dir", str(state))
    assert not state.exists()


def test_several_clusters(shell: Shell, tmp_path: Path) -> None:
    """Commands list them and never guess; a named one is used."""
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    for path in (first, second):
        shell.run("up", "-n", "0", "--state-dir", path)
    for command in ("status", "down", "logs"):
        error = shell.run(command, code=1).stderr
        assert first in error
        assert second in error
    shell.run("down", "--state-dir", first)
    assert second in shell.run("status").stdout
    shell.run("down")
    assert shell.processes() == []


def test_what_up_printed_works_where_it_is_pasted(shell: Shell, tmp_path: Path) -> None:
    """A state directory that is not the default one is named in every line, quoted, whatever else runs."""
    path = str(tmp_path / "a dir")
    said = shell.run("up", "-n", "0", "--state-dir", path).stdout
    lines = {line[2:19].strip(): line[19:] for line in said.splitlines()[1:]}
    assert "elsewhere" not in lines
    assert "client.json" in shell.run("up", "-n", "0", "--bind", "0.0.0.0", "--advertise", "localhost").stdout
    script = f"import enginery; print({lines['from Python']}.ids)"
    assert subprocess.check_output([sys.executable, "-c", script], env=shell.environment, text=True) == "[]\n"
    assert shlex.split(lines["from a shell"])[3:] == [f"{path}/client.sock", "list"]
    assert shlex.split(lines["more engines"]) == ["enginery", "engine", "-n", "2", "--state-dir", path]
    assert path in shell.run(*shlex.split(lines["stop"])[1:]).stdout
    shell.run("down")


def test_up_that_fails_leaves_nothing(shell: Shell) -> None:
    """The error has the end of the log of what failed."""
    error = shell.run("up", "-n", "1", "--bind", "203.0.113.1", code=1).stderr
    assert "controller ended while it started" in error
    assert "203.0.113.1" in error
    assert shell.processes() == []


@pytest.mark.parametrize(
    "arguments",
    [("-n", "-1"), ("--property", "novalue"), ("--port", "70000"), ("--log-level", "loud"), ("--nonsense",)],
)
def test_wrong_usage(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Exit code 2, before anything is started."""
    shell.run("up", *arguments, code=2)
    assert shell.left() == []


def test_an_address_that_leads_nowhere(shell: Shell) -> None:
    """If this machine cannot reach what is advertised, `up` says so, and not that no controller runs."""
    said = shell.run("up", "-n", "1", "--bind", "0.0.0.0", "--advertise", "127.0.0.1:1", code=1).stderr
    assert "give another --advertise" in said
    assert "Connection refused" in said


def test_a_folder_with_a_copied_client_file(running: Shell, tmp_path: Path) -> None:
    """Is a cluster elsewhere: every command that needs no file of it works, and none touches the folder."""
    folder = tmp_path / "copied"
    folder.mkdir(mode=0o700)
    shutil.copy2(running.runtime / "enginery" / "default" / "client.json", folder)
    where = ("--state-dir", str(folder))
    assert "42" in running.run("exec", "6 * 7", *where).stdout
    assert "all is well" in running.run("doctor", *where).stdout
    assert "run `enginery logs` on that machine" in running.run("logs", *where, code=1).stderr
    assert [path.name for path in folder.iterdir()] == ["client.json"]
