"""The values of calls that are too large to ride in them: uploaded first, then the calls go."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from enginery._connection import translated
from enginery._metadata import MAX_UPLOAD_ENGINES
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery._calls import Uploads
    from enginery._encoded import Encoded
    from enginery._entry import Entry
    from enginery._link import Link
    from enginery._shared_call import SharedCall
    from enginery._transfer import Transfers
    from enginery.v1 import value_pb2

_ON_ITS_WAY = frozenset({"CONTROLLER_LOST", "UPLOAD_INCOMPLETE", "SUPERSEDED"})

logger = logging.getLogger(__name__)


class Uploading:
    """Uploads for the calls of one link, on the loop's thread."""

    def __init__(self, link: Link) -> None:
        """Use a link's connection, and its session."""
        self._link = link

    def start(self, entries: list[Entry]) -> None:
        """Upload the values of calls; what is for several engines travels to the controller once."""
        together: dict[SharedCall, list[Entry]] = {}
        for entry in entries:
            if entry.shared is None:
                self._link.start_task(self._upload(entry, entry.uploads))
            else:
                together.setdefault(entry.shared, []).append(entry)
        for same in together.values():
            for first in range(0, len(same), MAX_UPLOAD_ENGINES):
                self._link.start_task(self._upload_together(same[first : first + MAX_UPLOAD_ENGINES]))

    async def _upload_together(self, entries: list[Entry]) -> None:
        """Upload the values of one call on several engines. An engine that does not have one then is sent it by
        itself, which tells why it has not."""
        engine_ids = [entry.operation.engine_id for entry in entries]
        left: list[Uploads] = [() for _ in entries]
        for blob, encoded in entries[0].uploads:
            there = await self._spread(engine_ids, blob, encoded) if len(entries) > 1 else frozenset[int]()
            left = [
                uploads if engine_id in there else (*uploads, (blob, encoded))
                for engine_id, uploads in zip(engine_ids, left, strict=True)
            ]
        for entry, uploads in zip(entries, left, strict=True):
            self._link.start_task(self._upload(entry, uploads, is_begun=len(entries) > 1))

    async def _spread(
        self, engine_ids: Sequence[int], blob: value_pb2.Blob, encoded: Encoded
    ) -> frozenset[int]:
        """Return the engines that have a value now; none if it could not be sent to all at once."""
        try:
            return await self._send(engine_ids, blob, encoded, is_begun=False)
        except (Exception, asyncio.CancelledError) as error:
            failure = translated(error)
            logger.debug("a value goes to engines %s one by one: %s", engine_ids, failure.text)
            return frozenset()

    async def _send(
        self, engine_ids: Sequence[int], blob: value_pb2.Blob, encoded: Encoded, *, is_begun: bool
    ) -> frozenset[int]:
        """Return the engines that have a value, however often the connection breaks meanwhile."""

        async def attempt(transfers: Transfers) -> frozenset[int]:
            nonlocal is_begun
            was_begun, is_begun = is_begun, True
            return await transfers.upload(engine_ids, blob, encoded, is_begun=was_begun)

        return await self._link.transfer(engine_ids, attempt)

    async def _upload(self, entry: Entry, uploads: Uploads, *, is_begun: bool = False) -> None:
        """Upload what is still to be uploaded of one call, and send it."""
        link, engine_id = self._link, entry.operation.engine_id
        try:
            for blob, encoded in uploads:
                await self._send([engine_id], blob, encoded, is_begun=is_begun)
        except (Exception, asyncio.CancelledError) as error:
            failure = translated(error)
            if failure.reason in _ON_ITS_WAY:  # the value was lost on its way; the call never left
                failure = DeliveryError("NOT_SENT", cause=failure.metadata.get("cause", failure.text))
            self.start(link.session.upload_failed(entry, failure))
        else:
            self.start(link.session.uploaded(entry))
        link.wake_writer()
