"""Enginery: live Python engines behind a gRPC contract.

    with enginery.Cluster(n=4) as cluster:
        engines = cluster.client[:]
        engines.push({"a": 20})
        print(engines.apply(lambda b: a + b, 22))

`connect()` finds a running cluster, `Cluster` starts one. Names are imported on first use, so that `import
enginery` costs nothing in a process that needs only a part of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginery._current import CurrentEngine, get_engine
    from enginery._reference import Reference, reference
    from enginery.aio import AsyncClient, aconnect
    from enginery.async_operation import AsyncGroup, AsyncOperation
    from enginery.async_tasks import AsyncTaskView
    from enginery.async_views import AsyncEnginesView, AsyncEngineView
    from enginery.client import Client, connect
    from enginery.cluster import Cluster
    from enginery.engines import EngineInfo
    from enginery.errors import (
        CompositeError,
        ControllerLost,
        ControllerNotRunning,
        EngineLost,
        EngineryError,
        InvalidEngineID,
        KernelDied,
        MemoryLimitExceeded,
        NoEnginesRegistered,
        OperationCancelled,
        OperationNotFound,
        OperationTimedOut,
        QueueCleared,
        QueueFull,
        RemoteError,
        SerializationError,
        TaskReject,
        UnpickleableException,
    )
    from enginery.executor import ClusterExecutor
    from enginery.group import Group, Progress
    from enginery.joined import Joined, MapResult
    from enginery.operation import Operation
    from enginery.operations import Event, EventStream, OperationInfo
    from enginery.result import Display, ExecuteResult, QueuedCall, QueueStatus
    from enginery.serialized import Serialized, serialize
    from enginery.task_map import TaskMap
    from enginery.tasks import TaskView
    from enginery.view import EngineView
    from enginery.views import EnginesView

__version__ = "0.1.0"

_HOMES = {
    "CurrentEngine": "_current",
    "get_engine": "_current",
    "AsyncClient": "aio",
    "aconnect": "aio",
    "AsyncGroup": "async_operation",
    "AsyncOperation": "async_operation",
    "AsyncTaskView": "async_tasks",
    "AsyncEngineView": "async_views",
    "AsyncEnginesView": "async_views",
    "Client": "client",
    "ClusterExecutor": "executor",
    "connect": "client",
    "Cluster": "cluster",
    "EngineInfo": "engines",
    "Group": "group",
    "Progress": "group",
    "CompositeError": "errors",
    "QueueFull": "errors",
    "OperationTimedOut": "errors",
    "OperationNotFound": "errors",
    "OperationCancelled": "errors",
    "MemoryLimitExceeded": "errors",
    "ControllerLost": "errors",
    "ControllerNotRunning": "errors",
    "EngineLost": "errors",
    "EngineryError": "errors",
    "InvalidEngineID": "errors",
    "KernelDied": "errors",
    "NoEnginesRegistered": "errors",
    "QueueCleared": "errors",
    "RemoteError": "errors",
    "SerializationError": "errors",
    "TaskReject": "errors",
    "UnpickleableException": "errors",
    "Operation": "operation",
    "Joined": "joined",
    "MapResult": "joined",
    "Event": "operations",
    "EventStream": "operations",
    "OperationInfo": "operations",
    "Display": "result",
    "ExecuteResult": "result",
    "QueueStatus": "result",
    "QueuedCall": "result",
    "Reference": "_reference",
    "reference": "_reference",
    "Serialized": "serialized",
    "serialize": "serialized",
    "TaskMap": "task_map",
    "TaskView": "tasks",
    "EngineView": "view",
    "EnginesView": "views",
    "load_ipython_extension": "magics",  # %load_ext enginery calls these, and nobody else
    "unload_ipython_extension": "magics",
}

__all__ = [
    "AsyncClient",
    "AsyncEngineView",
    "AsyncEnginesView",
    "AsyncGroup",
    "AsyncOperation",
    "AsyncTaskView",
    "Client",
    "Cluster",
    "ClusterExecutor",
    "CompositeError",
    "ControllerLost",
    "ControllerNotRunning",
    "CurrentEngine",
    "Display",
    "EngineInfo",
    "EngineLost",
    "EngineView",
    "EngineryError",
    "EnginesView",
    "Event",
    "EventStream",
    "ExecuteResult",
    "Group",
    "InvalidEngineID",
    "Joined",
    "KernelDied",
    "MapResult",
    "MemoryLimitExceeded",
    "NoEnginesRegistered",
    "Operation",
    "OperationCancelled",
    "OperationInfo",
    "OperationNotFound",
    "OperationTimedOut",
    "Progress",
    "QueueCleared",
    "QueueFull",
    "QueueStatus",
    "QueuedCall",
    "Reference",
    "RemoteError",
    "SerializationError",
    "Serialized",
    "TaskMap",
    "TaskReject",
    "TaskView",
    "UnpickleableException",
    "aconnect",
    "connect",
    "get_engine",
    "reference",
    "serialize",
]


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module(f"{__name__}.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "errors", *(name for name in globals() if name.startswith("__"))})
