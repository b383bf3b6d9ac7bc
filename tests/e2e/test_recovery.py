"""Nothing is lost: controllers, hosts, kernels and clients are killed, and calls are answered all the same."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

import enginery
from enginery import _ids, _methods
from enginery.v1 import engine_pb2, engine_pb2_grpc, operation_pb2
from tests.e2e.services import PATIENCE, controller, host, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNTED = """
import os, time
with open({path!r}, "a") as file:
    file.write({name!r} + "\\n")
print("out of", {name!r}, flush=True)
time.sleep({seconds})
{name!r}
"""
SUCCEEDED = operation_pb2.OPERATION_STATE_SUCCEEDED


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state directory that is not there yet."""
    return tmp_path / "state"


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Return the file in which operations write down that they run."""
    path = tmp_path / "ran"
    path.touch()
    return path


def counted(ran: Path, name: str, seconds: float = 0) -> str:
    """Return code that writes down its name, prints, sleeps, and has its name as its value."""
    return COUNTED.format(path=str(ran), name=name, seconds=seconds)


def journaled(state: Path, operation_id: str) -> bool:
    """Return whether the journal has the result of an operation on disk."""
    with closing(sqlite3.connect(f"file:{state / 'journal' / 'journal.db'}?mode=ro", uri=True)) as journal:
        rows = journal.execute("SELECT 1 FROM results WHERE operation_id = ?", (_ids.parse(operation_id),))
        return rows.fetchone() is not None


@contextmanager
def stub(state: Path) -> Iterator[tuple[engine_pb2_grpc.EngineServiceStub, tuple[tuple[str, str], ...]]]:
    """Call as any language does: one channel over the socket, no library of ours."""
    with grpc.insecure_channel(f"unix:{state / 'client.sock'}") as channel:
        yield engine_pb2_grpc.EngineServiceStub(channel), ((_methods.ENGINE_ID_KEY, "0"),)


def test_calls_survive_kill_9_of_the_controller(state: Path, ran: Path) -> None:
    """What ran, what waited and what was printed are all there after the controller is back; nobody noticed."""
    names = [f"call {number}" for number in range(4)]
    with host(state, 2):
        with controller(state) as first:
            client = enginery.connect(state / "client.json")
            client.wait_for_engines(2, timeout=PATIENCE)
            view = client[0]
            view["kept"] = 41
            incarnation = client.engines[0].incarnation
            calls = [view.execute(counted(ran, name, 0.4), block=False) for name in names]
            other = client[1].apply(sum, range(10), block=False)
            both = client[:].execute(counted(ran, "both"), block=False)  # as one frame, then and later
            until(lambda: names[0] in ran.read_text(), "the first to run")
            first.kill()
        with controller(state), client:
            assert [call.result(PATIENCE).value for call in calls] == names
            assert [call.result().stdout for call in calls] == [f"out of {name}\n" for name in names]
            assert other.result(PATIENCE) == 45
            assert [result.value for result in both.result(PATIENCE)] == ["both", "both"]
            assert sorted(ran.read_text().splitlines()) == ["both", "both", *names]
            assert view.execute("kept + 1").value == 42
            assert client.engines[0].incarnation == incarnation


def test_calls_made_while_there_is_no_controller(state: Path, ran: Path) -> None:
    """They wait for the next one and run once, in order."""
    names = [f"call {number}" for number in range(3)]
    with host(state):
        with controller(state) as first:
            client = enginery.connect(state / "client.json")
            client.wait_for_engines(1, timeout=PATIENCE)
            client[0].execute("")  # the engine has heard that it is welcome
            first.kill()
        calls = [client[0].execute(counted(ran, name), block=False) for name in names]
        with controller(state), client:
            assert [call.result(PATIENCE).value for call in calls] == names
    assert ran.read_text().splitlines() == names


def test_any_language_retries_by_operation_id(state: Path, ran: Path) -> None:
    """A unary call whose controller dies fails; the same call again under the same id waits for the first."""
    operation_id = _ids.show(_ids.OperationIds().mint())
    request = engine_pb2.ExecuteRequest(code=counted(ran, "once", 0.5))
    with host(state):
        with controller(state) as first, stub(state) as (engine, metadata):
            with enginery.connect(state / "client.json") as client:
                client.wait_for_engines(1, timeout=PATIENCE)
            named = (*metadata, (_methods.OPERATION_ID_KEY, operation_id))
            call = engine.Execute.future(request, metadata=named, wait_for_ready=True, timeout=PATIENCE)
            until(lambda: ran.read_text() or call.done(), "it to run")
            first.kill()
            with pytest.raises(grpc.RpcError):
                call.result(timeout=PATIENCE)
        with controller(state), stub(state) as (engine, metadata):
            answer = engine.Execute(request, metadata=named, wait_for_ready=True, timeout=PATIENCE)
            assert answer.result.text == "'once'"
            assert answer.result.stdout == "out of once\n"
    assert ran.read_text().splitlines() == ["once"]


def test_a_result_outlives_its_engine_and_its_controller(state: Path) -> None:
    """The journal has the answer after host and controller are gone, for any client, by its id."""
    with host(state) as engine_host, controller(state) as first:
        with enginery.connect(state / "client.json") as client:
            client.wait_for_engines(1, timeout=PATIENCE)
            operation = client[0].execute("print('from beyond'); 6 * 7", block=False)
            assert operation.result(PATIENCE).value == 42
            until(lambda: journaled(state, operation.id), "the result to be in the journal")  # behind the reply
        engine_host.kill()
        first.kill()
    with controller(state), enginery.connect(state / "client.json") as client:
        again = client.operation(operation.id)
        assert again.status == "succeeded"
        assert again.result(PATIENCE).value == 42
        assert again.result().stdout == "from beyond\n"
        with stub(state) as (engine, _):
            request = operation_pb2.GetOperationRequest(operation_id=operation.id)
            answer = engine.GetOperation(request, wait_for_ready=True, timeout=PATIENCE)
            assert answer.operation.state == SUCCEEDED


def test_a_killed_client_loses_nothing(state: Path, ran: Path) -> None:
    """Another process reads the output and the result of what it began, by the id that it wrote down."""
    script = (
        "import sys, enginery\n"
        "client = enginery.connect(sys.argv[1])\n"
        "operation = client[0].execute(sys.argv[2], block=False)\n"
        "print(operation.id, flush=True)\n"
        "operation.result()\n"
    )
    code = counted(ran, "orphan", 0.5)
    with controller(state), host(state), enginery.connect(state / "client.json") as client:
        client.wait_for_engines(1, timeout=PATIENCE)
        with subprocess.Popen(
            [sys.executable, "-c", script, str(state / "client.json"), code], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            operation_id = process.stdout.readline().strip()
            until(lambda: ran.read_text(), "it to run")
            process.kill()
        operation = client.operation(operation_id)
        assert operation_id in [info.id for info in client.operations()]
        assert (
            "".join(event.text for event in operation.events() if event.kind == "stdout") == "out of orphan\n"
        )
        assert operation.result(PATIENCE).value == "orphan"
    assert ran.read_text().splitlines() == ["orphan"]


def test_an_engine_lost_with_its_host_is_said_so(state: Path) -> None:
    """The calls of a host that was killed end as lost when its lease does, and stay so in the journal."""
    with (
        controller(state, "--lease", "0.5"),
        host(state) as engine_host,
        enginery.connect(state / "client.json") as client,
    ):
        client.wait_for_engines(1, timeout=PATIENCE)
        operation = client[0].execute("while True: pass", block=False)
        until(lambda: operation.status == "running", "it to run")
        engine_host.kill()
        with pytest.raises(enginery.EngineLost):
            operation.result(PATIENCE)
        assert client.operation(operation.id).status == "lost"


def test_ctrl_c_cancels_the_call_and_keeps_the_engine(state: Path) -> None:
    """SIGINT in a client that waits stops its call on the engine; the namespace stays, the queue is free."""
    script = (
        "import sys, enginery\n"
        "view = enginery.connect(sys.argv[1])[0]\n"
        "view['kept'] = 1\n"
        "print('waiting', flush=True)\n"
        "view.execute('while True: pass')\n"
    )
    with controller(state), host(state), enginery.connect(state / "client.json") as client:
        client.wait_for_engines(1, timeout=PATIENCE)
        with subprocess.Popen(
            [sys.executable, "-c", script, str(state / "client.json")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            until(lambda: getattr(client[0].queue_status().pending, "method", "") == "execute", "the loop")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode != 0
            assert "KeyboardInterrupt" in said
        assert client[0].queue_status().pending is None
        assert client[0]["kept"] == 1
        assert [info.state for info in client.operations() if info.method == "execute"] == ["cancelled"]


def test_memory_limit_names_the_culprit(state: Path) -> None:
    """A kernel over its limit is killed; the error says which call, which size and which limit; it is back."""
    with (
        controller(state),
        host(state, 1, "--memory-limit", "200M"),
        enginery.connect(state / "client.json") as client,
    ):
        client.wait_for_engines(1, timeout=PATIENCE)
        hog = "data = []\nwhile True: data.append(bytearray(b'x') * (8 << 20))"
        with pytest.raises(enginery.MemoryLimitExceeded) as caught:
            client[0].execute(hog)
        text = str(caught.value)
        assert "execute" in text
        assert str(200 << 20) in text or "200" in text
        assert caught.value.operation_id in text
        assert client[0].execute("1 + 1").value == 2


def test_a_full_queue_holds_callers_back(state: Path) -> None:
    """Calls beyond the queue's limit wait at the client and run in order; none fails, none is lost."""
    with (
        controller(state),
        host(state, 1, "--queue-limit", "5"),
        enginery.connect(state / "client.json") as client,
    ):
        client.wait_for_engines(1, timeout=PATIENCE)
        view = client[0]
        view["order"] = []
        calls = [
            view.execute(f"import time; time.sleep(0.01); order.append({number})", block=False)
            for number in range(40)
        ]
        for call in calls:
            call.result(PATIENCE)
        assert view["order"] == list(range(40))


def test_a_host_that_ended_while_there_was_no_controller_is_not_waited_for(state: Path) -> None:
    """Nobody heard it say goodbye; the next controller sees it by its lock, and holds no engine for a lease."""
    with controller(state) as first, host(state, 1) as process:
        with enginery.connect(state) as client:
            client.wait_for_engines(1)
        first.kill()
        first.wait(PATIENCE)
        process.terminate()
        process.wait(PATIENCE)
    with controller(state), enginery.connect(state) as client:
        assert client.ids == []
