"""The client on real engines: a controller, a host and kernels, with every default on."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import enginery
from enginery.errors import (
    CompositeError,
    InvalidProperty,
    KernelDied,
    OperationCancelled,
    OperationTimedOut,
    QueueCleared,
    RemoteError,
    SerializationError,
    UnpickleableException,
    remote_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(n=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: enginery.Cluster) -> enginery.Client:
    """The cluster's client, its engines emptied."""
    cluster.client.wait_for_engines(2, timeout=20)
    cluster.client[:].reset()
    return cluster.client


@pytest.mark.parametrize(
    "value",
    [
        10,
        -1.5,
        "hello",
        b"bytes",
        None,
        True,
        [1, "two"],
        {"a": {"b": (1, 2)}},
        {1, 2},
        1 << 80,
        math.inf,
        slice(1),
    ],
    ids=repr,
)
def test_values_come_back_as_they_were(client: enginery.Client, value: Any) -> None:
    """Type and value survive push and pull, apply, and a result."""
    client[0]["a"] = value
    for back in (client[0]["a"], client[0].apply(lambda x: x, value), client[0].execute("a").value):
        assert back == value
        assert type(back) is type(value)


@pytest.mark.parametrize("dtype", ["<f8", "|b1", "<i2", "<c16", "<M8[s]", "<U3"])
def test_arrays_of_every_shape(client: enginery.Client, dtype: str) -> None:
    """Small, large, empty, of no dimension and column-major arrays, by every way, equal and writable."""
    for array in (
        np.zeros((), dtype),
        np.zeros((0, 3), dtype),
        np.ones((200, 300), "u1").astype(dtype),
        np.asfortranarray(np.ones((3, 4), "u1").astype(dtype)),
    ):
        client[0].push({"a": array})
        client[0].push_serialized({"b": array})
        copies: list[Any] = [*client[0].pull(["a", "b"]), client[0].pull_serialized("b").load()]
        for copy in copies:
            assert copy.dtype == array.dtype
            assert copy.shape == array.shape
            assert (copy == array).all()
            copy[...] = array


def test_functions_live_in_the_engines_namespace(client: enginery.Client) -> None:
    """A pushed function reads the engine's globals; apply does so for functions of a script; defaults
    survive."""

    def add(x: int, y: int = 2, *, z: int = 3) -> int:
        """Add up."""
        return x + y + z

    client[0].push_function({"add": add})
    client[0].execute("def read(): return a")
    client[0]["a"] = 5
    assert client[0].execute("add(1), add.__doc__, read()").value == (6, "Add up.", 5)
    assert client[0].pull_function("add")(1, z=0) == 3
    assert client[0].apply("read") == 5

    async def later(x: int) -> int:
        return x

    assert client[0].apply(later, 4) == 4
    with pytest.raises(TypeError):
        client[0].push_function({"a": 1})  # type: ignore[dict-item]


def test_execute_keeps_all_that_happened(client: enginery.Client) -> None:
    """Output in order, display, value, number, history, top-level await."""
    result = client[0].execute(
        "import os, sys\nprint('one'); os.write(1, b'two\\n'); print('err', file=sys.stderr)\n[1, 2]"
    )
    assert (result.stdout, result.stderr, result.value, result.number) == ("one\ntwo\n", "err\n", [1, 2], 1)
    assert client[0].execute("_[0] + len(In)").value is not None
    assert client[0].execute("import asyncio; await asyncio.sleep(0, 'slept')").value == "slept"
    shown = (
        client[0].execute("class Shown:\n    def _repr_html_(self): return '<b>shown</b>'\nShown()").displays
    )
    assert shown[-1].data["text/html"] == "<b>shown</b>"
    assert client[0].execute("x = 1;").text is None
    assert client[0].execute("").number == 6
    with pytest.raises(SyntaxError):
        client[0].execute("1 +")
    assert client[0].get_result().error is not None
    assert client[0].get_result(1).stdout == "one\ntwo\n"


def test_a_lot_of_output(client: enginery.Client) -> None:
    """More than rides in a reply is fetched when it is asked for."""
    result = client[0].execute("for n in range(300_000): print(n)")
    assert result.stdout == "".join(f"{n}\n" for n in range(300_000))
    assert result.dropped_bytes == 0


