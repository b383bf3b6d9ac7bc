"""What ipyparallel and IPython.kernel called things: who writes an old name is told the new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

OF_CLIENTS = {
    **{
        name: f"client[:].{name}(...), or client[0].{name}(...) for one engine"
        for name in ("apply", "execute", "push", "pull", "run", "scatter", "gather", "reset", "activate")
    },
    "abort": "operation.cancel()",
    "broadcast_view": "client[:], whose calls travel to the controller once",
    "db_query": "client.operations(...)",
    "direct_view": 'client[:], client[0], client["all"]',
    "get_ids": "client.ids",
    "get_result": "client.operation(id).result()",
    "hub_history": "client.operations(...)",
    "load_balanced_view": "client.submit(f, ...) and client.map(f, ...), or client.tasks(...) with settings",
    "purge_results": "operation.release(), or nothing: results are kept by time and size",
    "queue_status": 'client["all"].queue_status()',
    "wait": "enginery.Group(operations).wait()",
}
OF_VIEWS = {
    "abort": "clear_queue() for what waits, operation.cancel() for what runs",
    "apply_async": "apply(f, ..., block=False)",
    "apply_sync": "apply(f, ...)",
    "clear": "reset()",
    "get": "pull(name)",
    "imap": "client.map(f, ...), which is lazy",
    "map_async": "map(f, ..., block=False)",
    "map_sync": "map(f, ...)",
    "shutdown": "kill()",
    "submit": "client.submit(f, ...) for any engine, apply(f, ..., block=False) for these",
    "temp_flags": "with view.options(...):",
    "update": "push({...})",
    "use_cloudpickle": "nothing: functions always go by cloudpickle",
    "use_dill": "nothing: functions always go by cloudpickle",
}
OF_RESULTS = {
    "abort": "cancel()",
    "metadata": "info(), of each operation",
    "msg_ids": "operation_id, of each operation",
    "r": "result()",
    "ready": "done()",
    "stream_output": "events(), of each operation",
    "successful": "exception() is None",
}


class OldNames:
    """Raises AttributeError with the new name for an old one."""

    _old_names: ClassVar[Mapping[str, str]] = {}

    if not TYPE_CHECKING:  # or every attribute would count as known

        def __getattr__(self, name: str) -> object:
            """Say what stands in the place of an attribute that is not there."""
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in self._old_names:
                text += f"; here it is {self._old_names[name]}"
            raise AttributeError(text, name=name, obj=self)
