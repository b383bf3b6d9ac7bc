"""Runs chaos: `python -m tests.chaos --minutes 30 --seed 7`. Ends with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.architecture.source import ROOT
from tests.chaos import ledger, network, schedule
from tests.chaos.faults import Faults
from tests.chaos.machines import Machines
from tests.chaos.verdict import Judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.verdict import Verdict

HOSTS = ["host-0", "host-1"]
CLIENTS = {
    "worker-0": "tests.chaos.worker",
    "worker-1": "tests.chaos.worker",
    "tasker": "tests.chaos.tasker",
    "caller": "tests.chaos.caller",
}
LEASE = 15.0  # seconds
LONG_RUN = 300.0  # seconds from which on faults may last longer than the lease
DRAIN = 60.0  # seconds that clients get at the end to hear of everything
_STARTING = 20.0


class Run:
    """One run."""

    def __init__(self, folder: Path, seed: int, seconds: float, every: float, lease: float) -> None:
        """Make the machines of it."""
        self._folder = folder
        self._seconds = seconds
        self._lease = lease
        links = network.make([*HOSTS, *CLIENTS])
        self._machines = Machines(folder, links, HOSTS, CLIENTS, lease, seed)
        self._faults = Faults(self._machines, links)
        kinds = set(schedule.KINDS)
        if not links.has_links:
            kinds -= {*schedule.NETWORK}
        if not self._machines.has_disk:
            kinds.discard("disk full")
        if not self._machines.has_clocks:
            kinds.discard("clock jumped")
        if seconds < LONG_RUN:
            kinds -= schedule.LONG
        self.left_out = sorted(set(schedule.KINDS) - kinds)
        self._plan = schedule.plan(
            seed, seconds, hosts=HOSTS, clients=list(CLIENTS), kinds=kinds, lease=lease, every=every
        )

    def run(self) -> Verdict:
        """Start everything, let the faults happen, let everybody finish, and judge."""
        try:
            self._start()
            self._strike()
            self._finish()
        finally:
            alive = {pid for host in HOSTS for pid in self._machines.kernels(host)}
            self._machines.close()
        return self._judge(alive)

    def _start(self) -> None:
        self._machines.start(schedule.CONTROLLER)
        deadline = time.monotonic() + _STARTING
        while not self._machines.is_ready():
            assert time.monotonic() < deadline, "the controller does not start"
            time.sleep(0.02)
        for name in (*HOSTS, *CLIENTS):
            self._machines.start(name)
        time.sleep(2)

    def _strike(self) -> None:
        """Begin and end each fault when it is due; all are over at the end."""
        start = time.monotonic()
        due: list[tuple[float, int, Callable[[], object]]] = []
        order = itertools.count()

        def at(seconds: float, action: Callable[[], object]) -> None:
            heapq.heappush(due, (seconds, next(order), action))

        def begin(fault: schedule.Fault) -> None:
            if self._faults.is_struck(fault.machine):  # the one before took longer than was planned
                at(time.monotonic() - start + schedule.SETTLING, functools.partial(begin, fault))
                return
            event = self._faults.begin(fault)
            now = time.monotonic() - start
            _say(f"{now:7.1f} {fault.kind} ({fault.machine}) for {fault.seconds:.1f} s {event.note}")
            at(now + fault.seconds, functools.partial(self._faults.end, event))

        for fault in self._plan:
            at(fault.at, functools.partial(begin, fault))
        at(self._seconds, lambda: None)
        while due:
            seconds, _, action = heapq.heappop(due)
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            action()

    def _finish(self) -> None:
        self._faults.revive(schedule.CONTROLLER)
        self._missing = [
            name
            for name in self._machines.all
            if not self._machines.is_running(name) and not self._machines.was_fenced(name)
        ]
        (self._folder / "finish").touch()
        deadline = time.monotonic() + DRAIN
        self._endings = {}
        for name in CLIENTS:
            self._endings[name] = self._machines.wait(name, max(0.1, deadline - time.monotonic()))

        command = [sys.executable, "-m", "tests.chaos.auditor", str(self._folder), *CLIENTS]
        self._audit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def _judge(self, alive: set[int]) -> Verdict:
        sent: list[ledger.Sent] = []
        troubles: list[str] = []
        for name in CLIENTS:
            jobs, more = ledger.read_notes(self._folder / f"notes-{name}")
            sent.extend(jobs.values())
            troubles.extend(more)
        runs = ledger.read_runs(self._folder / "ledger")
        again = ledger.read_again(self._folder / "notes-again")
        verdict = Judge(sent, runs, self._faults.events, lease=self._lease, again=again).judge()
        if self._audit.returncode != 0:
            verdict.broken["the auditor fails"].append(self._audit.stderr)
        killed = {pid for event in self._faults.events for pid in event.killed}
        for pid in {run.pid for run in runs} - killed - alive - self._machines.fenced_kernels():
            last = max((run for run in runs if run.pid == pid), key=lambda run: run.time)
            verdict.broken["a kernel ended without cause"].append(f"last ran {last}")
        for event in self._faults.events:
            if event.note and event.kind != "clock jumped":
                verdict.broken["a process ended as it should not"].append(f"{event}")
        if self._missing:
            verdict.broken["not running at the end"].extend(self._missing)
        for name, code in self._endings.items():
            if code != 0:
                verdict.broken["a client does not finish"].append(f"{name}: {code}")
        if troubles:
            verdict.broken["trouble"].extend(troubles)
        return verdict


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long faults happen (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default: 1)")
    parser.add_argument("--lease", type=float, default=LEASE, help=f"in seconds (default: {LEASE:g})")
    parser.add_argument("--every", type=float, default=2.5, help="seconds between faults (default: 2.5)")
    parser.add_argument(
        "--folder", type=Path, help="keep notes and logs here (default: only if something broke)"
    )
    return parser


def main() -> int:
    """Run, in namespaces of its own; return 1 if a promise was broken, and say where notes and logs are."""
    arguments = _parser().parse_args()
    if network.INSIDE in os.environ:
        return _inside(arguments)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="enginery-chaos-"))
    folder.mkdir(exist_ok=True, parents=True)
    command = network.isolate(["-m", "tests.chaos", *sys.argv[1:], "--folder", str(folder)])
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code == 0 and arguments.folder is None:
        shutil.rmtree(folder)
    else:
        _say(f"notes and logs: {folder}")
    return code


def _inside(arguments: argparse.Namespace) -> int:
    run = Run(arguments.folder, arguments.seed, arguments.minutes * 60, arguments.every, arguments.lease)
    if run.left_out:
        _say(f"left out on this machine or in so short a run: {', '.join(run.left_out)}")
    verdict = run.run()
    _say(f"seed       {arguments.seed}, {arguments.minutes:g} minutes\n{verdict}")
    return 1 if verdict.broken else 0


if __name__ == "__main__":
    sys.exit(main())
