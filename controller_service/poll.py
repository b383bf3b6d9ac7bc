"""A poll: one control call to several engines at once, and what they say."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from enginery import _ids
from enginery._reasons import TABLE, DeliveryError, Retry
from enginery._status import from_bytes
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller_service.reference import EngineFromReference

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that engines get to answer; they answer control calls at once, unless their connection is gone."""
_control_ids = _ids.OperationIds()


class Poll:
    """The replies of several engines to the same control call."""

    def __init__(self, engines: Sequence[EngineFromReference], *, first_wins: bool) -> None:
        """Ask `engines`; with `first_wins` until one has answered without an error, else until all have."""
        self._engines = engines
        self._first_wins = first_wins
        self._over = asyncio.Event()
        self.responses: dict[int, bytes] = {}
        """What was answered without an error, by engine."""
        self.refusals: dict[int, DeliveryError] = {}
        """The errors, by engine."""

    @property
    def is_gone(self) -> bool:
        """Whether no further reply matters."""
        return self._over.is_set()

    @property
    def unsure(self) -> list[int]:
        """Engines that did not say what they know, and may yet."""
        ids = [engine.engine_id for engine in self._engines if engine.engine_id not in self.responses]
        return [one for one in ids if one not in self.refusals or _passes(self.refusals[one])]

    async def ask(self, method: int, request: bytes, *, seconds: float = PATIENCE) -> None:
        """Call `method` on every engine and wait for the replies, at most so long.

        Raises DeliveryError if an engine says that the request itself is wrong.
        """
        for index, engine in enumerate(self._engines):
            call = frame_pb2.Call(
                call_id=index,
                engine_id=engine.engine_id,
                method=method,  # type: ignore[arg-type]
                operation_id=_control_ids.mint(),
                request=request,
            )
            engine.submit(call, self)
        if self._engines:
            try:
                async with asyncio.timeout(seconds):
                    await self._over.wait()
            except TimeoutError:
                logger.warning("engines %s did not answer within %g s", self.unsure, seconds)
            finally:
                self._over.set()
        for error in self.refusals.values():
            if error.reason in ("BAD_REQUEST", "MALFORMED_MESSAGE", "BAD_PAGE_TOKEN"):
                raise error

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Take the reply of one engine."""
        if self._over.is_set():
            return
        engine_id = self._engines[reply.call_id].engine_id
        if reply.outcome == frame_pb2.OUTCOME_OK:
            self.responses[engine_id] = reply.response
        else:
            self.refusals[engine_id] = from_bytes(reply.error)
        has_all = len(self.responses) + len(self.refusals) == len(self._engines)
        if has_all or (self._first_wins and self.responses):
            self._over.set()


def _passes(error: DeliveryError) -> bool:
    return TABLE[error.reason].retry in (Retry.SAME_CALL, Retry.LATER)