def test_engine_properties_are_seen_as_soon_as_a_call_ends(client: enginery.Client) -> None:
    """What code on the engine sets is there before its caller goes on, on the client's list too."""
    view = client[0]
    view.execute("import enginery; enginery.get_engine().properties['speed'] = 3")
    assert view.get_properties() == {"speed": 3}
    view.set_properties({"odd": (1, 2), "nested": {"a": [1.5]}})
    got = view.get_properties()
    got["nested"]["a"].append(2)
    assert view.get_properties(["odd", "nested"]) == {"odd": (1, 2), "nested": {"a": [1.5]}}
    assert view.execute("enginery.get_engine().properties['odd']").value == (1, 2)
    assert view.has_properties(["odd", "even"]) == [True, False]
    with pytest.raises(KeyError):
        view.del_properties(["odd", "even"])
    assert "odd" in view.get_properties()
    with pytest.raises(InvalidProperty):
        view.execute("enginery.get_engine().properties['bad'] = (n for n in ())")
    deadline = time.monotonic() + 5
    while client.engines[0].properties.get("speed") != 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_properties_up_to_their_limit(client: enginery.Client) -> None:
    """Properties of up to 1 MiB travel both ways; more is refused before it is sent."""
    large = "x" * 900_000
    client[0].set_properties({"a": large})
    assert client[0].get_properties() == {"a": large}
    with pytest.raises(InvalidProperty, match="limit of 1048576"):
        client[0].set_properties({"b": "x" * (1 << 20)})
    with pytest.raises(InvalidProperty, match="limit of 1048576"):
        client[0].set_properties({"b": "x" * 200_000})
    assert client[0].has_properties(["a", "b"]) == [True, False]


def test_a_remote_value_does_not_end_the_callers_script(client: enginery.Client) -> None:
    """A pulled value whose own code calls sys.exit() is a SerializationError of the caller."""
    client[0].execute(
        "class Exits:\n    def __reduce__(self): return exec, ('raise SystemExit(3)',)\nvalue = Exits()"
    )
    with pytest.raises(SerializationError, match="SystemExit: 3"):
        client[0]["value"]


def test_binary_output(client: enginery.Client) -> None:
    """Megabytes that are no text are shown byte by byte, and soon."""
    result = client[0].execute("import os\nfor _ in range(40): os.write(1, b'\\xff' * 100_000);")
    began = time.process_time()
    assert len(result.stdout) == 4 * 4_000_000
    assert time.process_time() - began < 3


def test_errors_arrive_as_they_were_raised(client: enginery.Client) -> None:
    """Original type with its chain in the text; types of the engine's own; exits; what cannot be pickled."""
    with pytest.raises(ValueError, match="outer") as caught:
        client[0].execute("try: 1/0\nexcept ZeroDivisionError as e: raise ValueError('outer') from e")
    remote = remote_of(caught.value)
    assert remote is not None
    assert "ZeroDivisionError" in remote.traceback
    assert [error.type_name for error in remote.errors] == ["ValueError", "ZeroDivisionError"]
    client[0].execute("class Stubborn(Exception):\n    def __reduce__(self): raise TypeError('no')")
    with pytest.raises(UnpickleableException, match="Stubborn: stubborn"):
        client[0].execute("raise Stubborn('stubborn')")
    with pytest.raises(RemoteError, match="SystemExit"):
        client[0].execute("import sys; sys.exit(3)")
    with pytest.raises(ExceptionGroup) as group:
        client[0].execute("raise ExceptionGroup('several', [ValueError(1), KeyError(2)])")
    assert not isinstance(group.value, CompositeError)
    assert len(group.value.exceptions) == 2
    assert client[0].execute("1").value == 1


def test_a_failure_clears_what_was_queued_behind_it(client: enginery.Client, tmp_path: Path) -> None:
    """Of the same client, on the same engine."""
    go = tmp_path / "go"
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.005)\n1/0"
    failing = client[0].execute(code, block=False)
    behind, elsewhere = client[0].execute("1", block=False), client[1].execute("1", block=False)
    assert elsewhere.result(10).value == 1
    while len(client[0].queue_status().queue) < 1:
        time.sleep(0.005)
    go.touch()
    assert isinstance(failing.exception(10), ZeroDivisionError)
    assert isinstance(behind.exception(10), QueueCleared)
    assert client[0].execute("2").value == 2


