"""Calls that go to the hosts of their engines, past the controller: the same results, whatever breaks."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

import enginery
from enginery._reasons import DeliveryError
from enginery.v1 import cluster_pb2
from tests.e2e.cutting_relay import CuttingRelay
from tests.e2e.services import controller, host, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def cluster(state: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], enginery.Client]]:
    """Give a controller with a host of two engines, and a client."""
    with ExitStack() as stack:
        process = stack.enter_context(controller(state))
        stack.enter_context(host(state, 2, *options))
        client = stack.enter_context(enginery.connect(state))
        client.wait_for_engines(2)
        yield process, client


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def goes_directly(client: enginery.Client, engine_id: int = 0) -> bool:
    """Call an engine, and return whether its calls go to its host."""
    client[engine_id].apply(abs, 1)
    return client._link.session.ways.is_direct(engine_id)


def what_runs(client: enginery.Client, engine_id: int = 0) -> str:
    """Return the operation that runs on an engine, as the controller knows it."""

    async def ask() -> str:
        stub, metadata = await client._link._cluster()
        page = await stub.ListEngines(cluster_pb2.ListEnginesRequest(), metadata=metadata)
        return str(page.engines[engine_id].operation_id)

    return client._link.run(ask())


def direct_address(client: enginery.Client, engine_id: int = 0) -> str:
    """Return the address of an engine's host."""
    engines = {engine.engine_id: engine for engine in client._link.roster.reachable()}
    return engines[engine_id].direct_addresses[0]


def test_results_are_the_same_and_the_controller_is_not_asked(tmp_path: Path) -> None:
    """Output, exceptions, arrays, large values, many engines, properties; also while the controller hangs."""
    with cluster(tmp_path / "state") as (process, client):
        for engine_id in (0, 1):
            until(partial(goes_directly, client, engine_id), "the direct path")
        result = client[0].execute("print(1); 6 * 7")
        assert (result.stdout, result.value) == ("1\n", 42)
        with pytest.raises(ZeroDivisionError):
            client[0].execute("1 / 0")
        client[:]["array"] = np.arange(400_000.0)
        assert all((back == np.arange(400_000.0)).all() for back in client[:]["array"])
        client[1].set_properties({"color": "blue"})
        assert client.submit("id.__int__", where={"color": "blue"}).result(5) == 1
        operation = client[0].execute("print('followed'); 7", block=False)
        assert operation.result(5).value == 7
        assert operation.stdout == "followed\n"
        assert client.operations(engine_id=0)[0].operation_id == operation.operation_id
        client[0].push({"go_on": str(tmp_path / "go-on")})
        busy = client[0].execute(
            "import os, time\nwhile not os.path.exists(go_on): time.sleep(0.01)", block=False
        )
        until(lambda: what_runs(client) == busy.operation_id, "the controller to hear of it")
        tasks = [client.submit("id.__int__") for _ in range(4)]
        assert [task.result(5) for task in tasks] == [1, 1, 1, 1]  # none is placed behind what goes on
        (tmp_path / "go-on").touch()
        busy.result(5)
        process.send_signal(signal.SIGSTOP)
        try:
            assert client[:].apply(abs, -3) == [3, 3]
            waiting = client[0].execute("import time; time.sleep(30)", block=False)
            assert waiting.cancel()
        finally:
            process.send_signal(signal.SIGCONT)


def test_direct_calls_outlive_a_controller(tmp_path: Path) -> None:
    """Killed and started again: what runs is answered meanwhile, engines keep ids and namespaces."""
    state = tmp_path / "state"
    with ExitStack() as stack:
        process = stack.enter_context(controller(state))
        stack.enter_context(host(state, 1))
        client = stack.enter_context(enginery.connect(state))
        client.wait_for_engines(1)
        until(lambda: goes_directly(client), "the direct path")
        client[0]["kept"] = "kept"
        process.kill()
        process.wait()
        until(lambda: not client.statistics()["connected"], "the client to see it")
        assert client[0]["kept"] == "kept"
        began = time.monotonic()
        client[0].set_properties({"told": "later"})
        assert time.monotonic() - began < 20  # not the minute for which calls wait
        stack.enter_context(controller(state))
        until(lambda: client.statistics()["connected"], "the client to connect")
        assert client[0]["kept"] == "kept"
        assert client.submit("kept.upper", where={"told": "later"}).result(20) == "KEPT"


