"""The examples compute what they say, and find that themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("example", "arguments", "says"),
    [
        ("stdlib_census.py", ["json"], "The engines found exactly what the serial run found."),
        ("option_pricing.py", ["--paths", "20000", "--strikes", "5"], "Black-Scholes is within"),
        ("pi_digits.py", ["--digits", "3000"], "The engines found exactly what the serial run found."),
    ],
)
def test_an_example_finds_what_a_serial_run_finds(example: str, arguments: list[str], says: str) -> None:
    """Each runs on a cluster of its own and ends with exit code 0, which it does only if both results agree."""
    command = [sys.executable, "-m", "enginery", "run", str(ROOT / "examples" / example), "-n", "2"]
    done = subprocess.run([*command, "--", *arguments], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.mark.parametrize(
    ("example", "arguments", "says"),
    [
        ("stdlib_census.py", ["nosuch"], "there is no package nosuch"),
        ("option_pricing.py", ["--paths", "0"], "--paths: at least 10,000"),
        ("option_pricing.py", ["--strikes", "0"], "--strikes: at least 1"),
        ("pi_digits.py", ["--digits", "1"], "--digits: at least 2"),
        ("pi_digits.py", ["--digits", "1000000"], "--digits: at most 750,000"),
    ],
)
def test_an_example_says_what_it_cannot_do(example: str, arguments: list[str], says: str) -> None:
    """At once, as wrong usage, without a cluster or a traceback."""
    command = [sys.executable, str(ROOT / "examples" / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
