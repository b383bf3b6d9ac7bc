"""Values too large to ride in a call."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import enginery
from enginery import _connection, _link, _stall
from enginery._pieces import SIZE
from enginery._reasons import DeliveryError
from enginery.errors import BlobNotFound, ControllerLost, DataLoss, QueueCleared, ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.fake import FakeController


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def big(size: int = 3_000_001) -> Any:
    return np.arange(size, dtype="u1")


def test_large_values_go_there_and_back(client: enginery.Client, controller: FakeController) -> None:
    """Above 64 KiB by Upload, above what rides in a reply by Download; arrays come back equal and writable."""
    array = big()
    client[0].push({"a": array})
    back = client[0].pull("a")
    assert (back == array).all()
    back += 1
    assert controller.engines[0].blobs == {}, "the engine's host was told to forget them"
    assert len(controller.engines[0].released) == 1


@pytest.mark.parametrize("size", [8, 400_000], ids=["in the call", "by upload and download"])
def test_arrays_come_back_as_they_were(client: enginery.Client, size: int) -> None:
    """Type, order and shape; and writable, whichever way they came, unless their sender made them read-only."""
    numbers = np.arange(size * 2)
    fields = np.zeros(size, dtype=[("a", "<i4"), ("b", ">f8")])
    frozen = numbers.astype("f4")
    frozen.flags.writeable = False
    for array in (
        numbers.reshape(2, -1),
        np.asfortranarray(numbers.reshape(2, -1)),
        numbers.astype(">i2"),
        numbers.astype("complex64"),
        fields,
        frozen,
        numbers[::2],
        numbers.reshape(2, -1).T,
    ):
        client[0].push({"a": array})
        back = client[0].pull("a")
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.flags.f_contiguous >= array.flags.f_contiguous
        assert np.array_equal(back, array)
        assert back.flags.writeable == array.flags.writeable


def test_a_download_that_breaks_off_goes_on(client: enginery.Client, controller: FakeController) -> None:
    """From where it was. The engine's host forgets a value when the client says that it is there."""
    array = big()
    client[0].push({"a": array})
    controller.cut_downloads = 2
    assert (client[0].pull("a") == array).all()
    assert controller.engines[0].blobs == {}
    assert controller.chunks_given == 6 + 2, "what had come was not fetched again"


@pytest.mark.parametrize("targets", [0, slice(None)], ids=["one engine", "several engines"])
def test_an_upload_that_breaks_off_goes_on(
    client: enginery.Client, controller: FakeController, targets: int | slice
) -> None:
    """From where it was: each chunk is taken once, however often the stream breaks."""
    array = big()
    controller.cut_uploads = {1, 2, 3}
    client[targets].push({"a": array})
    assert controller.chunks_taken == 1 + math.ceil(array.nbytes / SIZE), "the pickle and its buffer"
    back = client[targets].pull("a")
    assert all((one == array).all() for one in ([back] if targets == 0 else back))


