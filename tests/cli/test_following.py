"""How the events of an operation are printed: by whom, where and in which order, without a cluster."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from enginery.cli.operations import EXIT_CODES, Follower, find
from enginery.errors import EngineryError, KernelDied, OperationNotFound, RaisedError, RemoteError
from enginery.operations import Event, OperationInfo
from enginery.result import Display

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
RAISED = RaisedError("builtins", "KeyError", (), "'a'", "KeyError('a')")
REMOTE = RemoteError([RAISED], "Traceback\nKeyError: 'a'\n")


class FakeOperation:
    """An operation of which everything has been said."""

    def __init__(
        self, *events: dict[str, Any], text: str | None = None, error: Exception | None = None
    ) -> None:
        self.method = "execute"
        self._events = [_event(number, values) for number, values in enumerate(events, 1)]
        self._text = text
        self._error = error

    stdout = "all of its output\n"
    stderr = "and its warnings\n"

    def events(self, after: int) -> Iterator[Event]:
        return iter(self._events[after:])

    def result(self) -> SimpleNamespace:
        return SimpleNamespace(text=self._text)

    def exception(self) -> Exception | None:
        return self._error


def _event(sequence: int, values: dict[str, Any]) -> Event:
    time = values.pop("time", BEGAN)
    return Event(sequence, time, **values)


def follow(operation: FakeOperation, after: int = 0) -> int:
    follower = Follower()
    code = follower.follow(operation, after)  # type: ignore[arg-type]
    assert follower.last == len(operation._events)
    return code


def stdout(text: str) -> dict[str, Any]:
    return {"kind": "stdout", "text": text}


def outcome(state: str) -> dict[str, Any]:
    return {"kind": "outcome", "state": state}


def test_output_goes_where_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout to stdout and stderr to stderr as they are; the value on a line of its own; code 0."""
    warning = {"kind": "stderr", "text": "warning\n"}
    operation = FakeOperation({"kind": "started"}, stdout("a\nb"), warning, outcome("succeeded"), text="42")
    assert follow(operation) == 0
    assert capsys.readouterr() == ("a\nb\n42\n", "warning\n")


def test_from_where_the_reader_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """What came before is not printed again."""
    assert follow(FakeOperation(stdout("a\n"), stdout("b\n"), outcome("succeeded")), after=1) == 0
    assert capsys.readouterr() == ("b\n", "")


def test_what_only_the_journal_knows(capsys: pytest.CaptureFixture[str]) -> None:
    """It has no events but the outcome, and the output with the answer: that is printed then."""
    assert follow(FakeOperation(outcome("succeeded"), text="42")) == 0
    assert capsys.readouterr() == ("all of its output\n42\n", "and its warnings\n")


def test_what_is_said_about_it_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress, at most a line a second and the last one always, and what was dropped; displays are output."""
    seconds = [dt.timedelta(seconds=second) for second in (0, 0.5, 0.9, 1.5, 1.6)]
    reports = [
        {"kind": "progress", "fraction": number / 5, "text": "row\r", "time": BEGAN + second}
        for number, second in enumerate(seconds, 1)
    ]
    operation = FakeOperation(
        *reports, {"kind": "dropped", "dropped_bytes": 7, "dropped_events": 1}, stdout("x"),
        {"kind": "display", "display": Display({"text/plain": "shown"})}, outcome("succeeded"),
    )  # fmt: skip
    assert follow(operation) == 0
    said = capsys.readouterr()
    assert said.out == "x\nshown\n"
    assert said.err == ("[20% row\\r]\n[80% row\\r]\n[... 7 bytes of output were dropped ...]\n[100% row\\r]\n")


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ("failed", REMOTE, "Traceback\nKeyError: 'a'\n"),
        ("lost", KernelDied("the kernel died"), "enginery: the kernel died\n"),
        ("cancelled", EngineryError("it was cancelled"), "enginery: it was cancelled\n"),
        ("timed_out", EngineryError("it ran for 1 s"), "enginery: it ran for 1 s\n"),
    ],
)
def test_the_exit_code_is_the_outcome(
    capsys: pytest.CaptureFixture[str], state: str, error: Exception, said: str
) -> None:
    """Each state has its own, and the error is on stderr."""
    assert follow(FakeOperation(stdout("half"), outcome(state), error=error)) == EXIT_CODES[state]
    assert capsys.readouterr() == ("half\n", said)
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


def test_a_stop_shows_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted operation has a remote traceback, and then what stopped it."""
    error = EngineryError("it was cancelled")
    error.__cause__ = REMOTE
    follow(FakeOperation({"kind": "started"}, outcome("cancelled"), error=error))
    assert capsys.readouterr().err == "Traceback\nKeyError: 'a'\nenginery: it was cancelled\n"


IDS = [f"0193f3c2-0{n:03x}-8000-8000-00000000000{n % 3}" for n in range(30)]


class FakeClient:
    """A client of a cluster with operations of thirty sessions."""

    def operations(self, **_: object) -> list[OperationInfo]:
        return [OperationInfo(name, "running", 0, "execute") for name in IDS]

    def operation(self, operation_id: str) -> str:
        return operation_id


def found(text: str) -> object:
    return find(FakeClient(), text)  # type: ignore[arg-type]


def test_ids_may_be_shortened() -> None:
    """The first or last digits do if only one operation has them, and a whole id always; in any case."""
    assert found("0193F3C2-0001") == IDS[1]
    assert found("01d-8000-8000-000000000002") == IDS[29]
    other = "ffffffff-0000-8000-8000-000000000000"
    assert found(other) == other
    assert found(other.replace("-", "")) == other


def test_ids_that_several_or_none_have() -> None:
    """The error lists some of those that fit, or says how to list all."""
    with pytest.raises(EngineryError, match=r"10 operations.*\n  0193") as caught:
        found("002")
    assert str(caught.value).count("\n") == 10
    with pytest.raises(EngineryError, match="and 20 more"):
        found("0193")
    with pytest.raises(OperationNotFound, match="enginery ops"):
        found("beef")
