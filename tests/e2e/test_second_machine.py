"""Other machines: a host and a client with one file each, far from the controller, and proxies to ignore."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e import far
from tests.e2e.services import PATIENCE, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

DELAY, LOSS = 0.005, 0.02  # seconds each way, and the part of all packets each way
CONTROLLER, HOST, CLIENT = "10.98.0.1", "10.98.1.2", "10.98.2.2"
NAME = "controller.test"
SILENT = "10.98.9.9"  # a name server from which nothing comes
PROXY = "http://127.0.0.1:1"  # nobody listens there
PROXIES = {
    **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), PROXY),
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), PROXY),
    "no_proxy": "elsewhere.test",
}
PLAIN_CALL = """
import grpc
def code_of_plain_call(address):
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/any/method")(b"", timeout=5)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
"""
DIRECT_CALL = """
import dataclasses
from enginery import _certificates, _connection_file
from enginery._channel import open_channel
from enginery.v1 import cluster_pb2, cluster_pb2_grpc, engine_pb2, engine_pb2_grpc
import asyncio
async def call_directly(path, code):
    info = _connection_file.read(path, "client")
    async with open_channel(info) as channel:
        cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
        engines = (await cluster.ListEngines(cluster_pb2.ListEnginesRequest(), metadata=info.metadata)).engines
    [address] = engines[1].direct_addresses
    name = _certificates.host_name(info.cluster_id)
    metadata = (*info.metadata, ("enginery-engine-id", "1"))
    async with open_channel(dataclasses.replace(info, address=address, server_name=name)) as channel:
        engine = engine_pb2_grpc.EngineServiceStub(channel)
        answer = await engine.Execute(engine_pb2.ExecuteRequest(code=code), metadata=metadata, timeout=10)
    return address.rpartition(":")[0], answer.result.text
"""


@dataclass
class Cluster:
    """A controller, a host and a client, each on a machine of its own."""

    state: Path
    host: far.Machine
    client: far.Machine
    links: tuple[far.Link, far.Link]
    programs: tuple[subprocess.Popen[str], ...]
    """Controller and host."""
    script: far.Script
    """A program on the client's machine, with a `client`."""

    def set_loss(self, loss: float) -> list[tuple[int, int]]:
        """Lose that part of all packets of both links; return how many each has carried and lost."""
        return [link.set_loss(loss) for link in self.links]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give the cluster: the host's own port is open to others, and the controller is known by a name."""
    folder = tmp_path_factory.mktemp("far")
    state = folder / "state"
    state.mkdir(mode=0o700)
    with ExitStack() as stack:
        network = stack.enter_context(far.network(folder))
        names = {NAME: CONTROLLER}
        controller = network.machine("controller", hosts=names, name_server=SILENT)
        host = network.machine("host", state, hosts=names, name_server=SILENT)
        client = network.machine("client", state, host.folder, hosts=names, name_server=SILENT)
        controller.run("ip", "address", "add", f"{CONTROLLER}/32", "dev", "lo")
        controller.run("ip", "route", "add", "blackhole", SILENT)
        controller.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        links = (
            network.link(controller, "10.98.1.1", host, HOST, DELAY, LOSS),
            network.link(controller, "10.98.2.1", client, CLIENT, DELAY, LOSS),
        )
        host.run("ip", "route", "add", "default", "via", "10.98.1.1")
        client.run("ip", "route", "add", "default", "via", "10.98.2.1")
        options = ["--state-dir", str(state), "--bind", "0.0.0.0", "--advertise", NAME, "--life-line"]
        process = stack.enter_context(controller.program("-m", "controller_service", *options))
        until(lambda: (state / "client.json").exists() or process.poll() is not None, "the controller")
        for machine, file in ((host, "engine.json"), (client, "client.json")):
            shutil.copy2(state / file, machine.folder)
        file = str(host.folder / "engine.json")
        options = ["-n", "2", "--connection-file", file, "--bind", "0.0.0.0", "--life-line"]
        programs = process, stack.enter_context(host.program("-m", "engine_service", *options, **PROXIES))
        script = stack.enter_context(far.script(client, **PROXIES))
        script.run("import enginery, os")
        script.run(f"client = enginery.connect({str(client.folder / 'client.json')!r})")
        script.run(f"client.wait_for_engines(2, timeout={PATIENCE})")
        yield Cluster(state, host, client, links, programs, script)


def test_calls_from_another_machine_to_a_third(cluster: Cluster) -> None:
    """Output, exceptions, arrays, tasks: as on one machine, though packets are late or lost."""
    script = cluster.script
    assert script.value("client.ids") == [0, 1]
    script.run("result = client[0].execute('print(1); 6 * 7')")
    assert script.value("[result.stdout, result.value]") == ["1\n", 42]
    script.run("try: client[0].execute('1 / 0')\nexcept ZeroDivisionError as error: caught = str(error)")
    assert script.value("caught") == "division by zero"
    script.run("import numpy; sent = numpy.arange(20_000.0); client[:]['array'] = sent")
    assert script.value("[bool((sent == back).all()) for back in client[:]['array']]") == [True, True]
    assert script.value("sum(client.map(abs, range(-100, 0)))") == 5050
    for carried, lost in cluster.set_loss(LOSS):
        assert carried > lost > 0  # the links are what they are said to be


