"""Tasks survive: controllers, hosts and clients are killed while they wait and run, and each ends once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import enginery
from tests.e2e.services import PATIENCE, controller, host, until


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state directory that is not there yet."""
    return tmp_path / "state"


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Return the file in which tasks write down that they run."""
    path = tmp_path / "ran"
    path.touch()
    return path


def note(path: str, name: str, seconds: float = 0.0, gate: str = "") -> str:
    """Write down that a task runs; then take that long, and until there is a file named `gate`."""
    with Path(path).open("a") as file:
        file.write(f"{name}\n")
    time.sleep(seconds)
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    return name


def kept_tasks(state: Path) -> int:
    """Return how many tasks the journal has."""
    with closing(sqlite3.connect(f"file:{state / 'journal' / 'journal.db'}?mode=ro", uri=True)) as journal:
        return int(journal.execute("SELECT count(*) FROM tasks").fetchone()[0])


def lines(ran: Path) -> list[str]:
    """Return which tasks have begun."""
    return sorted(ran.read_text().splitlines())


def test_tasks_survive_kill_9_of_the_controller(state: Path, ran: Path) -> None:
    """What was on engines, what waited and what came after it goes on as if nothing had been, and runs once."""
    names = [f"task {number}" for number in range(5)]
    with host(state, 2):
        with controller(state) as first:
            client = enginery.connect(state / "client.json")
            client.wait_for_engines(2, timeout=PATIENCE)
            tasks = [client.submit(note, str(ran), name, 0.2) for name in names]
            last = client.submit(note, str(ran), "task 5", after=tasks, retries=1)
            mapped = client.map(note, [str(ran)] * 30, [f"task {number}" for number in range(6, 36)])
            until(lambda: lines(ran), "the first to run")
            first.kill()
        with controller(state), client:
            assert [task.result(PATIENCE) for task in tasks] == names
            assert last.result(PATIENCE) == "task 5"
            assert list(mapped) == [f"task {number}" for number in range(6, 36)]
            assert {task.attempts for task in (*tasks, last)} == {1}
    assert lines(ran) == sorted(f"task {number}" for number in range(36))


def test_tasks_survive_kill_9_of_a_host(state: Path, ran: Path, tmp_path: Path) -> None:
    """Those that may run again do so on another, those that may not are lost, and both are told so."""
    gate = tmp_path / "gate"
    with (
        controller(state, "--lease", "0.5"),
        host(state, 2) as lost,
        enginery.connect(state / "client.json") as client,
    ):
        client.wait_for_engines(2, timeout=PATIENCE)
        again = client.submit(note, str(ran), "again", gate=str(gate), retries=1)
        once = client.submit(note, str(ran), "once", gate=str(gate))
        waits = client.submit(note, str(ran), "waits")
        until(lambda: len(lines(ran)) == 2, "both to run")
        lost.kill()
        gate.touch()
        with host(state):
            assert again.result(PATIENCE) == "again"
            assert again.attempts == 2
            assert waits.result(PATIENCE) == "waits"
        with pytest.raises(enginery.EngineLost):
            once.result(PATIENCE)
    assert lines(ran) == ["again", "again", "once", "waits"]


def test_tasks_survive_kill_9_of_their_client_and_of_the_controller(
    state: Path, ran: Path, tmp_path: Path
) -> None:
    """Another client has their results by the ids that the first wrote down, though nobody waited for them."""
    gate = tmp_path / "gate"
    script = (
        "import sys, enginery\n"
        "from tests.e2e.test_task_recovery import note\n"
        "file, ran, gate = sys.argv[1:]\n"
        "client = enginery.connect(file)\n"
        "first = client.submit(note, ran, 'first', gate=gate, label='of the dead')\n"
        "second = client.submit(note, ran, 'second', after=[first])\n"
        "third = client.submit(note, ran, 'third')\n"
        "print(first.id, second.id, third.id, flush=True)\n"
        "third.result()\n"
    )
    with host(state):
        with controller(state) as killed, enginery.connect(state / "client.json") as other:
            other.wait_for_engines(1, timeout=PATIENCE)
            command = [sys.executable, "-c", script, str(state / "client.json"), str(ran), str(gate)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                ids = process.stdout.readline().split()
                until(lambda: lines(ran) == ["first"], "the first to run")
                process.kill()
            until(lambda: kept_tasks(state) == 3, "the journal to have them")
            killed.kill()
        gate.touch()
        with controller(state), enginery.connect(state / "client.json") as other:
            tasks = [other.operation(one) for one in ids]
            assert [task.result(PATIENCE) for task in tasks] == ["first", "second", "third"]
            labels = {info.id: info.label for info in other.operations()}
            assert labels[ids[0]] == "of the dead"
    assert lines(ran) == ["first", "second", "third"]