def test_an_address_that_leads_to_another_host_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The port of one host is told as that of another: its engines have the same cluster's certificate. Looking
    there does not end the path to the one that has it."""
    state = tmp_path / "state"
    with cluster(state) as (_, client), CuttingRelay(direct_address(client)) as relay, ExitStack() as stack:
        stack.enter_context(host(state, 1, "--advertise", relay.address))
        client.wait_for_engines(3)
        assert direct_address(client, 2) == relay.address
        until(lambda: goes_directly(client, 0), "the direct path of another engine")
        path = client._link.session.ways.of(0)
        with caplog.at_level("DEBUG", "enginery"):
            assert client[2].apply(abs, -1) == 1
            until(lambda: f"no direct path to {relay.address}" in caplog.text, "the client to look there")
        assert relay.count()["up"]
        assert not goes_directly(client, 2)
        assert client[2].execute("id").value == 2
        assert goes_directly(client, 0)
        assert client._link.session.ways.of(0) is path


def test_a_direct_path_that_breaks_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Calls that run, wait, and are made then go by the controller, in order, and each runs once."""
    state, ran, go_on = (tmp_path / name for name in ("state", "ran", "go-on"))
    ran.touch()
    with ExitStack() as stack:
        stack.enter_context(controller(state))
        port = free_port()
        relay = stack.enter_context(CuttingRelay(f"127.0.0.1:{port}"))
        stack.enter_context(host(state, 1, "--port", str(port), "--advertise", relay.address))
        client = stack.enter_context(enginery.connect(state))
        client.wait_for_engines(1)
        until(lambda: goes_directly(client), "the direct path")
        client[0].push({"ran": str(ran), "go_on": str(go_on)})
        client[0].execute("import os, time; file = open(ran, 'a', 1)")
        wait = "print(1, file=file)\nwhile not os.path.exists(go_on): time.sleep(0.01)\nprint('one'); 1"
        calls = [client[0].execute(wait, block=False)]
        calls += [client[0].execute(f"print({n}, file=file); {n}", block=False) for n in range(2, 20)]
        until(lambda: ran.read_text(), "the first call to run")
        relay.cut_after("up", 1)
        calls += [client[0].execute(f"print({n}, file=file); {n}", block=False) for n in range(20, 40)]
        until(lambda: not client.statistics()["direct"], "the path to be left")
        go_on.touch()
        assert [call.result(10).value for call in calls] == list(range(1, 40))
        assert calls[0].stdout == "one\n"
        assert ran.read_text().split() == [str(n) for n in range(1, 40)]
        until(lambda: goes_directly(client), "the direct path again")


def test_values_that_do_not_move_directly_have_calls_leave_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks the one has broken the other: the call would wait for that anew."""
    with cluster(tmp_path / "state") as (_, client):
        until(lambda: goes_directly(client), "the direct path")
        (there,) = client._link._direct._hosts.values()
        assert client._link.info is not None
        assert there.transfers is not None
        assert client._link.info.token not in str(there.transfers._metadata)  # which a host never learns

        async def breaks(*_: object, **__: object) -> None:
            raise DeliveryError("CONTROLLER_LOST", cause="the way loses what is large")

        monkeypatch.setattr(there.transfers, "upload", breaks)
        path = there.path
        client[0]["large"] = np.arange(400_000.0)
        until(lambda: client._link.session.ways.direct(0) is not path, "the path to be left")
        assert client[0]["large"].sum() == np.arange(400_000.0).sum()


def test_without_direct_paths(tmp_path: Path) -> None:
    """A client may leave all to the controller; so does one whose engines' host has no port."""
    with cluster(tmp_path / "state") as (_, _), enginery.connect(tmp_path / "state", direct=False) as client:
        for _ in range(5):
            assert not goes_directly(client)
        assert not client._link._direct._hosts
