"""Modules that a client uploads: sent to every engine that there is, and to each that comes."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from enginery import _calls, _shipped
from enginery._options import Options
from enginery.errors import EngineryError, QueueCleared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery._calls import Request
    from enginery._decode import Errors
    from enginery._link import Link
    from enginery._shipped import Source
    from enginery.client import Client
    from enginery.operation import Operation

_OPTIONS = Options(any_incarnation=True, keep_queue=True)  # it needs no namespace and clears nothing

logger = logging.getLogger("enginery")


class Modules:
    """What this client has uploaded, and which kernels were sent it."""

    def __init__(self, link: Link) -> None:
        """Begin with none."""
        self._link = link
        self._sources: dict[str, list[Source]] = {}  # by name: the module and what it imports
        self._served: dict[int, str] = {}  # kernels by engine id

    def upload(self, sources: list[Source], owner: Client, errors: Errors) -> list[Operation[None]]:
        """Send a module to every engine there is; those that come later are sent it then."""
        roster = self._link.roster
        kernels = roster.incarnations(roster.ids)
        if not self._sources:
            self._served = dict(kernels)
        self._sources[sources[0].name] = sources
        return self._send(sources, list(kernels), owner, errors)

    def forget(self, sources: list[Source]) -> None:
        """Send a module that turned out to be of no use to nobody else."""
        if self._sources.get(sources[0].name) is sources:
            del self._sources[sources[0].name]

    def engines_changed(self) -> None:
        """Send everything to kernels that are new."""
        if not self._sources:
            return
        kernels = self._link.roster.incarnations(self._link.roster.ids)
        new = [engine_id for engine_id, kernel in kernels.items() if self._served.get(engine_id) != kernel]
        if not new:
            return
        for name, sources in list(self._sources.items()):
            try:
                operations = self._send(sources, new, None, "wrap")
            except EngineryError:  # too much is unsent: with the next news of engines then
                return
            for operation in operations:
                operation.add_done_callback(partial(self._done, name))
        self._served = kernels

    def _done(self, name: str, operation: Operation[None]) -> None:
        error = None if operation.cancelled() else operation.exception(0)
        if isinstance(error, QueueCleared):  # by a call of the user's that failed before it
            self._served.pop(operation.target, None)
            self.engines_changed()
        elif error is not None:
            logger.warning("engine %d did not take the module %s: %s", operation.target, name, error)

    def _send(
        self, sources: Sequence[Source], engine_ids: list[int], owner: Client | None, errors: Errors
    ) -> list[Operation[None]]:
        request: Request[None] = _calls.apply(_shipped.upload, (_shipped.pack(sources),), {})
        request.options = _OPTIONS
        request.owner = owner
        return self._link.submit(request, engine_ids, errors)