def test_a_machine_has_one_file(cluster: Cluster) -> None:
    """Neither sees the state directory; the host has `engine.json` alone, the client `client.json` alone."""
    script = cluster.script
    assert script.value(f"[os.listdir({str(cluster.state)!r}), os.listdir({str(cluster.host.folder)!r})]") == [
        [],
        [],
    ]
    assert script.value(f"client[0].apply(os.listdir, {str(cluster.state)!r})") == []
    assert [path.name for path in cluster.client.folder.glob("*.json")] == ["client.json"]
    assert [path.name for path in cluster.host.folder.glob("*.json")] == ["engine.json"]


def test_proxies_change_nothing(cluster: Cluster) -> None:
    """Host and client have a proxy in their environment that nobody serves: what obeys it fails; not ours."""
    script = cluster.script
    assert script.value("[os.environ['https_proxy'], os.environ['no_proxy']]") == [PROXY, "elsewhere.test"]
    assert script.value("client[0].apply(os.getenv, 'https_proxy')") == PROXY  # user code has what the user set
    script.run(PLAIN_CALL)
    assert "127.0.0.1:1" in script.value("code_of_plain_call('controller.test:1')")
    path = str(cluster.client.folder / "client.json")
    script.run("from enginery import _connection_file, _diagnose")
    assert script.value(f"_diagnose.find_problem(_connection_file.read({path!r}, 'client'))") is None


def test_the_address_in_a_copy_may_be_changed(cluster: Cluster) -> None:
    """To any other that leads to the controller, as a tunnel does: TLS goes by what is in the file."""
    copied = json.loads((cluster.client.folder / "client.json").read_text())
    path = cluster.client.folder / "tunnel.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({**copied, "address": copied["address"].replace(NAME, "10.98.2.1")}))
    assert cluster.script.value(f"enginery.connect({str(path)!r}).ids") == [0, 1]
    path.unlink()


def test_the_hosts_own_port_is_reached_from_elsewhere(cluster: Cluster) -> None:
    """With `--bind 0.0.0.0` alone, clients are told the address by which the host reaches the controller."""
    cluster.script.run(DIRECT_CALL)
    path = str(cluster.client.folder / "client.json")
    assert cluster.script.value(f"asyncio.run(call_directly({path!r}, 'id + 41'))") == [HOST, "42"]


@pytest.mark.parametrize("way", ["direct", "relayed"])
def test_reconnects_keep_ids_and_namespaces(cluster: Cluster, way: str) -> None:
    """Both links are cut and all connections of host and client break; a call runs, one waits, one is made.

    So it is whether calls go to the host itself or by the controller.
    """
    script, path = cluster.script, str(cluster.client.folder / "client.json")
    script.run(f"caller = enginery.connect({path!r}, direct={way == 'direct'})")
    is_direct = "caller[0].apply(abs, 1) and caller._link.session.ways.is_direct(0)"
    until(lambda: script.value(is_direct) is (way == "direct"), "the direct path")
    ran, go_on = cluster.host.folder / f"ran-{way}", cluster.host.folder / f"go-on-{way}"
    script.run(f"caller[0].push(dict(kept='kept', ran={str(ran)!r}, go_on={str(go_on)!r}))")
    script.run("incarnations = [caller.engines[id].incarnation for id in caller.ids]")
    script.run("caller[0].execute('import os, time; file = open(ran, \"a\", 1)')")
    wait = "print(1, file=file)\nwhile not os.path.exists(go_on): time.sleep(0.01)\nprint('one'); 1"
    script.run(f"first = caller[0].execute({wait!r}, block=False)")
    script.run("second = caller[0].execute('print(2, file=file); 2', block=False)")
    until(lambda: ran.exists() and ran.read_text(), "the first call to run")
    until(lambda: script.value("len(caller[0].queue_status().queue)") == 1, "the second call to wait")
    cluster.set_loss(1.0)
    for machine in (cluster.host, cluster.client):
        machine.lose_connections()
    go_on.touch()
    script.run("third = caller[0].execute('print(3, file=file); 3', block=False)")
    until(lambda: ran.read_text() == "1\n2\n", "the second call to run, though nobody hears of it")
    assert not script.value("first.done() or second.done() or third.done()")
    cluster.set_loss(LOSS)
    assert script.value("[call.result(20).value for call in (first, second, third)]") == [1, 2, 3]
    assert script.value("first.stdout") == "one\n"
    assert ran.read_text() == "1\n2\n3\n"
    assert script.value("[caller.ids, caller[0]['kept']]") == [[0, 1], "kept"]
    assert script.value("[caller.engines[id].incarnation for id in caller.ids] == incarnations")
    script.run("caller.close()")


def test_down_from_another_machine(cluster: Cluster) -> None:
    """`client.json` is all that it needs; it ends controller and host, and leaves the file."""
    folder = str(cluster.client.folder)
    down = cluster.client.program("-m", "enginery", "down", "--state-dir", folder)
    with down as process:
        assert f"the controller at {NAME}:" in process.communicate(timeout=PATIENCE)[0]
    assert [process.wait(PATIENCE) for process in cluster.programs] == [0, 0]
    assert (cluster.client.folder / "client.json").exists()
    assert (cluster.state / "cluster.json").exists()
