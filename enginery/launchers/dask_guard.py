"""What runs in the Dask scheduler for engines that are to end with the process that started them.

Dask keeps worker plugins for as long as its scheduler lives. When a starter is killed, nobody takes back its
plugin: the scheduler does, by this one, when it has had no connection from the starter for a while.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from distributed import SchedulerPlugin

if TYPE_CHECKING:
    from distributed import Scheduler


def guard(name: str, client_id: str, patience: float) -> SchedulerPlugin:
    """Return a plugin that removes the worker plugin `name` once that client was away for `patience` seconds.

    Another one that was registered under the name meanwhile stays. The class is made here so that Dask sends it
    by value: the scheduler needs no Enginery.
    """

    class Guard(SchedulerPlugin):
        def __init__(self) -> None:
            self._waiting: asyncio.Task[None] | None = None

        def remove_client(self, scheduler: Scheduler, client: str) -> None:
            if client == client_id:
                guarded = scheduler.worker_plugins.get(name)
                self._waiting = asyncio.create_task(self._wait(scheduler, guarded))

        async def _wait(self, scheduler: Scheduler, guarded: bytes | None) -> None:
            await asyncio.sleep(patience)
            if client_id in scheduler.clients:
                return  # it came back
            if guarded is not None and scheduler.worker_plugins.get(name) is guarded:
                await scheduler.unregister_worker_plugin(None, name)
            if scheduler.plugins.get(name) is self:
                scheduler.remove_plugin(name)

        async def close(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()

    return Guard()
