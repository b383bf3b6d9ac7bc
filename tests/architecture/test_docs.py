"""Documents that name code or tests name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from enginery._reasons import TABLE, Entry

ROOT = Path(__file__).parents[2]
WITH_PROOFS = ("features.md", "mapping.md", "promises.md")
CONTRACT = (ROOT / "docs" / "contract.md").read_text()
_PROOF = re.compile(r"`(?:([\w/]+/[\w.]*)(?:::(\w+))?|::(\w+))`")


def _proofs(page: str) -> list[tuple[str, str]]:
    """Return every place and test that the last column of a row of the page names."""
    found = []
    for line in (ROOT / "docs" / page).read_text().splitlines():
        place = ""
        if not line.startswith("|"):
            continue
        for path, test, same in _PROOF.findall(line.rstrip(" |").rpartition("|")[2]):
            place = path or place
            found.append((place, test or same))
    return found


@pytest.mark.parametrize(
    ("page", "place", "test"),
    sorted({(page, place, test) for page in WITH_PROOFS for place, test in _proofs(page)}),
)
def test_every_proof_exists(page: str, place: str, test: str) -> None:
    """A row names a folder or file of tests, and a test in it."""
    path = ROOT / "tests" / place
    assert path.exists(), f"docs/{page} names tests/{place}"
    if test:
        assert re.search(rf"def {test}\(", path.read_text()), f"docs/{page} names {place}::{test}"


def test_the_pages_name_many_proofs() -> None:
    """The pattern above finds them: were it to find none, the test above would prove nothing."""
    assert len(_proofs("features.md")) > 40
    assert len(_proofs("mapping.md")) > 60
    assert len(_proofs("promises.md")) > 20


def row(reason: str, entry: Entry) -> str:
    """Return the line of docs/contract.md for one reason."""
    cells = (f"`{reason}`", entry.code.name, f"`{entry.exception.__name__}`", entry.text, entry.retry.value)
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("reason", TABLE)
def test_the_contract_page_has_the_error_table(reason: str) -> None:
    """Each reason of the table stands in docs/contract.md as it is."""
    assert row(reason, TABLE[reason]) in CONTRACT.splitlines(), (
        f"put this into docs/contract.md:\n{row(reason, TABLE[reason])}"
    )


def test_the_contract_page_has_no_other_reasons() -> None:
    """A reason that was taken out of the table is not on the page."""
    assert set(re.findall(r"^\| `([A-Z_]+)`", CONTRACT, re.MULTILINE)) == set(TABLE)
