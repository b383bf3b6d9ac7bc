"""The machines of a run: their processes, their disks and their clocks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import TYPE_CHECKING

import psutil

from tests.architecture.source import ROOT
from tests.chaos.schedule import CONTROLLER

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.network import Network

ENGINES = 2  # of each host
DISK = 96 << 20  # bytes of the controller's disk, which can be filled up
JOURNAL = "36M"  # of it, so that it is never full by itself
_CLOCK = "CHAOS_CLOCK"
_STOPPING = 20.0  # seconds that a process gets to end


@dataclass(slots=True)
class Machine:
    """One machine: what runs on it now, and every kernel that ended because of what was done to it."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    life: int = -1
    started: float = 0.0
    frozen: list[int] = field(default_factory=list)


class Machines:
    """All machines of a run."""

    def __init__(
        self, folder: Path, network: Network, hosts: list[str], clients: dict[str, str], lease: float, seed: int
    ) -> None:
        """Make disks and clocks. `clients` says which module each of them runs."""
        self._folder = folder
        self._network = network
        self._clients = clients
        self._lease = lease
        self._seed = seed
        self.hosts = hosts
        self.all = {name: Machine(name) for name in (CONTROLLER, *hosts, *clients)}
        for name in ("state", "ledger", "logs", "clocks"):
            (folder / name).mkdir(exist_ok=True)
        if network.has_links:  # so this run is isolated, and mounts end with it
            mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(folder / "state")]
            subprocess.run(mount, check=True)
        (folder / "state").chmod(0o700)
        self.has_disk = network.has_links
        self._preload = _build_clock(folder)
        self.has_clocks = self._preload is not None
        for name in self.all:
            self.set_clock(name, 0)

    # ---- processes

    def start(self, name: str) -> None:
        """Start what belongs on the machine; it had ended."""
        machine = self.all[name]
        assert machine.process is None or machine.process.poll() is not None, f"{name} runs"
        machine.life += 1
        machine.started = time.monotonic()
        log = self._folder / "logs" / name
        # Not what gRPC was told in the process that runs the tests: the caller is to be as any program is.
        env = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_")}
        if self._preload is not None:
            env.update({"LD_PRELOAD": str(self._preload), _CLOCK: str(self._clock(name))})
        with log.open("ab") as out:
            out.write(f"==== {name}, life {machine.life}, at {machine.started:.3f}\n".encode())
            out.flush()
            machine.process = subprocess.Popen(
                [*self._network.on(name), sys.executable, *self._arguments(name, machine.life)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env=env,
            )

    def _arguments(self, name: str, life: int) -> list[str]:
        state = self._folder / "state"
        level = ["--log-level", os.environ.get("CHAOS_LOG", "info")]
        if name == CONTROLLER:
            where = ["--state-dir", str(state), "--bind", self._network.address]
            return [
                "-m",
                "controller_service",
                *where,
                "--lease",
                str(self._lease),
                "--journal-limit",
                JOURNAL,
                *level,
            ]
        if name in self.hosts:
            label = ["--property", f'machine="{name}"']
            file = ["--connection-file", str(state / "engine.json"), "--bind", self._network.address_of(name)]
            log = ["--log-file", os.devnull]
            return ["-m", "engine_service", "-n", str(ENGINES), *label, *file, *log, *level]
        return ["-m", self._clients[name], str(self._folder), name, str(life), str(self._seed)]

    def is_running(self, name: str) -> bool:
        """Whether the machine's process is there."""
        process = self.all[name].process
        return process is not None and process.poll() is None

    def end(self, name: str, number: Signals) -> int:
        """Send a signal that ends the process and wait for its exit code; if it takes long, kill it."""
        process = self.all[name].process
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(_STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return -SIGKILL

    def wait(self, name: str, seconds: float) -> int | None:
        """Wait for the process to end by itself; return its exit code, None if it does not."""
        process = self.all[name].process
        assert process is not None
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kernels(self, host: str) -> list[int]:
        """Return the process ids of a host's kernels, rising."""
        process = self.all[host].process
        if process is None:
            return []
        try:
            children = psutil.Process(process.pid).children()
        except psutil.NoSuchProcess:
            return []
        return sorted(child.pid for child in children if _is_kernel(child))

    def has_registered(self, host: str) -> bool:
        """Whether the engines of the host that runs now were registered, as it says itself."""
        return "registered: kernel" in self._last_words(host)

    def has_spoken(self, name: str) -> bool:
        """Whether the process of a machine that runs now has logged anything: its first line is the life's."""
        return self._last_words(name).count("\n") > 1

    def had_no_disk(self, name: str) -> bool:
        """Whether the process of a machine has ended since it could not write what it needs to start."""
        return "enginery controller: [Errno 28]" in self._last_words(name)

    def was_fenced(self, name: str) -> bool:
        """Whether a host has ended since others took the ids of all its engines after their lease."""
        return _is_fenced(self._last_words(name))

    def fenced_kernels(self) -> set[int]:
        """Return the process ids of all kernels whose hosts ended for that."""
        lives = [life for host in self.hosts for life in self._words(host) if _is_fenced(life)]
        return {int(pid) for life in lives for pid in re.findall(r"pid (\d+)", life)}

    def _last_words(self, name: str) -> str:
        """Return what the last life of a machine has logged."""
        return self._words(name)[-1]

    def _words(self, name: str) -> list[str]:
        """Return what each life of a machine has logged."""
        return (self._folder / "logs" / name).read_text(errors="replace").split("\n==== ")

    def freeze(self, name: str, pids: list[int]) -> None:
        """Stop processes of a machine in their tracks."""
        self.all[name].frozen.extend(pids)
        for pid in pids:
            _send(pid, SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let all frozen processes of a machine go on."""
        for pid in self.all[name].frozen:
            _send(pid, SIGCONT)
        self.all[name].frozen.clear()

    # ---- disk and clock

    def fill_disk(self) -> None:
        """Fill the controller's disk to the last byte."""
        with contextlib.suppress(OSError), (self._folder / "state" / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    def empty_disk(self) -> None:
        """Make room on it again."""
        (self._folder / "state" / "ballast").unlink(missing_ok=True)

    def set_clock(self, name: str, seconds: float) -> None:
        """Let the wall clock of a machine be so many seconds off."""
        with self._clock(name).open("r+b" if self._clock(name).exists() else "wb") as file:
            file.write(struct.pack("q", int(seconds * 1e9)))

    def _clock(self, name: str) -> Path:
        return self._folder / "clocks" / name

    # ---- the whole

    def is_ready(self) -> bool:
        """Whether the controller that runs now has written its connection files."""
        process = self.all[CONTROLLER].process
        with contextlib.suppress(FileNotFoundError):
            said = json.loads((self._folder / "state" / "client.json").read_text())
            return process is not None and bool(said["pid"] == process.pid)
        return False

    def close(self) -> None:
        """End every process that is left."""
        for name, machine in self.all.items():
            self.thaw(name)
            if machine.process is not None:
                machine.process.kill()
                machine.process.wait()


def _is_fenced(life: str) -> bool:
    return "has another holder now" in life and "all engines have left" in life


def _is_kernel(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and any("kernel" in part for part in process.cmdline())
    return False


def _send(pid: int, number: Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _build_clock(folder: Path) -> Path | None:
    """Compile the clock that jumps; None if there is no compiler or this is no Linux."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "clock.so"
    source = ROOT / "tests" / "chaos" / "clock.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library
