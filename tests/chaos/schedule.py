"""Which faults happen when, to which machine, for how long: a function of the seed and of nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

CONTROLLER = "controller"
SETTLING = 3.0  # seconds that a machine is left alone after a fault, to be well again


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: whom it strikes, and for how long, in leases."""

    strikes: str  # "controller", "host", "client", "link" (of a host or a client), "path" (of the first client)
    shortest: float = 0.0
    longest: float = 0.0


KINDS: dict[str, Kind] = {
    # Processes
    "controller killed": Kind("controller", 0.0, 0.15),
    "controller stopped": Kind("controller", 0.0, 0.1),
    "controller frozen": Kind("controller", 0.02, 0.3),
    "host killed": Kind("host", 0.0, 0.15),
    "host stopped": Kind("host", 0.0, 0.1),
    "host frozen": Kind("host", 0.02, 0.3),
    "kernel killed": Kind("host"),
    "kernel crashed": Kind("host"),
    "kernel frozen": Kind("host", 0.02, 0.15),
    "client killed": Kind("client", 0.0, 0.1),
    "client frozen": Kind("client", 0.02, 0.3),
    # Networks
    "link cut": Kind("link", 0.02, 0.4),
    "link half open": Kind("link", 0.02, 0.4),
    "link reset": Kind("link"),
    "link slow": Kind("link", 0.05, 0.3),
    # Between a client and a host alone: what goes directly
    "path cut": Kind("path", 0.1, 2.0),
    "path reset": Kind("path"),
    # What is around them
    "disk full": Kind("controller", 0.05, 0.3),
    "clock jumped": Kind("any", 0.05, 0.3),
    # Longer than the lease: engines are given up, and their hosts come back as new ones
    "host frozen for long": Kind("host", 1.5, 2.0),
    "link cut for long": Kind("host", 1.5, 2.0),
}
"""All kinds. Those that are not "for long" end so early that nothing may be lost for them."""
LONG = frozenset(kind for kind in KINDS if kind.endswith("for long"))
NETWORK = frozenset(kind for kind in KINDS if kind.startswith(("link", "path")))


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `at` seconds from the start, `kind` strikes `machine` for `seconds`; `choice` is the rest."""

    at: float
    kind: str
    machine: str
    seconds: float
    choice: int


def plan(
    seed: int,
    duration: float,
    *,
    hosts: list[str],
    clients: list[str],
    kinds: Collection[str],
    lease: float,
    every: float,
) -> list[Fault]:
    """Return the faults of `duration` seconds, about one in `every` seconds, rising in time.

    Each kind comes once before any comes twice. A machine has one fault at a time; different ones overlap.
    """
    dice = random.Random(seed)
    strikes = {
        "controller": [CONTROLLER],
        "host": hosts,
        "client": clients,
        "link": hosts + clients,
        "path": clients[:1],
        "any": [CONTROLLER, *hosts, *clients],
    }
    free_at = dict.fromkeys(strikes["any"], 0.0)
    faults: list[Fault] = []
    deck: list[str] = []
    now = dice.uniform(0.5, 1.5) * every
    while now < duration:
        if not deck:
            deck = dice.sample(sorted(kinds), len(kinds))
        drawn = _draw(deck, strikes, free_at, now)
        if drawn is not None:
            deck.remove(drawn)
            kind = KINDS[drawn]
            machine = dice.choice([one for one in strikes[kind.strikes] if free_at[one] <= now])
            seconds = dice.uniform(kind.shortest, kind.longest) * lease
            faults.append(Fault(now, drawn, machine, seconds, dice.randrange(1 << 30)))
            free_at[machine] = now + seconds + SETTLING
        now += dice.uniform(0.2, 1.8) * every
    return faults


def _draw(deck: list[str], strikes: dict[str, list[str]], free_at: dict[str, float], now: float) -> str | None:
    """Return the first kind of the deck that has a machine to strike."""
    return next(
        (kind for kind in deck if any(free_at[one] <= now for one in strikes[KINDS[kind].strikes])), None
    )
