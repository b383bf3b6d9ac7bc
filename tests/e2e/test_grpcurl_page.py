"""docs/grpcurl.md tells the truth: its commands print what it says."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e import transcript

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "grpcurl.md"
MUST_SHOW = (
    "list",
    "describe",
    "Health/Check",
    "1+1",
    "Push",
    "Pull",
    "enginery-engine-id: 7",
    "-expand-headers",
    "EngineService/Submit",
    "EngineService/Attach",
    "EngineService/Cancel",
    "kill -9",
)


def _path_with_tools() -> str:
    return os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", ""), str(Path.home() / "go" / "bin")]
    )


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the page from top to bottom, as a reader would, in a state directory of its own."""
    monkeypatch.setenv("PATH", _path_with_tools())
    monkeypatch.setenv("ENGINERY_STATE_DIR", str(tmp_path / "state"))
    if shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is missing: go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest")
    different = []
    try:
        for step in transcript.steps(PAGE.read_text()):
            printed = transcript.run(step)
            if transcript.normalised(printed) != transcript.normalised(step.output):
                different.append(f"$ {step.command}\nthe page says:\n{step.output}\nit printed:\n{printed}")
    finally:
        transcript.run(transcript.Step("", "enginery down", ""))
    assert not different, "\n\n".join(different)


@pytest.mark.parametrize("what", MUST_SHOW)
def test_page_shows(what: str) -> None:
    """The page shows the calls that a reader looks for."""
    assert any(what in step.setup + step.command for step in transcript.steps(PAGE.read_text()))


def test_outputs_are_told_apart() -> None:
    """What is left out of the comparison is what varies, and no more."""
    before = '{ "operationId":  "0192f0c1-1234-8abc-8000-000000000007", "duration": "0.001s", "pid": 12 }'
    after = '{ "operationId": "0192f0c1-1234-8abc-8000-000000000008", "duration": "2s", "pid": 9 }'
    assert transcript.normalised(before) == transcript.normalised(after)
    assert transcript.normalised('"value": 2') != transcript.normalised('"value": 3')
