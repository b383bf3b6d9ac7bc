"""A client that lives in chaos, with the Python library: it keeps every engine busy and notes what it hears.

    python -m tests.chaos.worker FOLDER NAME LIFE SEED

It works until FOLDER/finish appears, then waits for what is outstanding and ends. A later life of the same name
first asks for everything that the earlier ones sent and heard nothing of, by operation id.
"""

from __future__ import annotations

import queue
import random
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import enginery
from enginery import EngineryError
from tests.chaos import jobs, ledger

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 5  # jobs outstanding on each engine
PACE = 0.15  # seconds between looks at all engines
CONNECTING = 60.0  # seconds
RELAYED = frozenset({"worker-1"})  # clients that leave all to the controller
LAST_ASKING = 4.0  # seconds in which it still asks, at the end, for what nobody knew


class Worker:
    """One life of one client."""

    def __init__(self, folder: Path, name: str, life: int, seed: int) -> None:
        """Read what earlier lives left, and connect."""
        self._folder = folder
        self._name = f"{name}.{life}"
        self._dice = random.Random(f"{seed} {self._name}")
        earlier, _ = ledger.read_notes(folder / f"notes-{name}")
        self._orphans = {sent.name: sent for sent in earlier.values() if sent.is_open}
        self._notes = ledger.Notes(folder / f"notes-{name}")
        self._client = _connect(folder / "state" / "client.json", direct=name not in RELAYED)
        self._away: set[str] = set()  # orphans that may belong to an engine that is away
        self._count = 0
        self._outstanding: dict[str, tuple[jobs.Job, int]] = {}  # by name, with the engine
        self._done: queue.SimpleQueue[tuple[jobs.Job, Any]] = queue.SimpleQueue()
        self._later: list[tuple[float, Callable[[], object]]] = []

    def run(self) -> None:
        """Work until told to finish, then until nothing is outstanding."""
        self._adopt_orphans()
        while not self._is_finished():
            self._fill()
            self._listen(PACE)
        deadline = time.monotonic() + LAST_ASKING
        while self._outstanding or self._away or (self._orphans and time.monotonic() < deadline):
            self._adopt_orphans()
            self._listen(1.0)
        self._before_end()
        figures = self._client.statistics()
        print(f"{self._name}: {figures['direct_calls']} of {figures['calls']} calls went directly", flush=True)
        self._client.close()

    def _before_end(self) -> None:
        """Wait for what else there is."""

    def _is_finished(self) -> bool:
        return (self._folder / "finish").exists()

    def _fill(self) -> None:
        """Give every engine as many jobs as it may have."""
        load: dict[int, int] = {}
        for _, engine_id in self._outstanding.values():
            load[engine_id] = load.get(engine_id, 0) + 1
        for engine in self._client.engines:
            machine = str(engine.properties.get("machine", ledger.UNKNOWN))
            try:
                view = self._client[engine.engine_id]
            except enginery.InvalidEngineID:
                continue  # it left between the two looks
            for _ in range(WINDOW - load.get(engine.engine_id, 0)):
                self._count += 1
                job = jobs.draw(self._dice, f"{self._name}.{self._count}")
                self._send(view, engine.engine_id, machine, job)

    def _send(self, view: enginery.EngineView, engine_id: int, machine: str, job: jobs.Job) -> None:
        clears = job.kind == "raises" and self._dice.random() < 0.2
        view = view.options(
            keep_queue=not clears, grace=jobs.GRACE, timeout=jobs.TIMEOUT if job.kind == "endless" else None
        )
        operation = view.execute(job.code(self._folder / "ledger", engine_id), block=False)
        self._notes.sent(job.name, operation.id, engine_id, machine, job.kind)
        self._watch(job, engine_id, operation)
        if job.kind == "cancelled":
            self._later.append((time.monotonic() + self._dice.uniform(0, 0.5), operation.cancel))

    def _watch(self, job: jobs.Job, engine_id: int, operation: Any) -> None:
        self._outstanding[job.name] = (job, engine_id)
        operation.add_done_callback(lambda done: self._done.put((job, done)))

    def _adopt_orphans(self) -> None:
        """Ask for what earlier lives sent. What should be stopped is: nobody else will."""
        for sent in list(self._orphans.values()):
            if sent.name in self._outstanding:
                continue
            job = jobs.Job(sent.name, sent.kind)
            try:
                operation = self._client.operation(sent.operation_id)
                if job.kind == "cancelled":
                    operation.cancel()
            except EngineryError as error:
                self._note(job, error)
            else:
                self._watch(job, sent.engine_id, operation)

    def _listen(self, seconds: float) -> None:
        """Note what comes within `seconds`, and do what is due."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                job, operation = self._done.get(timeout=left)
            except queue.Empty:
                break
            self._hear(job, operation)
        due = [action for at, action in self._later if at <= deadline]
        self._later = [(at, action) for at, action in self._later if at > deadline]
        for action in due:
            try:
                action()
            except EngineryError as error:
                if error.reason not in _GONE:
                    self._notes.trouble(f"{self._name}: cancel: {type(error).__name__}: {error}")

    def _hear(self, job: jobs.Job, operation: Any) -> None:
        del self._outstanding[job.name]
        try:
            result = operation.result()
        except Exception as error:  # whatever it is, it is what the user would see
            self._note(job, error)
        else:
            nonce = job.nonce(result.value, result.stdout)
            text = "" if nonce else f"{str(result.value)[:40]!r} {result.stdout[:100]!r} {len(result.stdout)}"
            self._heard(job.name, "ok", nonce, text)

    def _note(self, job: jobs.Job, error: Exception) -> None:
        if isinstance(error, EngineryError) and error.reason:
            self._heard(job.name, error.reason, text=str(error))
        elif isinstance(error, ValueError):
            self._heard(job.name, "raised", str(error))
        else:
            self._heard(job.name, type(error).__name__, text="".join(traceback.format_exception(error)))

    def _heard(self, name: str, outcome: str, nonce: str = "", text: str = "") -> None:
        self._notes.heard(name, outcome, nonce, text)
        if outcome == ledger.AWAY:
            self._away.add(name)
            return
        self._away.discard(name)
        if outcome not in ledger.UNSURE:
            self._orphans.pop(name, None)


def _connect(file: Path, *, direct: bool) -> enginery.Client:
    """Connect, and wait for a controller that is not there just now, as a script would that is restarted."""
    deadline = time.monotonic() + CONNECTING
    while True:
        try:
            return enginery.connect(file, timeout=CONNECTING, reconnect_timeout=600.0, direct=direct)
        except (enginery.ControllerNotRunning, enginery.ControllerLost):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


_GONE = frozenset({"ENGINE_LOST", "INVALID_ENGINE_ID", "ENGINE_AWAY", "ENGINE_STOPPED", "OPERATION_NOT_FOUND"})
"""Reasons for which there is nothing to cancel."""


if __name__ == "__main__":
    Worker(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).run()
