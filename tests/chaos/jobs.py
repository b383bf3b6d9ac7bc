"""What clients have engines do: small jobs that note that they ran, and whose answers prove of which run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LINES = 400  # printed by a job that prints
BIG = 200_000  # characters of a big answer: the journal keeps it as a file
GRACE = 20.0  # seconds: longer than any freeze, so that stopping never kills a kernel here
TIMEOUT = 0.3  # seconds of a job that is stopped at its timeout

_RAN = """
import os, time
from enginery import get_engine
nonce = os.urandom(8).hex()
def note():
    line = f"{name} {{nonce}} {{os.getpid()}} {{get_engine().id}} {{time.monotonic()!r}}\\n"
    file = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)
note()
"""
_BODIES = {
    "quick": "nonce",
    "slow": "time.sleep({seconds})\nnonce",
    "prints": "for number in range({lines}): print({name!r}, number)\nnonce",
    "big": "nonce + 'x' * {big}",
    "raises": "raise ValueError(nonce)",
    "endless": "while True: pass",
    "cancelled": "for _ in range(1000): time.sleep(0.01)\nnonce",  # or else nobody would end it once it is lost
}
_WEIGHTS = {"quick": 90, "slow": 12, "prints": 8, "big": 4, "raises": 4, "endless": 2, "cancelled": 2}
KINDS = tuple(_BODIES)
STOPPED = frozenset({"endless", "cancelled"})
"""Jobs that are to be stopped."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Its name is unique in a run, and rises with each job of one client for one engine."""

    name: str
    kind: str

    def code(self, ledger: Path, engine_id: int) -> str:
        """Return the code that does it on an engine and notes so in `ledger`."""
        path = str(ledger / f"engine-{engine_id}")
        seconds = round(random.Random(self.name).uniform(0.1, 0.8), 3)  # the same whenever it is sent again
        body = _BODIES[self.kind].format(name=self.name, seconds=seconds, lines=LINES, big=BIG)
        return _RAN.format(name=self.name, path=path) + body

    def output(self) -> str:
        """Return what it prints."""
        return "".join(f"{self.name} {number}\n" for number in range(LINES)) if self.kind == "prints" else ""

    def nonce(self, value: object, output: str) -> str:
        """Return which run an answer is of; empty if it is not an answer of this job, whole and unharmed."""
        text = str(value)
        nonce = text[:16]
        whole = nonce + "x" * BIG if self.kind == "big" else nonce
        return nonce if text == whole and output == self.output() else ""


def draw(dice: random.Random, name: str, *, stopped: bool = True) -> Job:
    """Return a job of a random kind, of those that end by themselves unless `stopped`."""
    kinds = [kind for kind in KINDS if stopped or kind not in STOPPED]
    (kind,) = dice.choices(kinds, [_WEIGHTS[kind] for kind in kinds])
    return Job(name, kind)
