"""The switchboard: keeps registry and references in step, and runs the registry's clock."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING

from controller_service.config import DEFAULT_WAITING_LIMIT
from controller_service.events import EngineEvent, EventKind, HelloReceived, Registration
from controller_service.reference import EngineFromReference, Link
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controller_service.registry import Registry
    from enginery.v1 import engine_pb2

logger = logging.getLogger(__name__)

_LONGEST_TICK = 1.0  # seconds
_IDS_SHOWN = 20
_CALL_ID_BITS = 20  # room for calls between the milliseconds of two starts


class Switchboard:
    """Engines by id, as the endpoints use them."""

    def __init__(
        self, registry: Registry, *, controller_epoch: int = 0, waiting_limit: int = DEFAULT_WAITING_LIMIT
    ) -> None:
        """Serve the engines of `registry`. Call ids begin at the epoch: no two controllers share any."""
        self.registry = registry
        self._waiting_limit = waiting_limit
        self._call_ids = itertools.count(max(controller_epoch, 1) << _CALL_ID_BITS)
        self._stream_numbers = itertools.count(1)
        self._references: dict[int, EngineFromReference] = {}
        self._links: dict[int, Link] = {}
        self._closed: DeliveryError | None = None
        self._ticker: asyncio.Task[None] | None = None
        registry.observers.subscribe(self._observe)

    def start(self) -> None:
        """Begin to run the registry's clock."""
        self._ticker = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Stop the clock."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    def close(self, error: DeliveryError) -> None:
        """Fail every call that waits, and every later one, with `error`."""
        self._closed = error
        for reference in self._references.values():
            reference.lose(error)

    # As callers see it

    def engine(self, engine_id: int | None) -> EngineFromReference:
        """Return the engine of that id.

        Raises DeliveryError: INVALID_ENGINE_ID or MISSING_ENGINE_ID, listing the ids there are, or
        NO_ENGINES_REGISTERED.
        """
        reference = None if engine_id is None else self._references.get(engine_id)
        if self._closed is not None:
            raise self._closed
        if reference is not None:
            return reference
        if not self._references:
            raise DeliveryError("NO_ENGINES_REGISTERED")
        if engine_id is None:
            raise DeliveryError("MISSING_ENGINE_ID", engine_ids=self._show_ids())
        raise DeliveryError("INVALID_ENGINE_ID", engine_id=engine_id, engine_ids=self._show_ids())

    def dismiss_all(self, reason: str) -> None:
        """Ask every connected engine to stop."""
        for reference in self._references.values():
            reference.dismiss(reason)

    def _show_ids(self) -> str:
        ids = sorted(self._references)
        shown = ", ".join(map(str, ids[:_IDS_SHOWN]))
        return shown if len(ids) <= _IDS_SHOWN else f"{shown} and {len(ids) - _IDS_SHOWN} more"

    # As registration streams see it

    def next_stream_number(self) -> int:
        """Return the number of a new registration stream."""
        return next(self._stream_numbers)

    def hello(self, link: Link, hello: HelloReceived) -> Registration:
        """Register an engine of `link`, or take it back; DeliveryError as `Registry.hello` says.

        Its calls do not flow before `connect`.
        """
        self._links[link.number] = link
        admission = self.registry.hello(
            hello, stream=link.number, now=time.monotonic(), unix_ms=time.time_ns() // 1_000_000
        )
        older = self._links.get(admission.superseded or 0)
        if older is not None:
            logger.info("stream %d is superseded by stream %d of the same host", older.number, link.number)
            older.end(DeliveryError("SUPERSEDED"))
        return admission.engine

    def connect(self, engine: Registration, link: Link) -> None:
        """Let calls flow; the engine has been told that it is welcome."""
        self._references[engine.engine_id].attach(link)

    def heartbeat(self, link: Link, statuses: Iterable[engine_pb2.EngineStatus]) -> None:
        """Note how the engines of `link` are."""
        self.registry.heartbeat(link.number, statuses, now=time.monotonic())

    def close_link(self, link: Link) -> None:
        """Note that the stream has ended."""
        self._links.pop(link.number, None)
        self.registry.stream_ended(link.number, now=time.monotonic())

    def _observe(self, event: EngineEvent) -> None:
        engine_id = event.engine.engine_id
        match event.kind:
            case EventKind.REGISTERED:
                self._references[engine_id] = EngineFromReference(
                    engine_id, call_ids=self._call_ids, waiting_limit=self._waiting_limit
                )
            case EventKind.AWAY:
                self._references[engine_id].detach()
            case EventKind.GONE:
                reference = self._references.pop(engine_id)
                assert event.cause is not None
                if event.fenced:
                    reference.dismiss(event.reason)
                reference.lose(event.cause)
            case _:
                pass

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(_LONGEST_TICK, self.registry.lease / 4))
            self.registry.tick(time.monotonic())
