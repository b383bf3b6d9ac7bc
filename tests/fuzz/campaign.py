"""Tries inputs on one target, and keeps what broke a rule."""

from __future__ import annotations

import gc
import random
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import psutil

from tests.fuzz import mutator
from tests.fuzz.rules import BrokenRule, Watch, open_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_GROWTH = 96 << 20
"""Bytes of memory that a long run may take after its first part, in which caches fill."""
_FIRST_PART = 5_000  # inputs
_MAX_FAILURES = 20


class Target(Protocol):
    """What reads the inputs. `run` raises BrokenRule, or returns what came of one."""

    @property
    def seeds(self) -> Sequence[bytes]:
        """Inputs to begin with, well formed."""

    def vary(self, random: random.Random, data: bytes, other: bytes) -> bytes:
        """Return `data` spoilt by somebody who knows what it means; `other` lends pieces."""

    def run(self, data: bytes) -> str:
        """Try one input."""

    def close(self) -> None:
        """End."""


@dataclass
class Result:
    """What came of it: how many inputs and different outcomes, and which inputs broke a rule."""

    inputs: int
    outcomes: int
    failures: list[tuple[bytes, str]]
    seconds: float


def run(make: Callable[[Watch], Target], count: int, seed: int, *, seconds: float = float("inf")) -> Result:
    """Try `count` inputs, or as many as `seconds` allow; the same `seed` tries the same ones."""
    watch = Watch()
    before = open_files()
    try:
        result = _try_all(make, watch, count, random.Random(seed), seconds)
    finally:
        watch.stop()
    gc.collect()
    if open_files() > before:
        result.failures.append((b"", f"{open_files() - before} descriptors are left open"))
    return result


def _try_all(
    make: Callable[[Watch], Target], watch: Watch, count: int, chance: random.Random, seconds: float
) -> Result:
    target = make(watch)
    corpus = mutator.Corpus(target.seeds)
    failures: list[tuple[bytes, str]] = []
    waiting = list(target.seeds)[:count]
    begun, size, done = time.monotonic(), 0, 0
    try:
        while done < count and time.monotonic() - begun < seconds:
            data = waiting.pop() if waiting else _next(target, corpus, chance)
            done += 1
            try:
                corpus.learn(data, target.run(data))
            except Exception as broken:
                text = str(broken) if isinstance(broken, BrokenRule) else _whole(broken)
                if text[:120] not in {other[:120] for _, other in failures}:
                    failures.append((data, text))
                target.close()  # what it left behind says nothing about the next input
                watch.heard.clear()
                target = make(watch)
                if len(failures) >= _MAX_FAILURES:
                    break
            if done == _FIRST_PART:
                size = _memory()
    finally:
        target.close()
    grown = _memory() - size if size else 0
    if grown > MAX_GROWTH:
        failures.append((b"", f"memory grew by {grown >> 20} MiB in {done - _FIRST_PART} inputs"))
    return Result(done, corpus.outcomes, failures, time.monotonic() - begun)


def _whole(error: Exception) -> str:
    """Return an error that nobody expected, with the end of its traceback first."""
    return f"{error!r}\n" + "".join(traceback.format_exception(error)[-6:])


def _next(target: Target, corpus: mutator.Corpus, chance: random.Random) -> bytes:
    data, other = corpus.choose(chance), corpus.choose(chance)
    if chance.randrange(3):
        return target.vary(chance, data, other)[: mutator.MAX_INPUT]
    return mutator.spoil(chance, data, other)


def _memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)
