"""Carries the faults out, and keeps the log that says what may be excused by them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.machines import Machines
    from tests.chaos.network import Network
    from tests.chaos.schedule import Fault

_FARTHEST = 1_000  # seconds that a clock jumps at most


@dataclass(slots=True)
class Event:
    """A fault as it happened, on the monotonic clock. `killed` are the kernels that ended with it."""

    kind: str
    machine: str
    begin: float
    end: float = float("inf")
    killed: list[int] = field(default_factory=list)
    note: str = ""
    other: str = ""
    """The other end of a path."""

    @property
    def takes_away_the_way(self) -> bool:
        """Whether nobody can reach the engines of its machine while it lasts."""
        what, _, how = self.kind.removesuffix(" for long").partition(" ")
        return what not in ("kernel", "path") and how in ("killed", "stopped", "frozen", "cut", "half open")


class Faults:
    """Begins and ends faults."""

    def __init__(self, machines: Machines, network: Network) -> None:
        """Strike these machines."""
        self._machines = machines
        self._network = network
        self.events: list[Event] = []

    def is_struck(self, machine: str) -> bool:
        """Whether a machine has a fault now."""
        return any(event.machine == machine and event.end == float("inf") for event in self.events)

    def begin(self, fault: Fault) -> Event:
        """Let it happen; `end` ends it."""
        event = Event(fault.kind, fault.machine, time.monotonic())
        self.events.append(event)
        what, _, how = fault.kind.removesuffix(" for long").partition(" ")
        if what == "kernel":
            self._strike_kernel(event, how, fault)
        elif what == "link":
            self._break_link(fault.machine, how)
        elif what == "path":
            self._break_path(event, how, fault)
        elif what == "disk":
            self._machines.fill_disk()
        elif what == "clock":
            seconds = fault.choice % (2 * _FARTHEST) - _FARTHEST
            self._machines.set_clock(fault.machine, seconds)
            event.note = f"by {seconds} s"
        else:
            self._strike_process(event, what, how)
        return event

    def end(self, event: Event) -> None:
        """Let it be over."""
        what, _, how = event.kind.removesuffix(" for long").partition(" ")
        machine = event.machine
        if how in ("killed", "stopped") and what != "kernel":
            if not self._machines.is_running(machine):  # else another fault has ended before this one
                self._machines.start(machine)
        elif how == "frozen":
            self._machines.thaw(machine)
        elif event.kind == "path cut":
            self._network.heal_between(machine, event.other)
        elif how in ("cut", "half open"):
            self._network.heal(machine)
        elif how == "slow":
            self._network.quicken(machine)
        elif what == "disk":
            self._machines.empty_disk()
            self.revive(machine)
        elif what == "clock":
            self._machines.set_clock(machine, 0)
        event.end = time.monotonic()

    def revive(self, controller: str) -> None:
        """Start a controller that has ended, as it should, since there was no disk to start on."""
        if not self._machines.is_running(controller) and self._machines.had_no_disk(controller):
            self._machines.start(controller)

    def _strike_process(self, event: Event, what: str, how: str) -> None:
        machine = event.machine
        if not self._machines.is_running(machine):
            if self._machines.was_fenced(machine) or self._machines.had_no_disk(machine):  # as it should
                event.kind = f"{what} missed"
                self._machines.start(machine)
            else:
                event.note = f"{machine} had ended by itself"  # the verdict asks why
            return
        if how == "frozen":
            process = self._machines.all[machine].process
            assert process is not None
            self._machines.freeze(machine, [process.pid])
            return
        event.killed = self._machines.kernels(machine) if machine in self._machines.hosts else []
        number = signal.SIGKILL if how == "killed" else signal.SIGTERM
        code = self._machines.end(machine, number)
        expected = -signal.SIGKILL if how == "killed" else 128 + signal.SIGTERM
        is_early = code == -signal.SIGTERM and not self._machines.has_spoken(machine)  # it was still starting
        if code != expected and not is_early:
            event.note = f"ended with {code} instead of {expected}"

    def _strike_kernel(self, event: Event, how: str, fault: Fault) -> None:
        kernels = self._machines.kernels(fault.machine)
        # A host whose first kernel does not start says so and ends, as it should.
        if not kernels or not self._machines.has_registered(fault.machine):
            event.kind = "kernel missed"
            return
        pid = kernels[fault.choice % len(kernels)]
        if how == "frozen":
            self._machines.freeze(fault.machine, [pid])
            return
        event.killed = [pid]
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSEGV)

    def _break_path(self, event: Event, how: str, fault: Fault) -> None:
        event.other = self._machines.hosts[fault.choice % len(self._machines.hosts)]
        if how == "cut":
            self._network.cut_between(fault.machine, event.other)
        else:
            self._network.reset_between(fault.machine, event.other)

    def _break_link(self, machine: str, how: str) -> None:
        if how == "reset":
            self._network.reset(machine, both_ends=True)
        elif how == "slow":
            self._network.slow(machine)
        else:
            self._network.cut(machine)
            if how == "half open":  # the machine forgets its connections, the controller does not hear of it
                self._network.reset(machine, both_ends=False)
