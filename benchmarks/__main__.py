"""Measure everything in one run and print one table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks import measure, table
from benchmarks.bare_grpc import measure_bare
from benchmarks.on_enginery import measure_enginery

PAGE = Path(__file__).with_name("README.md")
PEERS = {
    "ipyparallel": "benchmarks.peer_ipyparallel",
    "Dask": "benchmarks.peer_dask",
    "Ray": "benchmarks.peer_ray",
    "ProcessPoolExecutor": "benchmarks.peer_futures",
}
MARK = "<!-- measured -->\n"


def main() -> None:
    """Run as a command. A missed goal stands in the table and on stderr; it is no failure of the run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peers", metavar="PYTHON", help="also measure peers with this interpreter")
    parser.add_argument(
        "--write", action="store_true", help=f"put the table into {PAGE.name} beside this program"
    )
    options = parser.parse_args()

    _say("bare gRPC ...")
    tls, plaintext = asyncio.run(measure_bare(tls=True)), asyncio.run(measure_bare(tls=False))
    _say("Enginery ...")
    numbers = measure_enginery()
    peers = {name: _measure_peer(name, options.peers) for name in PEERS} if options.peers else {}
    run = table.Run(numbers, tls, plaintext, peers)

    text = f"{_machine()}\n\n{table.render(run)}"
    print(text)
    if options.write:
        before, _, _ = PAGE.read_text().partition(MARK)
        PAGE.write_text(f"{before}{MARK}\n{text}")
    for title in table.missed(run):
        _say(f"goal missed: {title}")


def _measure_peer(name: str, python: str) -> measure.Numbers:
    _say(f"{name} ...")
    command = [python, "-m", PEERS[name]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    numbers: measure.Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def _machine() -> str:
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores; load average {load}."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
