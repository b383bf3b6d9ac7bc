"""Memory that was freed is kept for the next large value."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

PROGRAM = """
import resource
from enginery._malloc import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        large = [b"x" * (1 << 20) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed()
faults()
print(faults())
"""


def faults(**environment: str) -> int:
    """Return how many pages 300 buffers of 1 MiB take, three at a time, after as many before them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    return int(done.stdout)


def test_the_pages_of_a_value_are_used_again() -> None:
    """With glibc, unless its user has said what it keeps; with other C libraries nothing happens."""
    if platform.libc_ver()[0] == "glibc":
        assert faults() < 1_000  # of 76,800
        assert faults(MALLOC_MMAP_THRESHOLD_="131072") > 10_000
