"""ops, attach and cancel: operations as a person sees, follows and stops them from a shell."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from enginery.cli.app import app
from enginery.errors import EngineryError, OperationNotFound

from .conftest import Shell, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENDLESS = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)"
STUBBORN = """
import time
while True:
    try:
        open({path!r}, 'w').close()  # from here on an interrupt is in vain
        time.sleep(60)
    except KeyboardInterrupt:
        print('no', flush=True)
"""


@pytest.fixture
def command(running: Shell, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process, which is much quicker; its exit code must be `code`."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(running.runtime))
    monkeypatch.delenv("ENGINERY_STATE_DIR", raising=False)

    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments)
        if isinstance(result.exception, EngineryError):
            raise result.exception
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


def begin(command: Callable[..., Result], code: str) -> str:
    """Begin `code` on engine 0 and return the operation's id."""
    return command("exec", "-t", "0", "-d", code).stdout.strip()


def listed(command: Callable[..., Result], operation_id: str) -> dict[str, object]:
    found = json.loads(command("ops", "--json").stdout)["operations"]
    return next(operation for operation in found if operation["operation_id"] == operation_id)


def test_a_detached_call_can_be_read(command: Callable[..., Result]) -> None:
    """exec -d leaves it running; attach follows it to its end, replays it later, and from where one stopped."""
    operation_id = begin(
        command, "import time\nfor i in range(3): print(i, flush=True); time.sleep(0.05)\n'end'"
    )
    assert command("attach", operation_id).stdout == "0\n1\n2\n'end'\n"
    again = command("attach", operation_id[3:].upper())
    assert (again.stdout, again.stderr) == ("0\n1\n2\n'end'\n", "")
    assert command("attach", operation_id, "--after", "1000").stdout == "'end'\n"


def test_the_list(command: Callable[..., Result]) -> None:
    """The newest first, with state and call; filters by engine and state; whole lines where no terminal is."""
    first, second = begin(command, "1"), begin(command, "raise ValueError('no ' + 'x' * 200)")
    command("attach", second, code=1)
    head, *lines = command("ops").stdout.splitlines()
    assert head.split() == ["operation", "engine", "state", "age", "ran", "method", "arguments"]
    ids = [line.split()[0] for line in lines]
    assert ids.index(second) < ids.index(first)
    assert re.search(r" 0  failed .*execute  .*ValueError", lines[ids.index(second)])
    failed = json.loads(command("ops", "--state", "failed", "--engine", "0", "--json").stdout)["operations"]
    assert second in [operation["operation_id"] for operation in failed]
    assert {operation["state"] for operation in failed} == {"failed"}
    assert json.loads(command("ops", "--state", "lost", "--json").stdout) == {"operations": []}
    assert command("ops", "-s", "lost").stderr == "no such operations\n"
    short = command("ops", "-n", "1")
    assert len(short.stdout.splitlines()) == 2
    assert "and more" in short.stderr


def test_ctrl_c_detaches(running: Shell, command: Callable[..., Result]) -> None:
    """The operation goes on, and it is said how to come back; then it is cancelled, and attach says so."""
    operation_id = begin(command, ENDLESS)
    with running.start("attach", operation_id, PYTHONUNBUFFERED="1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    back = re.search(rf"enginery attach {operation_id} --after (\d+)\n", error)
    assert back is not None
    assert f"enginery cancel {operation_id}\n" in error
    assert "Traceback" not in error
    assert listed(command, operation_id)["state"] == "running"
    assert "cancelled" in command("cancel", operation_id).stdout
    after = command("attach", operation_id, "--after", back[1], code=3)
    assert after.stdout in ("", "begun\n")  # again if Ctrl-C came while it was printed: rather twice than never
    assert "KeyboardInterrupt" in after.stderr
    assert command("cancel", operation_id).stdout == "it has ended already: cancelled\n"


def test_what_waits_is_taken_out(command: Callable[..., Result]) -> None:
    """It never runs; what runs goes on."""
    runs, waits = begin(command, ENDLESS), begin(command, "ran = True")
    assert listed(command, waits)["state"] == "queued"
    assert "queue" in command("cancel", waits).stdout
    assert listed(command, runs)["state"] == "running"
    command("cancel", runs)
    assert command("exec", "-t", "0", "'ran' in globals()").stdout == "False\n"


def test_ctrl_c_of_exec_stops_its_own_call(running: Shell, command: Callable[..., Result]) -> None:
    """What others run on the engine goes on."""
    others = begin(command, ENDLESS)
    with running.start("exec", "-t", "0", "ran = True") as process:
        eventually(lambda: "queued" in command("ops").stdout, lambda: command("ops").output)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert listed(command, others)["state"] == "running"
    command("cancel", others)
    assert command("exec", "-t", "0", "'ran' in globals()").stdout == "False\n"


def test_what_does_not_stop(command: Callable[..., Result], tmp_path: Path) -> None:
    """--interrupt-only keeps the kernel, says that it still runs and how to go on; --kill ends it."""
    stubborn = tmp_path / "stubborn"
    operation_id = begin(command, STUBBORN.format(path=str(stubborn)))
    eventually(stubborn.exists, lambda: command("ops").output)
    with pytest.raises(EngineryError, match=rf"still runs: `enginery cancel --kill {operation_id}`"):
        command("cancel", operation_id, "--grace", "0.1", "--interrupt-only")
    assert listed(command, operation_id)["stopping"] is True
    assert "kill" in command("cancel", operation_id, "--grace", "0.1", "--kill").stdout
    assert "no\n" in command("attach", operation_id, code=3).stdout
    assert command("exec", "-t", "0", "1").stdout == "1\n"


def test_an_operation_that_is_not_there(command: Callable[..., Result]) -> None:
    """Each command says so; what cannot be an id is wrong usage."""
    for name in ("attach", "cancel"):
        with pytest.raises(OperationNotFound):
            command(name, "0193f3c2-0000-8000-8000-0000000000ff")
        with pytest.raises(OperationNotFound, match="enginery ops"):
            command(name, "fffffffffff")
        command(name, "nonsense", code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("exec", "--timeout", "1e10", "1"),
        ("cancel", "--grace", "1e10", "00"),
        ("down", "--grace", "inf"),
        ("attach", "--after", str(1 << 64), "00"),
    ],
)
def test_numbers_that_no_message_carries(command: Callable[..., Result], arguments: tuple[str, ...]) -> None:
    """They are wrong usage, and no traceback."""
    command(*arguments, code=2)


def test_exec_stops_at_its_timeout(command: Callable[..., Result]) -> None:
    """The exit code says so, as that of attach; the namespace is kept."""
    done = command("exec", "-t", "0", "--timeout", "0.1", "kept = 1\nwhile True: pass", code=4)
    assert "timeout" in done.stderr
    assert command("exec", "-t", "0", "kept").stdout == "1\n"
