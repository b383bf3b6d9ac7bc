"""Starting processes: options as the services take them, and what killed clusters leave."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from controller_service.config import parser
from engine_service.config import HostConfig, parse
from enginery._launch import LaunchOptions, temporary_state
from enginery._state_dir import StateDirectory, runtime_directory

if TYPE_CHECKING:
    from pathlib import Path


OF_BOTH = ("value_limit", "log_level", "log_format")
OF_CONTROLLER = (
    *OF_BOTH, "port", "bind", "advertise", "insecure", "lease", "save_ids", "waiting_limit", "journal",
    "journal_age", "journal_limit", "durability",
)  # fmt: skip
OF_HOST = (
    *OF_BOTH, "memory_limit", "output_limit", "queue_limit", "queue_bytes", "store_limit", "direct",
    "drain_grace", "orphan_timeout", "shell",
)  # fmt: skip


def parse_host(options: LaunchOptions) -> dict[str, Any]:
    config: HostConfig = parse(["--connection-file", "x", *options.host_arguments()])
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def test_the_services_take_every_option(tmp_path: Path) -> None:
    """What is set arrives, under the names of the services."""
    file = tmp_path / "start.py"
    file.touch()
    options = LaunchOptions(
        port=7, bind="::1", advertise="here", insecure=True, lease=1.5, save_ids=True, value_limit=10,
        waiting_limit=11, output_limit=12, queue_limit=13, queue_bytes=14, store_limit=15, direct=False,
        memory_limit=16, drain_grace=0.0, orphan_timeout=17.5, journal=False, journal_age=18.5,
        journal_limit=19, durability="power", properties={"a": {"b": [1]}}, exec_lines=["--x"],
        exec_files=[file], log_level="error", log_format="json", shell="ipython",
    )  # fmt: skip
    controller = vars(parser().parse_args(options.controller_arguments()))
    host = parse_host(options)
    said = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    assert {name: controller[name] for name in OF_CONTROLLER} == {name: said[name] for name in OF_CONTROLLER}
    assert {name: host[name] for name in OF_HOST} == {name: said[name] for name in OF_HOST}
    assert (host["exec_lines"], host["exec_files"]) == (("--x",), (file,))
    assert bytes(host["properties"]["a"].parts[0]) == b'{"b": [1]}'
    assert {*OF_CONTROLLER, *OF_HOST, "n", "exec_lines", "exec_files", "properties"} == set(said)
    left = [field.name for field in dataclasses.fields(options) if said[field.name] == field.default]
    assert left == ["n"]  # how many is the launcher's to say


def test_what_is_not_set_is_left_to_the_services() -> None:
    """There is no default of ours."""
    assert LaunchOptions().controller_arguments() == []
    assert LaunchOptions(n=2).host_arguments() == []


def test_abandoned_temporary_directories_are_removed() -> None:
    """Old ones without a controller go; new ones, and those that are held, stay."""
    old, new, held = (
        StateDirectory(runtime_directory() / f"temporary-{name}") for name in ("old", "new", "held")
    )
    for state in (old, new, held):
        state.prepare()
    held.lock()
    for state in (old, held):
        os.utime(state.path, (0, 0))
    try:
        made = temporary_state()
        assert not old.path.exists()
        assert new.path.exists()
        assert held.path.exists()
        assert not made.path.exists()
    finally:
        held.unlock()
