"""Documents that name code or tests name what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from controller_service import config as controller_config
from controller_service import operations as controller_operations
from controller_service import placement, scheduler, transfers
from engine_service import blobs, operation_calls, responses
from engine_service import config as host_config
from enginery import (
    _channel,
    _connection_file,
    _encoded,
    _engine,
    _function_window,
    _metadata,
    _methods,
    _session_server,
    _sizes,
)
from enginery._reasons import TABLE, Entry

ROOT = Path(__file__).parents[2]
WITH_PROOFS = ("features.md", "mapping.md", "promises.md")
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("examples/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
]
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


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file or folder of the project, and to a heading that is there."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for place, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        target = page.parent / place if place else page
        assert target.exists(), f"{place} is not there"
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


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
    assert set(re.findall(r"^\| `([A-Z_]+)` \| [A-Z_]+ \|", CONTRACT, re.MULTILINE)) == set(TABLE)


LIMITS = {
    "a message to controller or host": (_channel.MAX_MESSAGE,),
    "a value in a reply": (_engine.DEFAULT_INLINE_LIMIT, _engine.MAX_INLINE_LIMIT),
    "a chunk": (_engine.MAX_CHUNK,),
    "a value": (_engine.DEFAULT_VALUE_LIMIT,),
    "blobs held for an engine": (2 * _engine.DEFAULT_VALUE_LIMIT, f"{blobs.MAX_BLOBS:,} blobs"),
    "a blob that nobody uses": (f"{blobs.TIME_TO_LIVE / 60:g} minutes",),
    "an Upload or Download through the controller that stands still": (f"{transfers._STALL:g} seconds",),
    "engines of one Upload": (f"{_metadata.MAX_UPLOAD_ENGINES}",),
    "output in a response": (responses.OUTPUT_INLINE,),
    "output kept of an operation": (host_config.DEFAULT_OUTPUT_LIMIT,),
    "calls waiting for an engine": (
        f"{host_config.DEFAULT_QUEUE_LIMIT:,}",
        host_config.DEFAULT_QUEUE_BYTES,
        controller_config.DEFAULT_WAITING_LIMIT,
    ),
    "tasks that have not ended": (f"{scheduler.MAX_TASKS:,}", scheduler.MAX_BYTES),
    "`TaskOptions`": (
        f"-{placement.HIGHEST_PRIORITY:,} to {placement.HIGHEST_PRIORITY:,}",
        f"{placement.MOST_DEPENDENCIES:,}",
        f"{placement.LONGEST_LABEL} characters",
    ),
    "calls and operations on one connection": (
        f"{dict(_channel.SERVER_OPTIONS)['grpc.max_concurrent_streams']:,}",
    ),
    "targets of a call": (f"{_session_server.MAX_TARGETS:,}",),
    "replies of a session left unread": (_session_server.MAX_UNREAD,),
    "`Function`s of a session": (
        f"{_function_window.MAX_FUNCTIONS:,}",
        _function_window.MAX_BYTES,
        _function_window.MAX_PICKLE,
    ),
    "`GetOperation.wait`": (f"{operation_calls.MAX_WAIT:g} seconds",),
    "ids in a Release": (f"{operation_calls.MAX_RELEASED:,}", f"{controller_operations.MAX_RELEASED:,}"),
    "properties of an engine": (_encoded.MAX_PROPERTIES,),
    "seconds of timeout and grace": (f"10^{len(f'{_engine.MAX_SECONDS:.0f}') - 1}",),
}
"""What the contract page bounds, and by how much: bytes as a number, all else as text."""


@pytest.mark.parametrize("what", LIMITS)
def test_the_contract_page_has_the_limits(what: str) -> None:
    """Each bound that callers meet stands there with its number."""
    [limit] = re.findall(rf"^\| {re.escape(what)} \| (.*?) \|", CONTRACT, re.MULTILINE)
    for bound in LIMITS[what]:
        text = bound if isinstance(bound, str) else _sizes.show(bound)
        assert re.search(rf"(?<!\d)(?<!\d,){re.escape(text)}(?!,?\d)", limit), (
            f"{what}: {text} is not in {limit!r}"
        )


def test_the_contract_page_has_the_metadata_keys() -> None:
    """Each key that is read is on the page, and no other."""
    keys = {value for name, value in vars(_methods).items() if name.endswith("_KEY")}
    assert {*re.findall(r"^\| `(enginery-[a-z-]+)`", CONTRACT, re.MULTILINE)} == keys


def test_the_contract_page_has_the_fields_of_connection_files() -> None:
    """Each field that is written is on the page, and no other."""
    [section] = re.findall(r"^\| field of `client.json`.*?\n\n", CONTRACT, re.MULTILINE | re.DOTALL)
    fields = {field.name for field in dataclasses.fields(_connection_file.ConnectionInfo)}
    assert {*re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)} == {"format", *fields} - {"path"}