def test_what_stands_still_is_tried_again(
    client: enginery.Client, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another stream, and from where it was."""
    monkeypatch.setattr(_stall, "LIMIT", 0.3)
    monkeypatch.setattr(_link, "_FIRST_DELAY", 0.01)
    array = big()
    controller.upload_gate = asyncio.Event()
    pushing = client[0].push({"a": array}, block=False)
    until(lambda: len(controller.uploads) == 2)
    controller.loop.call_soon_threadsafe(controller.upload_gate.set)
    pushing.result(10)
    controller.pause = 10.0
    pulling = client[0].pull("a", block=False)
    until(lambda: controller.chunks_given == 1)
    controller.pause = 0.0
    assert (pulling.result(10) == array).all()


@pytest.mark.parametrize(("is_far", "state"), [(True, "READY"), (False, "IDLE")])
def test_the_channel_to_a_far_controller_is_connected_before_the_first_value(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch, is_far: bool, state: str
) -> None:
    """It would wait for that; beside a near one most clients never need it."""
    monkeypatch.setattr(_connection, "_LONG", 0.0 if is_far else 60.0)
    with enginery.connect(controller.path, timeout=5) as client:
        assert client.ids
        connection = client._link._connection
        assert connection is not None
        until(lambda: connection.channels[1].get_state().name == state)


def test_every_way_for_a_large_value(client: enginery.Client) -> None:
    """Arguments and values of apply, serialized values, functions' namespaces, several engines at once."""
    array = big()
    assert client[0].apply(lambda a: int(a.sum()), array) == int(array.sum())
    assert (client[0].apply(lambda a: a[::-1].copy(), array) == array[::-1]).all()
    client[:].push_serialized({"a": array, "small": 1})
    for value in client[:].pull_serialized("a"):
        assert isinstance(value, enginery.Serialized)
        loaded: Any = value.load()
        loaded[0] = 1
    assert client[:].pull("small") == [1, 1]
    client[0].set_properties({"a": "x" * 100_000})
    many = {f"n{i}": b"x" * 60_000 for i in range(60)}
    client[0].push_serialized(many)
    assert client[0].pull("n59") == b"x" * 60_000


def test_a_value_for_several_engines_travels_once(client: enginery.Client, controller: FakeController) -> None:
    """To the controller; an engine that does not have it then is sent it by itself."""
    array = big()
    client[:].push({"a": array})
    assert controller.uploads == ["0,1"]
    controller.unshared = {1}
    assert client[:].apply(lambda a: int(a.sum()), array) == [int(array.sum())] * 2
    assert controller.uploads == ["0,1", "0,1", None]
    controller.unshared = {0, 1}
    client[:].push({"a": array, "b": 1}, block=False)
    assert client[:].pull("b") == [1, 1]
    assert controller.uploads[3:] == ["0,1", None, None]
    client[:].scatter("a", array)  # each has its own
    assert controller.uploads[6:] == [None, None]
    assert [len(part) for part in client[:].pull("a")] == [len(array) - len(array) // 2, len(array) // 2]


def test_a_function_may_not_capture_what_is_large(client: enginery.Client) -> None:
    """It travels in a message, and the error says what to do: an argument goes in chunks."""
    array = big(5_000_000)
    with pytest.raises(ValueTooLarge, match=r"with what it captured.*pass it as an argument"):
        client[0].apply(lambda: int(array.sum()))
    assert client[0].apply(lambda a: len(a), array) == 5_000_000


def test_order_holds_behind_an_upload(client: enginery.Client) -> None:
    """A small call after one with a large value runs after it, started at once or not."""
    array = big()
    for n in range(5):
        client[0].push({"a": array, "n": n}, block=False)
        assert client[0].execute("n").value == n


def test_an_argument_may_be_changed_after_an_unwaited_call(
    client: enginery.Client, controller: FakeController
) -> None:
    """With block=False the bytes of the call's moment travel, whatever the caller does to the array then."""
    gate = asyncio.Event()
    controller.upload_gate = gate
    array = big()
    operation = client[0].push({"a": array}, block=False)
    array[:] = 0
    controller.loop.call_soon_threadsafe(gate.set)
    operation.result(10)
    assert (client[0].pull("a") == big()).all()


def test_a_refused_upload_fails_its_call_and_clears_those_behind(
    client: enginery.Client, controller: FakeController
) -> None:
    """The error names limit and option; what depends on the value does not run; nothing was sent of it."""
    controller.upload_failure = DeliveryError("VALUE_TOO_LARGE", size=9, limit=8, option="--value-limit")
    gate = controller.upload_gate = asyncio.Event()
    operation = client[0].push({"a": big()}, block=False)
    behind = client[0].execute("a", block=False)
    controller.loop.call_soon_threadsafe(gate.set)
    with pytest.raises(ValueTooLarge, match="--value-limit"):
        operation.result(10)
    with pytest.raises(QueueCleared):
        behind.result(10)
    assert client[0].execute("1").value == 1
    assert "Push" not in controller.engines[0].asked


def test_a_connection_that_breaks_during_an_upload(client: enginery.Client, controller: FakeController) -> None:
    """The upload goes on on the next connection; the call never knows."""
    controller.upload_gate = asyncio.Event()
    operation = client[0].push({"a": big()}, block=False)
    link = client._link
    while not link._tasks:
        time.sleep(0.001)
    connection = link._connection
    assert connection is not None
    link.thread.loop.call_soon_threadsafe(connection.stream.cancel)  # the client gives the connection up
    controller.upload_gate = None
    assert operation.result(10) is None
    assert client.statistics()["reconnects"] == 1


def test_ctrl_c_while_closing_closes(controller: FakeController) -> None:
    """It ends the wait for what is not sent yet, which is told so; nothing of the client is left."""
    controller.upload_gate = asyncio.Event()
    client = enginery.connect(controller.path)
    operation = client[0].push({"a": big()}, block=False)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        client.close()
    with pytest.raises(ControllerLost, match="closed"):
        operation.result(10)
    assert client.closed
    client.close()


def test_a_damaged_chunk_is_noticed(client: enginery.Client, controller: FakeController) -> None:
    """The checksum of each chunk is checked."""
    client[0].push({"a": big()})
    controller.damage = True
    with pytest.raises(DataLoss):
        client[0].pull("a")


def test_large_results_of_execute_wait_until_asked_for(
    client: enginery.Client, controller: FakeController
) -> None:
    """Value and output are fetched on first use, and stay on the engine's host for other readers."""
    client[0].push({"a": big()})
    result = client[0].execute("a")
    assert list(controller.engines[0].blobs) == ["blob-0"]
    assert (result.value == big()).all()
    controller.engines[0].blobs.clear()
    assert (result.value == big()).all()

    printed = client[0].execute("print('x' * 2_000_000)")
    assert printed.stdout == "x" * 2_000_000 + "\n"


def test_output_and_value_that_the_engine_let_go_of(
    client: enginery.Client, controller: FakeController
) -> None:
    """Of output the short form is left; a value is an error that says so."""
    client[0].push({"a": big()})
    printed, result = client[0].execute("print('x' * 2_000_000)"), client[0].execute("a")
    controller.engines[0].blobs.clear()
    assert "..." in printed.stdout
    assert len(printed.stdout) < 1000
    with pytest.raises(BlobNotFound):
        _ = result.value
