"""Machines far from each other: namespaces of network and of files, and links that delay and lose packets.

A namespace lives as long as a process that is in it: `cat`, which ends with the test, however that ends. So
nothing is left behind, and the network of this machine is not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.architecture.source import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "ss", "mount")
_DEVICE_NAME = 15  # characters


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine: its own network, and a folder of its own, which is its user's home."""

    name: str
    pid: int
    folder: Path

    def on(self, *command: str) -> list[str]:
        """Return `command` so that it runs on this machine."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", *command]

    def run(self, *command: str) -> None:
        """Run a command there."""
        subprocess.run(self.on(*command), check=True, timeout=10)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its programs: nothing there leads to another machine's files."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("GRPC_", "ENGINERY_STATE"))
        }
        return {**kept, "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}

    @contextmanager
    def program(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run a Python program there; its lines come from `stdout`, and it is gone at the end."""
        process = subprocess.Popen(
            self.on(sys.executable, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**self.environment, **environment},
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()

    def lose_connections(self) -> None:
        """Destroy this machine's ends of all connections; a packet tells the other ends, and may be lost."""
        self.run("sh", "-c", "ss --tcp --kill state established > /dev/null")


class Link:
    """A link between two machines; see packet_link.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take its process."""
        self._process = process

    def set_loss(self, loss: float) -> tuple[int, int]:
        """Lose this part of all packets from here on; return how many were carried and lost until now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{loss}\n")
        self._process.stdin.flush()
        carried, lost = self._process.stdout.readline().split()
        return int(carried), int(lost)


class Network:
    """Some machines and the links between them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Take a folder for all, and what tidies up."""
        self._folder = folder
        self._stack = stack

    def machine(self, name: str, *hidden: Path, hosts: Mapping[str, str], name_server: str) -> Machine:
        """Return a new machine, which does not see the folders `hidden`, and knows the names of `hosts`."""
        folder = self._folder / name
        folder.mkdir(mode=0o700)
        etc = self._folder / f"etc-{name}"
        etc.mkdir()
        names = {"localhost": "127.0.0.1", **hosts}
        (etc / "hosts").write_text("".join(f"{address} {host}\n" for host, address in names.items()))
        (etc / "resolv.conf").write_text(f"nameserver {name_server}\n")
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", "echo && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stack.enter_context(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n", "no namespaces: they take root"
        machine = Machine(name, process.pid, folder)
        machine.run("ip", "link", "set", "lo", "up")
        for file in etc.iterdir():
            machine.run("mount", "--bind", str(file), f"/etc/{file.name}")
        for place in hidden:
            machine.run("mount", "-t", "tmpfs", "tmpfs", str(place))
        return machine

    def link(
        self, near: Machine, near_address: str, far: Machine, far_address: str, delay: float, loss: float
    ) -> Link:
        """Join two machines: `delay` in seconds each way, `loss` the part of all packets that is lost."""
        assert max(len(f"to-{address}") for address in (near_address, far_address)) <= _DEVICE_NAME
        ends = [str(near.pid), near_address, str(far.pid), far_address]
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.packet_link", *ends, str(delay), str(loss)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", "no link: it takes root and /dev/net/tun"
        return Link(process)


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Give a network without machines; it is gone at the end."""
    if os.geteuid() != 0:
        pytest.skip("namespaces and links take root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    assert not missing, f"no {', '.join(missing)}: .ci/run installs iproute2 and util-linux"
    with ExitStack() as stack:
        yield Network(folder, stack)


_READER = """
import json, sys
for line in sys.stdin:
    code, is_value = json.loads(line)
    value = eval(code) if is_value else exec(code)
    print(json.dumps(value), flush=True)
"""


class Script:
    """A Python program on another machine that runs what it is told, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take its process."""
        self._process = process

    def run(self, code: str) -> None:
        """Run statements."""
        self._ask(code, is_value=False)

    def value(self, expression: str) -> Any:
        """Return the value of an expression, which JSON can express."""
        return self._ask(expression, is_value=True)

    def _ask(self, code: str, *, is_value: bool) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([code, is_value]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the program ended at: {code}"
        return json.loads(answer)


@contextmanager
def script(machine: Machine, **environment: str) -> Iterator[Script]:
    """Give a program of that machine's user, gone at the end."""
    with machine.program("-c", _READER, **environment) as process:
        yield Script(process)
