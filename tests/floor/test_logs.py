"""Log lines for people, in files that stay small."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from enginery import _ids, _logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = "import sys; from pathlib import Path; from enginery import _logs; import logging; "


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Give pytest its own handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield root
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def run(code: str, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT + code, *arguments], stderr=stderr, check=True, timeout=30
    )


def test_lines_go_to_stderr_and_file(tmp_path: Path) -> None:
    """One line an event, with time, level and process; the file is private."""
    path = tmp_path / "x.log"
    code = (
        "_logs.setup('host', 'info', Path(sys.argv[1])); logging.info('engine 3 is here'); logging.debug('x')"
    )
    done = run(code, str(path))
    assert done.stderr == path.read_bytes()
    assert b" INFO    host: engine 3 is here\n" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_come_once_if_stderr_is_the_file(tmp_path: Path) -> None:
    """The starter makes the file stderr, so that crashes are in it as well."""
    path, fd = _logs.claim(tmp_path, "host")
    code = (
        "_logs.setup('host', 'info', Path(sys.argv[1])); logging.info('once'); print('crash', file=sys.stderr)"
    )
    run(code, str(path), stderr=fd)
    os.close(fd)
    assert path.read_text().count("once") == 1
    assert "crash" in path.read_text()


def test_claimed_files_have_one_writer(tmp_path: Path) -> None:
    """A file is taken while its writer lives, and used on afterwards."""
    first, first_fd = _logs.claim(tmp_path, "host")
    second, second_fd = _logs.claim(tmp_path, "host")
    os.close(first_fd)
    third, third_fd = _logs.claim(tmp_path, "host")
    os.close(second_fd)
    os.close(third_fd)
    assert [path.name for path in (first, second, third)] == ["host-1.log", "host-2.log", "host-1.log"]


def test_files_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root_logger: logging.Logger
) -> None:
    """At the limit the file starts anew and the older part is kept once."""
    monkeypatch.setattr(_logs, "MAX_BYTES", 300)
    path = tmp_path / "x.log"
    _logs.setup("host", "warning", path)
    root_logger.handlers.pop(0)  # not to stderr
    for number in range(20):
        logging.getLogger("x").warning("line %d", number)
    assert path.stat().st_size <= 300
    older = path.with_name("x.log.1")
    assert "line 19" in older.read_text() + path.read_text()
    assert older.stat().st_size <= 400
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.log", "x.log.1"]


def test_lone_surrogates_are_logged(tmp_path: Path) -> None:
    """No text of a user breaks the log."""
    path = tmp_path / "x.log"
    run("_logs.setup('host', 'info', Path(sys.argv[1])); logging.info('a\\udcffb')", str(path))
    assert "a\\udcffb" in path.read_text()


def test_a_message_cannot_pose_as_a_line_of_its_own(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Further lines of a message are indented, and control characters are shown, not sent to the terminal."""
    _logs.setup("controller")
    logging.getLogger("test").info("engine %d: gone: %s", 3, "bye\n2026-01-01 ERROR   forged\x1b[2J")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("engine 3: gone: bye")
    assert second == "    2026-01-01 ERROR   forged\\x1b[2J"


def test_a_line_says_what_it_is_about(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Engine, operation and client stand before the message, each where it is given: grep finds a story."""
    session = bytes.fromhex("0192000000008000")
    operation = _ids.operation_id(session, 1)
    _logs.setup("host")
    log = logging.getLogger("test")
    log.info("began", extra=_logs.about(engine=3, operation=operation, client=session))
    log.info("ended", extra=_logs.about(operation=_ids.show(operation)))
    log.info("waits", extra=_logs.about(engine=-1))
    began, ended, waits = capsys.readouterr().err.splitlines()
    subject = f"operation {_ids.show(operation)}"
    assert began.endswith(f" INFO    host engine 3 {subject} client {session.hex()}: began")
    assert ended.endswith(f" INFO    host {subject}: ended")
    assert waits.endswith(" INFO    host: waits")


def test_lines_for_programs(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line, whatever the message holds; a traceback is a field of it."""
    _logs.setup("controller", "debug", format="json")
    log = logging.getLogger("test")
    log.debug("a\n\u2028b\udcff", extra=_logs.about(engine=0, client=b"\1\2"))
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("a defect")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "debug", "process": "controller", "engine": 0, "client": "0102", "message": "a\n\u2028b\udcff",
    }  # fmt: skip
    assert second["level"] == "error"
    assert "ValueError: no" in second["exception"]
    assert set(second) == {"time", "level", "process", "message", "exception"}
