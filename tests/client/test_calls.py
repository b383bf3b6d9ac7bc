"""Every method of a view, on one engine and on several."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import enginery
from enginery.errors import InvalidProperty, SerializationError, ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.fake import FakeController


def iter_nothing() -> Iterator[int]:
    """Make something that cannot be pickled."""
    yield from ()


def test_execute_returns_the_whole_record(client: enginery.Client) -> None:
    """A result has everything that the command did, as attributes and as items."""
    client[0].execute("a = 20")
    result = client[0].execute("a + 22")
    assert (result.engine_id, result.id, result.number) == (0, 0, 2)
    assert (result.input.raw, result["input"]["translated"]) == ("a + 22", "a + 22")
    assert (result.value, result.text, result.pretty) == (42, "42", "42")
    assert result.started_at == dt.datetime.fromtimestamp(1_700_000_000, dt.UTC)
    assert result["duration"] == 1.5
    assert (result.error, result.displays, result.stderr) == (None, [], "")
    assert client[0].execute("print('hello')")["stdout"] == "hello\n"
    assert repr(result) == "<ExecuteResult [0:2] 42, 1.5 s>"
    assert str(result) == "Out[0:2]: 42"
    with pytest.raises(KeyError):
        result["nothing"]


def test_a_value_that_does_not_travel_is_told_when_it_is_asked_for(client: enginery.Client) -> None:
    """`text` is there all the same."""
    result = client[0].execute("(n for n in ())")
    assert result.text is not None
    assert "generator" in result.text
    with pytest.raises(SerializationError, match="did not travel"):
        _ = result.value


def test_one_engine_gives_values_and_several_give_lists(client: enginery.Client) -> None:
    """Answers of a view of several engines are lists in target order, a list of one engine included."""
    assert client[0].push({"a": 1}) is None
    assert client[:].push({"a": 1}) == [None, None]
    assert client[[1]].pull("a") == [1]
    client[1]["a"] = 2
    assert client[:]["a"] == [1, 2]
    assert client[[1, 0]].pull("a") == [2, 1]
    assert client["all"].pull(["a", "id"]) == [[1, 0], [2, 1]]
    assert client[0]["a"] == 1


def test_pull_of_a_name_and_of_a_sequence(client: enginery.Client) -> None:
    """A str gives the object, a sequence gives a list, one name included; anything else is TypeError."""
    client[0].push({"a": 1, "b": "two"})
    assert client[0].pull("a") == 1
    assert client[0].pull(["a"]) == [1]
    assert client[0].pull(("b", "a")) == ["two", 1]
    for wrong in (1, None, {"a"}, b"a", [1]):
        with pytest.raises(TypeError, match=r"name|text"):
            client[0].pull(wrong)  # type: ignore[arg-type]


def test_no_name_at_all_is_a_mistake(client: enginery.Client) -> None:
    """An empty sequence is refused here: there is nothing to ask."""
    for pull in (client[0].pull, client[0].pull_function, client[:].pull_serialized):
        with pytest.raises(ValueError, match="no name"):
            pull([])


def test_a_missing_name_is_name_error(client: enginery.Client) -> None:
    """The original exception is raised, from a RemoteError that says where."""
    with pytest.raises(NameError, match="nothing") as caught:
        client[0].pull(["id", "nothing"])
    assert isinstance(caught.value.__cause__, enginery.RemoteError)
    assert caught.value.__cause__.engine_id == 0


def test_functions_go_and_come(client: enginery.Client) -> None:
    """Pushed functions arrive, pulled ones can be called here."""
    client[0].push_function({"double": lambda x: 2 * x})
    assert client[0].apply("double", 4) == 8
    assert client[0].pull_function("double")(5) == 10
    assert [f(1) for f in client[:1].pull_function("double")] == [2]
    assert [f(1) for f in client[0].pull_function(["double"])] == [2]
    with pytest.raises(TypeError):
        client[0].push_function([len])  # type: ignore[call-overload]


def test_apply_calls_with_arguments(client: enginery.Client) -> None:
    """Functions and names of functions, positional and keyword arguments."""
    assert client[0].apply(lambda a, *, b: a - b, 5, b=2) == 3
    assert client[:].apply(max, 1, 2) == [2, 2]
    assert client[0].apply("max", [3, 1]) == 3
    with pytest.raises(TypeError, match="int"):
        client[0].apply(3)  # type: ignore[call-overload]


def test_serialized_values_are_not_decoded_on_the_way(client: enginery.Client) -> None:
    """An array goes as its raw buffer and can be handed from engine to engine; what comes out is writable."""
    array = np.arange(6, dtype="<f8").reshape(2, 3)
    client[0].push_serialized({"a": array, "b": {"x": [1, 2]}, "c": {1, 2}})
    values = client[0].pull_serialized(["a", "b", "c"])
    assert [value.codec for value in values] == ["ndarray", "json", "pickle"]
    assert (values[0].dtype, values[0].shape, values[0].size) == ("<f8", (2, 3), 48)
    client[1].push_serialized({"a": values[0]})
    copy: Any = client[1].pull_serialized("a").load()
    copy += 1
    assert (copy == array + 1).all()
    assert repr(values[0]) == "<Serialized ndarray <f8[2, 3], 48 bytes>"


def test_get_result(client: enginery.Client) -> None:
    """The latest record by default, failed ones with their error; what is not there is IndexError."""
    with pytest.raises(IndexError):
        client[0].get_result()
    client[0].execute("1")
    with pytest.raises(ZeroDivisionError):
        client[0].execute("1/0")
    failed = client[0].get_result()
    assert isinstance(failed.error, ZeroDivisionError)
    assert "raised ZeroDivisionError" in repr(failed)
    assert client[0].get_result(1).value == 1
    for number in (0, 9, -1):
        with pytest.raises(IndexError):
            client[0].get_result(number)
    for wrong in ("1", 1.0, True):
        with pytest.raises(TypeError):
            client[0].get_result(wrong)  # type: ignore[arg-type]


def test_properties(client: enginery.Client) -> None:
    """A small strict dictionary; a bare str counts as one key."""
    view = client[0]
    view.set_properties({"gpu": True, "sizes": [1, 2.5], "odd": (1, 2)})
    assert view.get_properties() == {"gpu": True, "sizes": [1, 2.5], "odd": (1, 2)}
    assert view.get_properties("gpu") == {"gpu": True}
    assert view.get_properties([]) == {}
    assert view.has_properties(["gpu", "tpu"]) == [True, False]
    assert view.has_properties("gpu") == [True]
    view.del_properties("gpu")
    with pytest.raises(KeyError):
        view.get_properties("gpu")
    view.clear_properties()
    assert client[:].get_properties() == [{}, {}]
    with pytest.raises(InvalidProperty, match="'bad'"):
        view.set_properties({"bad": iter_nothing()})


def test_control_calls(client: enginery.Client) -> None:
    """Queue status, clearing and interrupting answer with what they did."""
    status = client[1].queue_status()
    assert status.id == status.engine_id == 1
    assert status["pending"]["method"] == "execute"
    assert status.pending is not None
    assert (status.pending.progress_fraction, status.pending.started_at) == (0.5, None)
    assert [call.arguments for call in status["queue"]] == ["a"]
    assert client[:].clear_queue() == [3, 3]
    assert client[0].interrupt() is None
    operation_id = "01020304-0506-8708-8000-000000000001"
    assert client[0].interrupt(operation_id) == operation_id
    with pytest.raises(ValueError):
        client[0].interrupt("that one")


def test_keys_and_reset(client: enginery.Client) -> None:
    """Names of the namespace, and an empty one."""
    client[0].push({"z": 1, "a": 1})
    assert client[0].keys() == ["a", "id", "z"]
    client[:].reset()
    assert client[:].keys() == [["id"], ["id"]]


def test_what_cannot_be_pickled_fails_before_anything_is_sent(
    client: enginery.Client, controller: FakeController
) -> None:
    """The error is raised at the caller and names the type; the engine is not asked."""
    generator = iter_nothing()
    for call in (
        lambda: client[0].push({"a": generator}),
        lambda: client[0].apply(print, generator),
        lambda: client[0].push({"a": generator}, block=False),
        lambda: client[0].apply(lambda: generator),
    ):
        with pytest.raises(SerializationError, match=r"cannot be pickled.*generator"):
            call()
    for where, named in (
        ("'b': ", lambda: client[0].push({"a": 1, "b": generator})),
        ("argument 2: ", lambda: client[0].apply(print, 1, generator)),
        ("argument 'end': ", lambda: client[0].apply(print, 1, end=generator)),
        ("the function: ", lambda: client[0].apply(lambda: generator)),
    ):
        with pytest.raises(SerializationError, match=f"^{where}an object of type "):
            named()
    assert controller.engines[0].asked == []
    assert client.statistics()["calls"] == 0


def test_a_request_over_the_limit_is_refused_here(client: enginery.Client) -> None:
    """Source is not uploaded, and four megabytes of it are refused with a text that says what to do."""
    with pytest.raises(ValueTooLarge, match="push what is large"):
        client[0].execute("#" * (5 << 20))
    with pytest.raises(ValueError, match="Unicode"):
        client[0].execute("'\udc80'")
    with pytest.raises(TypeError):
        client[0].execute(b"1")  # type: ignore[call-overload]


def test_an_argument_is_pickled_once_for_many_engines(client: enginery.Client) -> None:
    """However many engines there are."""

    class Counted:
        pickled = 0

        def __reduce__(self) -> tuple[type, tuple[int]]:
            type(self).pickled += 1
            return (int, (7,))

    client[:].push({"a": Counted()})
    assert client[:].pull("a") == [7, 7]
    assert Counted.pickled == 1


def test_a_request_travels_once_for_many_engines(client: enginery.Client, controller: FakeController) -> None:
    """One frame names them all, and each answers for itself."""
    assert client[:].push({"a": "x" * 1000}) == [None, None]
    assert controller.frames == 1
    assert client[:].pull(["a", "id"]) == [["x" * 1000, 0], ["x" * 1000, 1]]
    assert (controller.frames, len(controller.calls)) == (2, 4)


def test_calls_that_are_made_while_a_message_is_written_go_with_the_next(
    client: enginery.Client, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, and nobody wakes the thread that sends them: it looks before it goes to sleep."""
    link = client._link
    assert link._connection is not None
    assert client[0].apply(abs, -1) == 1  # or the writer of the new connection may look by itself just then
    deadline = time.monotonic() + 10
    while link._is_awake and time.monotonic() < deadline:
        time.sleep(0.001)
    write, wake = link._connection.stream.write, link.wake
    begun, may_go_on = threading.Event(), threading.Event()
    wakes: list[None] = []

    async def write_slowly(message: Any) -> None:
        begun.set()
        await asyncio.to_thread(may_go_on.wait, 10)
        await write(message)

    def counted_wake() -> None:
        wakes.append(None)
        wake()

    monkeypatch.setattr(link._connection.stream, "write", write_slowly)
    monkeypatch.setattr(link, "wake", counted_wake)
    operations = [client[0].apply(abs, -1, block=False)]
    assert begun.wait(10)
    operations += [client[0].apply(abs, -1, block=False) for _ in range(20)]
    may_go_on.set()
    assert [operation.result(10) for operation in operations] == [1] * 21
    assert (controller.messages[-2:], len(wakes)) == ([1, 20], 1)
