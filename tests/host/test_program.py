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
from enginery import _connection_file
from tests.host.fakes import running_controller

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
        ]
    )
    assert (config.n, config.connection_file) == (4, tmp_path / "engine.json")
    values = {key: json.loads(bytes(value.parts[0])) for key, value in config.properties.items()}
    assert values == {"gpu": True, "name": "big one", "x": "a=b"}
    assert config.exec_lines == ("import math",)
    assert config.exec_files == (script,)
    assert not config.direct


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n0"],
        ["--property", "novalue"],
        ["--exec-file", "/no/such/file"],
        ["--engine-id=1", "-n2"],
        ["--value-limit", "x"],
        ["--connection-file=a", "--state-dir=b"],
    ],
)
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a line that says what is wrong."""
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_program_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """While it waits for a controller: kernels gone, no traceback, the exit code of the signal."""
    command = [sys.executable, "-m", "engine_service", "--connection-file", str(tmp_path / "engine.json")]
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


def test_a_failed_start_is_exit_code_1(tmp_path: Path) -> None:
    """With the reason on stderr: what the user's line raised, without frames of host or kernel."""
    command = [sys.executable, "-m", "engine_service", "--exec-line=1/0", f"--state-dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "the host does not start" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "service.py" not in done.stderr
