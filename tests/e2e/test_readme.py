"""The README's first look does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_first_look_prints_what_the_readme_says(tmp_path: Path) -> None:
    """The first Python block, run as a script of its own, prints the text block that follows it."""
    code, output = re.findall(r"```(?:python|text)\n(.*?)```", README.read_text(), re.DOTALL)[:2]
    script = tmp_path / "first_look.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50, check=False)
    assert done.stderr == ""
    assert done.stdout == output
