"""Starting processes: options as the services take them, and what killed clusters leave."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from controller_service.config import parser
from engine_service.config import parse
from enginery._launch import LaunchOptions, temporary_state
from enginery._state_dir import StateDirectory, runtime_directory

if TYPE_CHECKING:
    from pathlib import Path


def test_the_services_take_every_option(tmp_path: Path) -> None:
    """What is set arrives, under the names of the services."""
    file = tmp_path / "start.py"
    file.touch()
    options = LaunchOptions(
        n=3, port=7, bind="::1", advertise="here", insecure=True, lease=1.5, save_ids=True, value_limit=10,
        waiting_limit=11, output_limit=12, queue_limit=13, queue_bytes=14, store_limit=15, direct=False,
        properties={"a": {"b": [1]}}, exec_lines=["--x"], exec_files=[file], log_level="error",
    )  # fmt: skip
    controller = vars(parser().parse_args(options.controller_arguments()))
    for name in ("port", "bind", "advertise", "insecure", "lease", "save_ids", "value_limit", "waiting_limit"):
        assert controller[name] == getattr(options, name), name
    host = parse(["--connection-file", "x", *options.host_arguments()])
    for name in ("n", "value_limit", "output_limit", "queue_limit", "queue_bytes", "store_limit", "direct"):
        assert getattr(host, name) == getattr(options, name), name
    assert host.exec_lines == ("--x",)
    assert host.exec_files == (file,)
    assert bytes(host.properties["a"].parts[0]) == b'{"b": [1]}'
    assert controller["log_level"] == host.log_level == "error"


def test_what_is_not_set_is_left_to_the_services() -> None:
    """The only default of ours is the number of engines."""
    assert LaunchOptions(n=2).controller_arguments() == []
    assert LaunchOptions(n=2).host_arguments() == ["-n", "2"]


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
