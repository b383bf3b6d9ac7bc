"""Replies to calls, handed to the operations that wait for them, with the large values that they name."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from enginery import _answer, _outcomes, _status
from enginery._connection import translated
from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery._session import RETRIED
from enginery._transfer import Arriving
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from enginery._answer import Answer
    from enginery._encoded import Encoded
    from enginery._link import Link
    from enginery._path import Path
    from enginery.operation import Operation
    from enginery.v1 import value_pb2

_ANSWERED = frozenset({frame_pb2.OUTCOME_OK, *_outcomes.RAISED})
_STOPPED = frozenset({frame_pb2.OUTCOME_CANCELLED, frame_pb2.OUTCOME_TIMED_OUT})
_NOT_THERE = frozenset({"INVALID_ENGINE_ID", "NO_ENGINES_REGISTERED", "ENGINE_LOST", "OPERATION_RELEASED"})
"""What a host says that knows less than the controller."""
_TELLING = frozenset(METHODS[name] for name in ("SetProperties", "DelProperties", "ClearProperties", "Reset"))
"""Calls of which the controller must have heard before they are answered: it places tasks by properties."""


class Answering:
    """Takes the replies of one link, on the loop's thread."""

    def __init__(self, link: Link) -> None:
        """Use the session and the connections of a link."""
        self._link = link
        self._session = link.session

    def reply(self, reply: frame_pb2.Reply, path: Path) -> None:
        """Take a reply that came on a path."""
        entry = self._session.replied(reply.call_id, path)
        if entry is None:
            return  # it was given up
        operation, request = entry.operation, entry.request
        outcome = reply.outcome
        if request.task is not None and reply.attempts:
            operation.ran(reply.engine_id if reply.HasField("engine_id") else None, reply.attempts)
        if outcome not in _ANSWERED and not (outcome in _STOPPED and not reply.error):
            failure = _status.from_bytes(reply.error)
            if path.is_direct and failure.reason in _NOT_THERE:
                self._session.not_there(entry, time.monotonic())
                self._link.wake_writer()
                return
            if failure.reason in RETRIED:
                hint = _status.retry_delay(reply.error)
                self._session.refuse(entry, failure, hint, time.monotonic())
                return
            self._session.done(entry)
            operation.fail(failure)
            return
        self._session.done(entry)
        try:
            message = request.response.FromString(reply.response)
        except Exception as error:  # DecodeError, whose class differs between protobuf's implementations
            operation.fail(DeliveryError("MALFORMED_MESSAGE", message=f"{request.response.__name__} ({error})"))
            return
        if path.is_direct and request.method in _TELLING:
            self._link.start_task(self._answer_when_told(operation, outcome, message))
        else:
            self.answer(operation, outcome, message)

    async def _answer_when_told(self, operation: Operation[Any], outcome: int, message: Any) -> None:
        """Hand an answer over when the controller has heard of what changed."""
        try:
            await self._link.operations.heard(operation.engine_id)
        finally:
            self.answer(operation, outcome, message)

    def answer(self, operation: Operation[Any], outcome: int, message: Any) -> None:
        """Hand an answer to its operation, after downloading what it names. On the loop's thread."""
        request = operation.request
        engine_id = operation.engine_id
        fetch = partial(self._fetch, request.owner, engine_id)
        answer = _answer.Answer(engine_id, outcome, message, {}, fetch, operation.errors)
        blobs = _answer.blobs_of(request.method, message)
        if blobs:
            self._link.start_task(self._complete(operation, answer, blobs))
        else:
            operation.succeed(answer)

    async def _complete(
        self, operation: Operation[Any], answer: Answer, blobs: list[tuple[value_pb2.Blob, bool]]
    ) -> None:
        """Download what an answer named, then hand it over."""
        try:
            for blob, indispensable in blobs:
                try:
                    downloaded = await self._download(answer.engine_id, blob, release=indispensable)
                except DeliveryError:
                    if indispensable:
                        raise
                else:
                    answer.blobs[blob.blob_id] = downloaded
        except asyncio.CancelledError:
            operation.fail(DeliveryError("CONTROLLER_LOST", cause="this client was closed"))
            raise
        except Exception as error:
            operation.fail(translated(error))
        else:
            operation.succeed(answer)

    async def _download(self, engine_id: int, blob: value_pb2.Blob, *, release: bool) -> Encoded:
        arriving = Arriving(blob)
        await self._link.transfer(
            [engine_id], lambda transfers: transfers.download(engine_id, arriving, release=release)
        )
        return arriving.value()

    def _fetch(self, _owner: object, engine_id: int, blob: value_pb2.Blob) -> Encoded:
        """Download a blob for a result, which so keeps its client, `_owner`, and with it the connection; its
        engine's host keeps it too."""
        return self._link.run(self._download(engine_id, blob, release=False))
