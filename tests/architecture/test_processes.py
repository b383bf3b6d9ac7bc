"""What a fresh process loads: each program is as light, and as ignorant, as its role allows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PICKLERS = {"cloudpickle", "enginery._codec"}
WIRE = {"grpc", "google.protobuf", "asyncio"}
FRONT_ENDS = {"typer", "rich"}

CASES = [
    ("enginery", {"grpc", "google.protobuf", "asyncio", "numpy"} | PICKLERS | FRONT_ENDS),
    ("enginery._reasons", {"grpc", "google.protobuf", "pickle"} | PICKLERS),
    ("enginery.errors", {"grpc", "google.protobuf", "pickle", "enginery._reasons"} | PICKLERS),
    ("enginery._codec", WIRE | FRONT_ENDS | {"numpy"}),
    ("engine_service.kernel_wire", WIRE | PICKLERS | FRONT_ENDS),
    ("engine_service.kernel.service", WIRE | FRONT_ENDS | {"numpy"}),
    ("controller_service.app", PICKLERS | FRONT_ENDS | {"numpy", "engine_service"}),
    (
        "engine_service.app",
        PICKLERS | FRONT_ENDS | {"numpy", "controller_service", "engine_service.kernel.service"},
    ),
]


@pytest.mark.parametrize(("module", "absent"), CASES, ids=[case[0] for case in CASES])
def test_a_fresh_process_loads_no_more_than_its_role(module: str, absent: set[str]) -> None:
    """Import one module in a new interpreter and look at what came with it."""
    code = f"import sys, json; import {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert not loaded & absent
