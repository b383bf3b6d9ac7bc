"""The error table is complete in both directions."""

from __future__ import annotations

import ast
import re
import string

import grpc
import pytest

from enginery import _reasons, _status, errors
from tests.architecture import source

FILES = [path for path in source.files() if path.name != "_reasons.py"]
REASON = re.compile(r"^[A-Z][A-Z0-9_]*[A-Z0-9]$")


def _raised() -> list[tuple[str, ast.Call]]:
    """Return every `DeliveryError(...)` of the source, with where it stands."""
    return [
        (f"{path.relative_to(source.ROOT)}:{node.lineno}", node)
        for path in FILES
        for node in ast.walk(source.tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "DeliveryError"
    ]


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_reason_in_the_code_is_in_the_table() -> None:
    """A reason that the code gives has a row."""
    unknown = {
        f"{where}: {call.args[0].value!r}"
        for where, call in _raised()
        if isinstance(call.args[0], ast.Constant) and call.args[0].value not in _reasons.TABLE
    }
    assert not unknown


def test_every_row_is_used() -> None:
    """A row that nothing gives is dead text."""
    used = {text for path in FILES for text in source.strings(path)}
    assert set(_reasons.TABLE) <= used, sorted(set(_reasons.TABLE) - used)


def test_every_reason_fills_its_text() -> None:
    """Whoever gives a reason names all that its text speaks of."""
    gaps = []
    for where, call in _raised():
        reason, keywords = call.args[0], {keyword.arg for keyword in call.keywords}
        if isinstance(reason, ast.Constant) and reason.value in _reasons.TABLE and None not in keywords:
            missing = _fields(_reasons.TABLE[str(reason.value)].text) - {str(name) for name in keywords}
            gaps += [f"{where}: {reason.value!r} lacks {sorted(missing)}"] if missing else []
    assert not gaps


@pytest.mark.parametrize("reason", _reasons.TABLE)
def test_row(reason: str) -> None:
    """A row has a good name, a gRPC code, an exception of ours, and survives the wire."""
    row = _reasons.TABLE[reason]
    assert REASON.match(reason)
    assert len(reason) <= 63  # google.rpc.ErrorInfo's limit
    error = _reasons.DeliveryError(reason, **dict.fromkeys(_fields(row.text), "7"))
    assert "unknown)" not in error.text
    assert _status.grpc_code(error) is not grpc.StatusCode.OK
    assert _status.grpc_code(error).name == error.code.name
    assert issubclass(row.exception, errors.EngineryError)
    back = _status.from_bytes(_status.to_bytes(error))
    assert (back.reason, back.metadata, back.text) == (reason, error.metadata, error.text)
    raised = _reasons.public(back)
    assert type(raised) is row.exception
    assert raised.reason == reason


def test_every_code_is_a_grpc_code() -> None:
    """Our numbers are gRPC's."""
    assert {code.name: code.value for code in _reasons.Code}.items() <= {
        code.name: code.value[0] for code in grpc.StatusCode
    }.items()


def test_a_status_fits_any_trailer() -> None:
    """However long the cause, the status stays far below gRPC's 8 KB of metadata."""
    error = _reasons.DeliveryError("KERNEL_DIED", **dict.fromkeys("abcdefghij", "ü" * 5000))
    assert len(_status.to_bytes(error)) < 6000


def test_reasons_of_the_contract_are_in_the_table() -> None:
    """The comments of the protos speak only of reasons that there are."""
    text = " ".join(path.read_text() for path in (source.ROOT / "protos").rglob("*.proto"))
    text = re.sub(r"\s*//\s*", " ", text)
    named = {
        word
        for phrase in re.findall(r"[Rr]eason ((?:[A-Z][A-Z_]+(?:, | or )?)+)", text)
        for word in re.findall(r"[A-Z][A-Z_]+", phrase)
    }
    assert named
    assert named <= set(_reasons.TABLE)
