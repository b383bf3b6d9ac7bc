"""Networks of the machines: a namespace and a link for each where this machine allows it, else the loopback.

The whole run lives in namespaces of its own (see `isolate`): whatever happens to it, no interface, mount or
process is left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

CONTROLLER_ADDRESS = "10.99.0.1"
INSIDE = "ENGINERY_CHAOS_INSIDE"  # set in the environment of the run itself: "isolated", or "loopback"
_UNSHARE = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_NOBODY = "02:00:00:00:00:99"  # a hardware address that no interface has
_SLOW = ["rate", "2mbit", "burst", "16kb", "latency", "150ms"]  # what does not fit is dropped: slow, and lossy


def isolate(arguments: list[str]) -> list[str]:
    """Return the command that runs this Python with `arguments`, in namespaces of its own if it may."""
    prefix = _unshare()
    inside = "loopback" if prefix is None else "isolated"
    return [*(prefix or []), "env", f"{INSIDE}={inside}", sys.executable, *arguments]


def _unshare() -> list[str] | None:
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip", "tc", "ss")):
        return None
    prefix = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), *_UNSHARE]
    probe = subprocess.run([*prefix, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return prefix if probe.returncode == 0 else None


class Network(Protocol):
    """The links of all machines. The controller's own network is where the run itself is."""

    address: str
    """Where the controller listens."""
    has_links: bool
    """Whether links can be cut, slowed and reset."""

    def on(self, machine: str) -> list[str]:
        """Return what to put before a command so that it runs on `machine`."""

    def cut(self, machine: str) -> None:
        """Lose every packet between `machine` and the controller; nobody is told."""

    def heal(self, machine: str) -> None:
        """End a cut."""

    def slow(self, machine: str) -> None:
        """Make the link slow and lossy."""

    def quicken(self, machine: str) -> None:
        """End being slow."""

    def reset(self, machine: str, *, both_ends: bool) -> None:
        """Break all connections of the machine, or its ends of them alone."""

    def address_of(self, machine: str) -> str:
        """Return where others reach the machine."""

    def cut_between(self, machine: str, other: str) -> None:
        """Lose every packet between two machines, neither of which is the controller's."""

    def heal_between(self, machine: str, other: str) -> None:
        """End that."""

    def reset_between(self, machine: str, other: str) -> None:
        """Break the connections of two machines."""


class Loopback:
    """All machines are this one: no link to break."""

    address = "127.0.0.1"
    has_links = False

    def on(self, machine: str) -> list[str]:
        """Run it here."""
        return []

    def cut(self, machine: str) -> None:
        """Be refused: there is no link."""
        raise NotImplementedError(f"{machine} has no link")

    heal = slow = quicken = cut

    def reset(self, machine: str, *, both_ends: bool) -> None:
        """Be refused: there is no link."""
        self.cut(machine)

    def address_of(self, machine: str) -> str:
        """It is here."""
        return self.address

    def cut_between(self, machine: str, other: str) -> None:
        """Be refused: there is no link."""
        self.cut(machine)

    heal_between = reset_between = cut_between


class Namespaces:
    """A namespace for each machine, joined to the controller's by a pair of virtual interfaces."""

    address = CONTROLLER_ADDRESS
    has_links = True

    def __init__(self, machines: list[str]) -> None:
        """Make them. Only in a run that is isolated."""
        self._number = {machine: number for number, machine in enumerate(machines, 1)}
        _run("mount", "-t", "tmpfs", "tmpfs", "/run")
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "address", "add", f"{self.address}/32", "dev", "lo")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")  # for the hosts' own ports
        for machine, number in self._number.items():
            _run("ip", "netns", "add", machine)
            _run(
                "ip",
                "link",
                "add",
                self._link(machine),
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                machine,
            )
            _run("ip", "address", "add", f"10.99.{number}.1/24", "dev", self._link(machine))
            _run("ip", "link", "set", self._link(machine), "up")
            inside = self.on(machine)
            _run(*inside, "ip", "link", "set", "lo", "up")
            _run(*inside, "ip", "address", "add", f"10.99.{number}.2/24", "dev", "eth0")
            _run(*inside, "ip", "link", "set", "eth0", "up")
            _run(*inside, "ip", "route", "add", "default", "via", f"10.99.{number}.1")

    def on(self, machine: str) -> list[str]:
        """Return how to enter the machine's namespace; the controller's is the run's own."""
        return ["nsenter", f"--net=/run/netns/{machine}"] if machine in self._number else []

    def cut(self, machine: str) -> None:
        """Teach both ends a wrong hardware address: packets leave as ever, and nobody takes them."""
        for inside, end, device in self._ends(machine):
            nobody = ["lladdr", _NOBODY, "nud", "permanent"]
            _run(*inside, "ip", "neighbour", "replace", end, *nobody, "dev", device)

    def heal(self, machine: str) -> None:
        """Let them find each other again."""
        for inside, end, device in self._ends(machine):
            _run(*inside, "ip", "neighbour", "del", end, "dev", device)

    def slow(self, machine: str) -> None:
        """Shape both directions."""
        _run("tc", "qdisc", "add", "dev", self._link(machine), "root", "tbf", *_SLOW)
        _run(*self.on(machine), "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *_SLOW)

    def quicken(self, machine: str) -> None:
        """Shape no more."""
        _run("tc", "qdisc", "del", "dev", self._link(machine), "root")
        _run(*self.on(machine), "tc", "qdisc", "del", "dev", "eth0", "root")

    def reset(self, machine: str, *, both_ends: bool) -> None:
        """Destroy the sockets; the other end is told by a RST, which a cut link loses."""
        _run(*self.on(machine), "ss", "--tcp", "--kill", "dst", "10.99.0.0/16")
        if both_ends:
            _run("ss", "--tcp", "--kill", "dst", self.address_of(machine))

    def address_of(self, machine: str) -> str:
        """Return its end of its link."""
        return f"10.99.{self._number[machine]}.2"

    def cut_between(self, machine: str, other: str) -> None:
        """Drop what is to be passed on from one to the other, both ways; nobody is told."""
        for rule in self._between(machine, other):
            _run("ip", "rule", "add", *rule)

    def heal_between(self, machine: str, other: str) -> None:
        """Pass it on again."""
        for rule in self._between(machine, other):
            _run("ip", "rule", "del", *rule)

    def reset_between(self, machine: str, other: str) -> None:
        """Destroy the sockets of one; the other is told by a RST."""
        _run(*self.on(machine), "ss", "--tcp", "--kill", "dst", self.address_of(other))

    def _between(self, machine: str, other: str) -> list[list[str]]:
        ends = self.address_of(machine), self.address_of(other)
        return [["from", one, "to", two, "blackhole"] for one, two in (ends, ends[::-1])]

    def _ends(self, machine: str) -> list[tuple[list[str], str, str]]:
        """Return both ends of the link: how to get there, the address of the other end, and the interface."""
        number = self._number[machine]
        return [([], f"10.99.{number}.2", self._link(machine)), (self.on(machine), f"10.99.{number}.1", "eth0")]

    def _link(self, machine: str) -> str:
        return f"to-{machine}"


def make(machines: list[str]) -> Network:
    """Return namespaces if this run is isolated, else the loopback."""
    return Namespaces(machines) if os.environ.get(INSIDE) == "isolated" else Loopback()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
