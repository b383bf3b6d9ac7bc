"""Attach: the events of one operation, those that have happened and then each as it happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine_service import events
from enginery import _ids
from enginery._reasons import DeliveryError
from enginery._requests import parse, read_operation_id
from enginery.v1 import operation_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine_service.engine import Engine
    from engine_service.operation import Operation

MAX_BATCH = 512 << 10
"""Bytes of events in one message, unless one alone is larger."""


async def attach(engine: Engine, request: bytes) -> AsyncGenerator[bytes]:
    """Return the serialized messages of an Attach, the outcome in the last. Close it if it is not read on.

    While nobody reads, nothing piles up here: what happens is in the operation's log, within its bound.
    """
    message = parse(operation_pb2.AttachRequest, request)
    operation = engine.operations.find(read_operation_id(message.operation_id))
    after = message.after_sequence
    news = asyncio.Event()
    operation.log.watch(news.set)  # it tells of the outcome too
    try:
        while True:
            async with engine.reading:  # one message each time around the loop, however many are attached
                news.clear()
                batch = events.read(engine, operation, after, MAX_BATCH)
                is_all = operation.has_ended
                await asyncio.sleep(0)
            if batch:
                after = batch[-1].sequence
                yield operation_pb2.AttachResponse(events=batch).SerializeToString()
            elif is_all:
                yield _outcome(operation)
                return
            else:
                await news.wait()
    finally:
        operation.log.unwatch(news.set)


def _outcome(operation: Operation) -> bytes:
    if operation.answer is None:
        raise DeliveryError("OPERATION_NOT_FOUND", operation_id=_ids.show(operation.operation_id))
    event = events.outcome(operation, operation.answer)
    data: bytes = operation_pb2.AttachResponse(events=[event]).SerializeToString()
    return data
