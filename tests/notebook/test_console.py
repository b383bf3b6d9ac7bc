"""`enginery console`, on a terminal as a person has it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import enginery

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>])")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self._seen = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def expect(self, text: str, timeout: float = 20.0) -> str:
        """Wait until `text` is shown, and return what was shown up to then since the last time."""
        deadline = time.monotonic() + timeout
        while text not in _ESCAPES.sub("", self._seen):
            assert time.monotonic() < deadline, self._seen
            if select.select([self._master], [], [], 0.1)[0]:
                self._seen += os.read(self._master, 65536).decode(errors="replace")
        before, _, self._seen = _ESCAPES.sub("", self._seen).partition(text)
        return before

    def close(self) -> None:
        """End the program if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def console(cluster: enginery.Cluster, tmp_path: Path) -> Iterator[Terminal]:
    environment = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "IPYTHONDIR": str(tmp_path), "COLUMNS": "120"}
    state = str(cluster.state_dir)
    arguments = [sys.executable, "-m", "enginery", "console", "-t", "1", "--state-dir", state]
    terminal = Terminal(arguments, os.environ | environment)
    yield terminal
    terminal.close()


def test_console(console: Terminal, cluster: enginery.Cluster) -> None:
    """What is typed runs on the engine, whose names are completed and explained; Ctrl-C interrupts it."""
    engine = cluster.client[1]
    engine.execute("lonely_name = 21\ndef half_of(x: float) -> float:\n    'Divide by two.'\n    return x / 2")
    assert "Engine 1, process" in console.expect("engine 1 [1]: ")
    console.type("answer = lonely_n\t")
    console.expect("lonely_name")
    console.type(" * 2\r")
    console.expect("engine 1 [2]: ")
    console.type("answer\r")
    console.expect("Out[1:")
    console.expect(": 42")
    assert engine["answer"] == 42
    console.type("half_of?\r")
    console.expect("Signature: half_of(x: float) -> float")
    console.expect("Divide by two.")
    console.expect("engine 1 [4]: ")
    console.type("import time; print('asleep'); time.sleep(60)\r")
    console.expect("\r\nasleep\r\n")
    os.killpg(console.process.pid, signal.SIGINT)  # as the terminal does for Ctrl-C
    console.expect("KeyboardInterrupt")
    console.expect("engine 1 [5]: ")
    console.type("exit\r")
    assert console.process.wait(10) == 0
    assert engine["answer"] == 42
