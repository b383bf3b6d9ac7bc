"""The program: its options, its signals and its exit codes, over real kernels."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from engine_service.app import Host
from engine_service.config import HostConfig, parse
from engine_service.kernel_process import KernelExited
from enginery import _connection_file, _status
from enginery.v1 import engine_pb2, frame_pb2
from tests.e2e import services
from tests.host.fakes import running_controller, until

if TYPE_CHECKING:
    from pathlib import Path


def test_options(tmp_path: Path) -> None:
    """What is not said has a default; property values are JSON, or else text."""
    script = tmp_path / "start.py"
    script.write_text("a = 1\n")
    config = parse(
        [
            "-n4",
            "--state-dir",
            str(tmp_path),
            "--property",
            "gpu=true",
            "--property=name=big one",
            "--property=x=a=b",
            "--exec-line=import math",
            f"--exec-file={script}",
            "--no-direct",
            "--memory-limit=2G",
            "--output-limit=1M",
            "--drain-grace=0",
            "--orphan-timeout=600",
            "--log-format=json",
        ]
    )
    assert (config.n, config.connection_file) == (4, tmp_path / "engine.json")
    values = {key: json.loads(bytes(value.parts[0])) for key, value in config.properties.items()}
    assert values == {"gpu": True, "name": "big one", "x": "a=b"}
    assert config.exec_lines == ("import math",)
    assert config.exec_files == (script,)
    assert not config.direct
    assert (config.memory_limit, config.output_limit, config.value_limit) == (2 << 30, 1 << 20, 4 << 30)
    assert (config.drain_grace, config.orphan_timeout, config.log_format) == (0.0, 600.0, "json")
    plain = parse(["--state-dir", str(tmp_path)])
    assert (plain.memory_limit, plain.drain_grace, plain.orphan_timeout) == (None, 5.0, None)
    assert parse(["--state-dir", str(tmp_path), "--mpi"]).drain_grace == 0.0  # the job's launcher does not wait


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n0"],
        ["--property", "novalue"],
        ["--exec-file", "/no/such/file"],
        ["--engine-id=1", "-n2"],
        ["--mpi", "-n2"],
        ["--mpi", "--engine-id=1"],
        ["--shell", "bash"],
        ["--value-limit", "x"],
        ["--memory-limit", "0"],
        ["--drain-grace", "nan"],
        ["--orphan-timeout", "-1"],
        ["--orphan-timeout", "x"],
        ["--port", "70000"],
        ["--log-format", "xml"],
        ["--connection-file=a", "--state-dir=b"],
    ],
)
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a line that says what is wrong."""
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "error:" in said
    assert "invalid _" not in said  # as argparse calls our functions


async def test_a_host_serves_its_engines_and_says_goodbye(tmp_path: Path) -> None:
    """Start, register with launch properties, stop: kernels, port and link are gone."""
    async with running_controller() as (controller, info):
        path = tmp_path / "engine.json"
        config = HostConfig(connection_file=path, n=2, properties=parse(["--property=a=1"]).properties)
        host = Host(config)
        await host.start()
        _connection_file.write(path, info)  # the controller comes later
        stream = await controller.stream()
        hellos = (await stream.receive_until(lambda message: len(message.hellos) == 2)).hellos
        assert all(hello.properties["a"].json.number_value == 1 for hello in hellos)
        assert hellos[0].direct_addresses == [f"127.0.0.1:{host.direct_port}"]
        assert "CERTIFICATE REQUEST" in hellos[0].certificate_request
        for hello in hellos:
            stream.welcome(hello.slot, hello.slot)
        stopping = asyncio.create_task(host.stop("the test ends"))
        merged = await stream.receive_until(lambda message: len(message.goodbyes) == 2)
        assert {goodbye.reason for goodbye in merged.goodbyes} == {"the test ends"}
        stream.end()
        await stopping
        await host.wait_stopped()


async def test_a_kernel_that_does_not_come_up_fails_the_start(tmp_path: Path) -> None:
    """An exec line that raises is a failed start, with its traceback; no process stays."""
    config = HostConfig(connection_file=tmp_path / "engine.json", n=2, exec_lines=("1/0",))
    with pytest.raises(KernelExited, match="ZeroDivisionError"):
        await Host(config).start()


async def test_a_host_that_drains_lets_what_runs_finish(tmp_path: Path) -> None:
    """Its answer and a goodbye reach the controller; whoever is in a hurry cuts the rest short."""
    async with running_controller() as (controller, info):
        path = tmp_path / "engine.json"
        _connection_file.write(path, info)
        host = Host(HostConfig(connection_file=path, n=2, direct=False))
        await host.start()
        stream = await controller.stream()
        await stream.receive_until(lambda message: len(message.hellos) == 2)
        for slot in range(2):
            stream.welcome(slot, slot)
        go = tmp_path / "go"
        short = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.005)"
        finishing = stream.call(engine_pb2.ExecuteRequest(code=short), engine_id=0)
        stuck = stream.call(engine_pb2.ExecuteRequest(code="import time; time.sleep(99)"), engine_id=1)
        await until(lambda: all(engine.queue.running for engine in host.engines))
        stopping = asyncio.create_task(host.stop("SIGTERM", grace=60.0))
        go.touch()
        first = await stream.receive_until(lambda message: bool(message.goodbyes))
        assert [(reply.call_id, reply.outcome) for reply in first.replies] == [
            (finishing, frame_pb2.OUTCOME_OK)
        ]
        assert not host.engines[1].is_stopping
        host.hurry("SIGINT")
        last = await stream.receive_until(lambda message: bool(message.goodbyes))
        assert [reply.call_id for reply in last.replies] == [stuck]
        assert _status.from_bytes(last.replies[0].error).reason == "ENGINE_STOPPED"
        stream.end()
        await stopping


@pytest.mark.parametrize(
    ("number", "code", "log_format"), [(signal.SIGINT, 130, "human"), (signal.SIGTERM, 143, "json")]
)
def test_signals_end_the_program_cleanly(
    tmp_path: Path, number: signal.Signals, code: int, log_format: str
) -> None:
    """While it waits for a controller: kernels gone, no traceback, the exit code of the signal, at once."""
    command = [sys.executable, "-m", "engine_service", "--connection-file", str(tmp_path / "engine.json")]
    command.append(f"--log-format={log_format}")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "not connected" in line:
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(10) == code
    assert "Traceback" not in "".join(lines) + rest
    assert number.name in rest
    assert "engine -1" not in rest
    assert all(line.startswith("{") == (log_format == "json") for line in lines + rest.splitlines())


def test_a_signal_ends_a_start(tmp_path: Path) -> None:
    """What runs before a kernel is ready may take long: nobody waits for that to stop, and no kernel stays."""
    begun = tmp_path / "begun"
    line = f"import time; open({str(begun)!r}, 'w').close(); time.sleep(99)"
    command = [sys.executable, "-m", "engine_service", f"--exec-line={line}", f"--state-dir={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        services.until(begun.exists, "the kernel's first line")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 143
    assert said.endswith("stopping: SIGTERM\n")


def test_a_failed_start_is_exit_code_1(tmp_path: Path) -> None:
    """With the reason on stderr: what the user's line raised, without frames of host or kernel."""
    command = [sys.executable, "-m", "engine_service", "--exec-line=1/0", f"--state-dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "the host does not start" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "service.py" not in done.stderr
