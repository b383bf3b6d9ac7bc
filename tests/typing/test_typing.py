"""mypy, in strict mode, says what it should of code that uses the client."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.mark.slow
def test_mypy_accepts_and_refuses_what_it_should(tmp_path: Path) -> None:
    """Every line of `accepted.py` passes with the type that it states; exactly the marked lines of `refused.py`
    fail."""
    refused = HERE / "refused.py"
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", "--no-pretty"]
    done = subprocess.run(
        [*command, "--config-file", str(ROOT / "pyproject.toml"), str(HERE / "accepted.py"), str(refused)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(\S+?):(\d+): error", done.stdout, re.MULTILINE)
    assert not [place for place in found if place[0].endswith("accepted.py")], done.stdout
    lines = refused.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if "# refused" in line}
    complained = {int(number) for name, number in found if name.endswith("refused.py")}
    assert complained == marked, done.stdout + done.stderr
