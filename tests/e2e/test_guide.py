"""The guide does what it says, from its first block to its last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
MARK = "-- end of block --"


def test_every_block_prints_what_stands_below_it(tmp_path: Path) -> None:
    """All blocks are one script, as a reader would try them in one session."""
    blocks = re.findall(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) > 10
    script = tmp_path / "guide.py"
    script.write_text("".join(f"{code}\nprint({MARK!r})\n" for code, _ in blocks))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50, check=False)
    said = done.stdout.split(f"{MARK}\n")
    for (code, expected), output in zip(blocks, said, strict=False):
        assert output == expected, f"{code}\n{done.stderr}"
    assert done.returncode == 0, done.stderr
    assert len(said) == len(blocks) + 1
