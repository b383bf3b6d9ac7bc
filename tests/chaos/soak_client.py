"""The clients of a soak: one that works steadily, one that reads slowly, one that vanishes.

python -m tests.chaos.soak_client FOLDER steady|slow|vanishing LIFE SEED
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from pathlib import Path

import enginery

SMALL = 40  # calls in a row whose answers are small
OUTPUT = 3_000_000  # characters printed by a call with a big output
VALUE = 6_000_000  # bytes of a big value: it goes by transfer
SLOWNESS = 0.2  # seconds between two events that a slow reader takes


def steady(client: enginery.Client, folder: Path, dice: random.Random) -> None:
    """Call as a busy script does, and check every answer."""
    while not (folder / "finish").exists():
        for view in client:
            calls = [view.apply(pow, number, 2, block=False) for number in range(SMALL)]
            assert [call.result() for call in calls] == [number**2 for number in range(SMALL)]
            kind = dice.randrange(4)
            if kind == 0:
                assert len(view.execute(f"print('x' * {OUTPUT})").stdout) > OUTPUT // 4
            elif kind == 1:
                assert len(view.apply(bytes, VALUE)) == VALUE
            elif kind == 2:
                view["pushed"] = bytes(VALUE)
            else:
                assert view.execute("raise ValueError", block=False).exception() is not None


def slow(client: enginery.Client, folder: Path, dice: random.Random) -> None:
    """Follow operations that print faster than it reads."""
    while not (folder / "finish").exists():
        view = dice.choice(list(client))
        operation = view.execute(f"for n in range(300): print(n, 'y' * {OUTPUT // 300})", block=False)
        for _ in itertools.islice(operation.events(), 30):
            time.sleep(SLOWNESS)


def vanishing(client: enginery.Client, folder: Path, dice: random.Random) -> None:
    """Ask for much, and wait to be killed."""
    for view in client:
        for _ in range(10):
            view.execute(f"print('z' * {OUTPUT // 10}); bytes({VALUE // 10})", block=False)
            view.apply(bytes, VALUE // 3, block=False)
    while not (folder / "finish").exists():
        time.sleep(dice.uniform(0.1, 0.2))


def main(folder: Path, name: str, life: int, seed: int) -> None:
    """Be one of them."""
    work = {"steady": steady, "slow": slow, "vanishing": vanishing}[name]
    with enginery.connect(folder / "state" / "client.json", timeout=60.0) as client:
        client.wait_for_engines(2)
        work(client, folder, random.Random(f"{seed} {name} {life}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
