"""Tries spoilt inputs: `python -m tests.fuzz --count 300000 --seed 1`. Ends with 1 if one broke a rule."""

from __future__ import annotations

import argparse
import sys

from enginery._channel import prepare_grpc

prepare_grpc()

from tests.fuzz import campaign  # noqa: E402 - after prepare_grpc
from tests.fuzz.targets import TARGETS  # noqa: E402


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=300_000, help="inputs of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, for each target")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="by default all")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    broken = total = 0
    for name in names:
        result = campaign.run(TARGETS[name], options.count // len(names), options.seed, seconds=options.seconds)
        total += result.inputs
        print(f"{name:18} {result.inputs:8,} inputs, {result.outcomes:4} outcomes, {result.seconds:6.1f} s")
        for data, text in result.failures:
            broken += 1
            print(f"  BROKEN: {text}\n  input: {data!r}")
        sys.stdout.flush()
    print(f"{total:,} inputs, {broken} broken rules")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
