"""A client that lives in chaos and has tasks done: single ones, some behind others or with retries, and maps.

    python -m tests.chaos.tasker FOLDER NAME LIFE SEED

Like a worker it asks in a later life for what earlier ones heard nothing of. Items of a map have no ids of
their own: those of a map whose client was killed are noted as abandoned, and must not have run too often.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginery import EngineryError
from tests.chaos import jobs, ledger
from tests.chaos.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TASKS = 12  # outstanding
RETRIES = 2  # of those that may run again
WEIGHTS = (10, 2_000, 60_000, 300_000)  # bytes
CHUNK_SIZES: tuple[int | str, ...] = (1, "auto")
MAP_ITEMS = 400  # of one map


def mapped(path: str, name: str, weight: bytes) -> tuple[str, bytes]:
    """Note that an item of a map runs; return which run it is, and the beginning of what came with it."""
    import os
    import time

    from enginery import get_engine

    nonce = os.urandom(8).hex()
    line = f"{name} {nonce} {os.getpid()} {get_engine().id} {time.monotonic()!r}\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)
    time.sleep(0.01)
    return nonce, weight[:2_000]


class Tasker(Worker):
    """One life of one client."""

    def __init__(self, folder: Path, name: str, life: int, seed: int) -> None:
        """Give up the maps of earlier lives, and connect."""
        super().__init__(folder, name, life, seed)
        self._last = ""  # the name and the id of the task that was sent last
        self._last_id = ""
        for sent in list(self._orphans.values()):
            if sent.kind == ledger.MAPPED:
                self._heard(sent.name, ledger.ABANDONED)
        self._map_dice = random.Random(f"{seed} {self._name} map")  # of a thread of its own
        self._mapper = threading.Thread(target=self._map)

    def run(self) -> None:
        """Work until told to finish, then until nothing is outstanding."""
        self._mapper.start()
        super().run()

    def _before_end(self) -> None:
        self._mapper.join()

    def _fill(self) -> None:
        """Have as many tasks outstanding as may be."""
        while len(self._outstanding) < TASKS:
            self._count += 1
            self._submit(jobs.draw(self._dice, f"{self._name}.{self._count}"))

    def _submit(self, job: jobs.Job) -> None:
        may_run_again = job.kind not in jobs.STOPPED and self._dice.random() < 0.5
        is_behind = bool(self._last) and self._dice.random() < 0.3
        before = self._last if is_behind else ""
        tasks = self._client.tasks(
            retries=RETRIES if may_run_again else 0,
            after=[self._last_id] if is_behind else None,
            priority=self._dice.randint(-1, 1),
            grace=jobs.GRACE,
            timeout=jobs.TIMEOUT if job.kind == "endless" else None,
        )
        operation = tasks.execute(job.code(self._folder / "ledger", ledger.ANY_ENGINE))
        attempts = 1 + (RETRIES if may_run_again else 0)
        self._notes.sent(
            job.name, operation.id, ledger.ANY_ENGINE, ledger.UNKNOWN, job.kind, attempts=attempts, after=before
        )
        self._last, self._last_id = job.name, operation.id
        self._watch(job, ledger.ANY_ENGINE, operation)
        if job.kind == "cancelled":
            self._later.append((time.monotonic() + self._dice.uniform(0, 0.5), operation.cancel))

    # Maps, in a thread of their own

    def _map(self) -> None:
        number = 0
        while not self._is_finished():
            number += 1
            self._map_once(f"{self._name}m{number}")

    def _map_once(self, name: str) -> None:
        names: list[str] = []

        def pulled() -> Iterator[str]:
            for number in range(1, MAP_ITEMS + 1):
                if self._is_finished():
                    return
                item = f"{name}.{number}"
                self._notes.sent(
                    item, "", ledger.ANY_ENGINE, ledger.UNKNOWN, ledger.MAPPED, attempts=1 + RETRIES
                )
                names.append(item)
                yield item

        path = str(self._folder / "ledger" / f"engine-{ledger.ANY_ENGINE}")
        results: Iterable[Any] = self._client.map(
            mapped,
            _always(path),
            pulled(),
            self._weights(),
            chunksize=self._map_dice.choice(CHUNK_SIZES),
            retries=RETRIES,
            return_exceptions=True,
            max_outstanding=64,
        )
        for position, result in enumerate(results):
            if isinstance(result, EngineryError) and result.reason:
                self._notes.heard(names[position], result.reason, text=str(result))
            elif isinstance(result, BaseException):
                self._notes.heard(names[position], type(result).__name__, text=str(result))
            else:
                self._notes.heard(names[position], "ok", result[0] if result[1].strip(b"x") == b"" else "")

    def _weights(self) -> Iterator[bytes]:
        """Iterate over what items carry there and back: mostly little, now and then much."""
        while True:
            (size,) = self._map_dice.choices(WEIGHTS, [80, 10, 8, 2])
            yield b"x" * size


def _always(value: str) -> Iterator[str]:
    while True:
        yield value


if __name__ == "__main__":
    Tasker(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).run()
