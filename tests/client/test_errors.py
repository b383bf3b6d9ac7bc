"""How errors of user code, of delivery and of several engines arrive."""

from __future__ import annotations

import io
import linecache
from typing import TYPE_CHECKING

import pytest

import enginery
from enginery import _codec, _decode
from enginery.errors import CompositeError, InvalidEngineID, RemoteError, UnpickleableException, remote_of
from enginery.v1 import error_pb2
from tests.client.fake import remote_error

if TYPE_CHECKING:
    from tests.client.fake import FakeController


class Rude(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_the_original_type_is_raised_from_the_remote_error(client: enginery.Client) -> None:
    """`except ZeroDivisionError` works; the cause has text, traceback, method and ids."""
    with pytest.raises(ZeroDivisionError) as caught:
        client[1].execute("1/0")
    remote = remote_of(caught.value)
    assert remote is not None
    assert (remote.engine_id, remote.method, remote.type_name) == (1, "execute", "ZeroDivisionError")
    assert remote.operation_id
    assert "division by zero" in remote.traceback


def test_errors_show_no_frames_of_ours(client: enginery.Client) -> None:
    """How the client decoded it tells the reader nothing; raised again it has not grown."""
    operation = client[0].execute("1/0", block=False)
    lengths = set()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            operation.result()
        lengths.add(len(caught.traceback))
    assert lengths == {2}
    with pytest.raises(CompositeError) as several:
        client[:].execute("1/0")
    assert all(error.__traceback__ is None for error in several.value.exceptions)


def test_wrap_never_unpickles(client: enginery.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """With errors="wrap" it is always a RemoteError, made without the codec; views can be set apart."""
    view = client[0]
    view.errors = "wrap"
    monkeypatch.setattr(_codec, "decode", lambda _: pytest.fail("it unpickled"))
    with pytest.raises(RemoteError, match="division by zero"):
        view.execute("1/0")


def test_wrap_for_a_whole_client(controller: FakeController) -> None:
    """`connect(errors="wrap")` sets it for every view."""
    with enginery.connect(controller.path, errors="wrap") as client:
        for call in (lambda: client[0].execute("1/0"), lambda: client[0].pull("nothing")):
            with pytest.raises(RemoteError):
                call()
        with pytest.raises(CompositeError) as caught:
            client[:].execute("1/0")
        assert all(type(error) is RemoteError for error in caught.value.exceptions)
    with pytest.raises(ValueError, match="wrap"):
        enginery.connect(controller.path, errors="hide")  # type: ignore[arg-type]


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise KeyboardInterrupt", "exit()"])
def test_what_is_no_exception_does_not_end_the_caller(client: enginery.Client, code: str) -> None:
    """A remote SystemExit or KeyboardInterrupt is a RemoteError here."""
    with pytest.raises(RemoteError, match=r"SystemExit|KeyboardInterrupt"):
        client[0].execute(code)


def test_an_exception_that_does_not_survive_still_says_what_it_was(client: enginery.Client) -> None:
    """Type and text arrive."""

    class Unpickleable(
        Exception
    ):  # here, since tblib, which Dask brings, teaches all that there are to survive
        """No pickle holds its lock."""

        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")
            self.lock = __import__("threading").Lock()

    def fail() -> None:
        raise Unpickleable(1, 2)

    with pytest.raises(UnpickleableException, match=r"Unpickleable: 1 and 2") as caught:
        client[0].apply(fail)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert caught.value.engine_id == 0


def test_an_exception_whose_text_raises(client: enginery.Client) -> None:
    """It arrives, and what the client makes of it can be printed."""

    def fail() -> None:
        raise Rude

    with pytest.raises(Rude) as caught:
        client[0].apply(fail)
    remote = remote_of(caught.value)
    assert "str() raised RuntimeError" in str(remote)
    with pytest.raises(CompositeError) as several:
        client[[0]].apply(fail)
    assert "[0:apply]: Rude" in str(several.value)


def test_a_corrupt_pickle_of_an_exception_is_no_second_error() -> None:
    """The text arrives all the same; so does an object that is no exception at all."""
    message = remote_error(ValueError("x"), 0, "execute", b"\1" * 16)
    message.pickled.data = b"garbage"
    assert isinstance(_decode.to_exception(message), UnpickleableException)
    message.pickled.data = b"K\x01."
    assert isinstance(_decode.to_exception(message), UnpickleableException)


def test_an_empty_message_is_still_an_error() -> None:
    """An engine that says nothing of what happened does not make the client fail otherwise."""
    assert isinstance(_decode.to_exception(error_pb2.RemoteError()), UnpickleableException)


def test_everything_of_a_remote_error_is_there() -> None:
    """Frames, links, notes and category of the message are those of the exception."""
    raised = error_pb2.RaisedError(
        module="m", type_name="E", hierarchy=["m.E", "builtins.Exception"], message="x", notes=["n"],
        cause_index=1,
        frames=[error_pb2.StackFrame(file="f", line=3, function="g", source_line="h()", column=2)],
    )  # fmt: skip
    message = error_pb2.RemoteError(
        errors=[raised, error_pb2.RaisedError(type_name="C", member_indexes=[0])],
        category=error_pb2.ERROR_CATEGORY_INTERRUPTED,
        traceback="t",
        arguments="code='x'",
    )
    remote = _decode.to_remote_error(message)
    assert (remote.category, remote.notes, remote.arguments) == ("INTERRUPTED", ("n",), "code='x'")
    first, second = remote.errors
    assert (first.cause_index, first.context_index, second.member_indexes) == (1, None, (0,))
    frame = first.frames[0]
    expected = ("f", 3, 2, None, "h()")
    assert (frame.file, frame.line, frame.column, frame.end_column, frame.source_line) == expected
    assert _decode.to_exception(message).__notes__ == ["n"]
    message.category = 99  # type: ignore[assignment]
    assert _decode.to_remote_error(message).category == "USER"


def test_lines_of_typed_code_are_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine has no cells of a notebook: their lines are put in here, and no others."""
    monkeypatch.setitem(linecache.cache, "<cell>", (9, None, ["def f():\n", "    1/0\n"], "<cell>"))
    lines = [
        "Traceback (most recent call last):",
        '  File "<cell>", line 2, in f',
        '  File "/on/disk", line 2, in g',
        "    known()",
        '  File "<cell>", line 2, in f',
        "    there()",
        "  | Exception Group Traceback:",
        '  |   File "<cell>", line 1, in f',
        f'  File "<cell>", line {"9" * 5000}',
        "E: x",
    ]
    frame = error_pb2.StackFrame(file="<cell>", line=2, function="f")
    message = error_pb2.RemoteError(
        errors=[error_pb2.RaisedError(type_name="E", frames=[frame])], traceback="\n".join(lines)
    )
    remote = _decode.to_remote_error(message)
    assert remote.errors[0].frames[0].source_line == "1/0"
    added = [line for line in remote.traceback.splitlines() if line not in lines]
    assert added == ["    1/0", "  |     def f():"]
    assert remote.traceback.splitlines()[2] == "    1/0"


def test_failures_of_several_engines_are_one_error(client: enginery.Client) -> None:
    """It lists engine, method, type and text for each, and every engine was called."""
    client[:].push({"a": 1})
    with pytest.raises(CompositeError) as caught:
        client[:].execute("a / id")
    assert str(caught.value).splitlines() == [
        "execute failed on 1 of 2 engines",
        "  [0:execute]: ZeroDivisionError: division by zero",
    ]
    with pytest.raises(ExceptionGroup):
        client[:].execute("1/0")
    out = io.StringIO()
    caught.value.print_tracebacks(out)
    assert "[0:execute]" in out.getvalue()
    with pytest.raises(ZeroDivisionError):
        caught.value.raise_exception()
    assert client[1].get_result(1).value == 1.0


def test_an_engine_that_has_gone(client: enginery.Client, controller: FakeController) -> None:
    """A view outlives its engine and says so; the error has ids and names the engines there are."""
    view, both = client[1], client[:]
    controller.lose(1)
    with pytest.raises(InvalidEngineID, match="there are: 0") as caught:
        view.execute("1")
    assert caught.value.engine_id == 1
    assert caught.value.operation_id
    assert caught.value.reason == "INVALID_ENGINE_ID"
    with pytest.raises(CompositeError) as several:
        both.execute("1")
    assert "[1:execute]: InvalidEngineID: no engine 1" in str(several.value)