def test_interrupt_and_queue_answer_while_code_runs(client: enginery.Client) -> None:
    """A sleeping engine tells what it does and how far it is, and can be interrupted."""
    busy = client[0].execute(
        "import enginery, time; enginery.get_engine().progress(0.5, 'half'); time.sleep(60)", block=False
    )
    waiting = client[0].execute("1", block=False)
    deadline = time.monotonic() + 10
    while not ((status := client[0].queue_status()).pending and status.pending.progress_text):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert status.pending.operation_id == busy.operation_id
    assert (status.pending.method, status.pending.progress_fraction) == ("execute", 0.5)
    assert [call.operation_id for call in status.queue] == [waiting.operation_id]
    assert client[0].clear_queue() == 1
    assert client[0].interrupt("01020304-0506-8708-8000-000000000001") is None
    assert client[0].interrupt() == busy.operation_id
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        busy.result(10)
    assert isinstance(waiting.exception(10), QueueCleared)


def test_a_call_is_watched_and_stopped(client: enginery.Client) -> None:
    """Output is read while it runs; cancel keeps the namespace, a timeout is an error of its own."""
    client[0]["kept"] = 1
    operation = client[0].execute("print('begun', flush=True)\nwhile True: pass", block=False)
    stream = operation.events()
    text = ""
    while "\n" not in text:  # which is a write of its own
        text += next(event.text for event in stream if event.kind == "stdout")
    assert (operation.status, operation.stdout) == ("running", "begun\n")
    assert operation.cancel()
    with pytest.raises(OperationCancelled) as caught:
        operation.result(10)
    assert "while True" in str(caught.value.__cause__)
    assert [event.state for event in stream] == ["cancelled"]
    with pytest.raises(OperationTimedOut, match=r"ran for 0\.1 s"):
        client[0].execute("import time; time.sleep(60)", timeout=0.1)
    assert client[0]["kept"] == 1
    assert client.operation(operation.id).status == "cancelled"
    assert {info.state for info in client.operations(engine_id=0, state=["cancelled", "timed_out"])} == {
        "cancelled",
        "timed_out",
    }


def test_a_call_that_does_not_stop_costs_the_namespace(client: enginery.Client) -> None:
    """Its kernel is killed after two graces, unless the call said otherwise; the error says so."""
    client[0]["kept"] = 1
    deaf = "import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass"
    with pytest.raises(OperationTimedOut) as caught:
        client[0].execute(deaf, timeout=0.4, grace=0.1)  # it begins long before
    assert caught.value.namespace_lost
    with pytest.raises(NameError):
        client[0]["kept"]


def test_a_kernel_that_dies_is_named_and_replaced(client: enginery.Client) -> None:
    """The call that ran fails with signal and operation; the engine is back under its id, empty."""
    before = client.engines[0].incarnation
    client[0]["a"] = 1
    operation = client[0].apply(lambda: os.kill(os.getpid(), signal.SIGKILL), block=False)
    with pytest.raises(KernelDied, match=r"SIGKILL") as caught:
        operation.result(20)
    assert operation.operation_id in str(caught.value)
    assert caught.value.engine_id == 0
    assert client[0].keys() == ["id", "mpi"]
    deadline = time.monotonic() + 10
    while client.engines[0].incarnation == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_many_calls_at_once_from_a_coroutine(client: enginery.Client) -> None:
    """Hundreds of operations on a running loop, each with its own answer."""
    operations = [client[n % 2].apply(divmod, n, 7, block=False) for n in range(400)]
    assert await asyncio.gather(*operations) == [divmod(n, 7) for n in range(400)]
    with pytest.raises(CompositeError):
        await client[:].execute("1/0", block=False)


def test_kill_takes_an_engine_away(cluster: enginery.Cluster) -> None:
    """Last, since it does: it returns when the id is gone, and calls say which ids there are."""
    client = cluster.client
    view = client[1]
    view.kill()
    assert client.ids == [0]
    with pytest.raises(enginery.InvalidEngineID, match="there are: 0"):
        view.execute("1")
