"""The public face of `enginery`, and that generated code is what the contract says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import enginery
from enginery import errors
from tests.architecture import source

SURFACE = {
    "AsyncTaskView",
    "ClusterExecutor",
    "AsyncClient",
    "AsyncEngineView",
    "AsyncEnginesView",
    "AsyncGroup",
    "AsyncOperation",
    "aconnect",
    "Client",
    "Cluster",
    "CompositeError",
    "ControllerLost",
    "ControllerNotRunning",
    "CurrentEngine",
    "Display",
    "Event",
    "EventStream",
    "MemoryLimitExceeded",
    "OperationCancelled",
    "OperationInfo",
    "OperationNotFound",
    "OperationTimedOut",
    "QueueFull",
    "EngineInfo",
    "EngineLost",
    "EngineView",
    "EngineryError",
    "EnginesView",
    "ExecuteResult",
    "Group",
    "InvalidEngineID",
    "Joined",
    "KernelDied",
    "MapResult",
    "NoEnginesRegistered",
    "Operation",
    "QueueCleared",
    "QueueStatus",
    "QueuedCall",
    "Reference",
    "RemoteError",
    "SerializationError",
    "Serialized",
    "Progress",
    "TaskMap",
    "TaskReject",
    "TaskView",
    "UnpickleableException",
    "connect",
    "get_engine",
    "reference",
    "serialize",
}


def test_stubs_are_fresh() -> None:
    """The committed stubs are what the pinned generator makes of protos/ today."""
    done = subprocess.run(
        [sys.executable, "tools/gen_protos.py", "--check"],
        cwd=source.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_contract_is_linted_and_formatted() -> None:
    """`buf lint` (STANDARD and COMMENTS) and `buf format` find nothing."""
    for arguments in (["lint", "protos"], ["format", "protos", "--diff", "--exit-code"]):
        done = subprocess.run(
            [Path(sys.executable).parent / "buf", *arguments],
            cwd=source.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_surface_is_pinned() -> None:
    """What `enginery` exports changes on purpose or not at all."""
    assert set(enginery.__all__) == SURFACE


def test_every_exported_name_is_there() -> None:
    """Each name of the lazy facade can be fetched, and `dir` lists it."""
    for name in enginery.__all__:
        assert getattr(enginery, name) is not None
        assert name in dir(enginery)


def test_every_public_exception_is_in_the_tree() -> None:
    """The docstring of `enginery.errors` shows every exception that the module defines."""
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    missing = {name for name in defined if f" {name} " not in f" {errors.__doc__} ".replace("\n", " ")}
    assert not missing
