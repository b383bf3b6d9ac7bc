"""Upload and Download of one engine: serialized messages of the contract in and out, chunk by chunk."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from engine_service.blobs import close_file, read_chunks
from enginery import _pieces
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from engine_service.blobs import BlobStore
    from enginery._encoded import Buffer


async def upload(store: BlobStore, requests: AsyncIterator[Buffer], others: Sequence[BlobStore] = ()) -> bytes:
    """Take in a blob from the messages of an Upload and return the serialized response.

    `others` get it as well; the response names those that have it.
    """
    first = await anext(requests, None)
    if first is None:
        raise DeliveryError("PROTOCOL_ERROR", cause="the upload ended before its blob was described")
    message = parse(engine_pb2.UploadRequest, bytes(first))
    if message.WhichOneof("kind") != "blob":
        raise DeliveryError("PROTOCOL_ERROR", cause="the first message of an upload must hold `blob`")
    incoming = store.start_upload(message.blob, time.time())
    try:
        async for data in requests:
            incoming.write(_pieces.from_message(data) or _parsed(data))
        blob = incoming.finish(time.time())
    finally:
        incoming.end(time.time())
    engine_ids: list[int] = []
    if others:
        engine_ids = [one.engine_id for one in (store, *store.share(blob.blob_id, others, time.time()))]
    response: bytes = engine_pb2.UploadResponse(blob=blob, engine_ids=engine_ids).SerializeToString()
    return response


def _parsed(data: Buffer) -> _pieces.Piece:
    message = parse(engine_pb2.UploadRequest, bytes(data))
    if message.WhichOneof("kind") != "chunk":
        raise DeliveryError("PROTOCOL_ERROR", cause="only the first message of an upload holds `blob`")
    return _pieces.from_chunk(message.chunk)


async def download(store: BlobStore, request: bytes) -> AsyncGenerator[bytes]:
    """Return the serialized messages of a Download. Close the iterator if it is not read to its end."""
    message = parse(engine_pb2.DownloadRequest, request)
    blob, fd = store.open(message.blob_id, time.time())
    try:
        if message.offset > blob.size:
            raise DeliveryError(
                "BAD_REQUEST", field="offset", cause=f"{message.offset} is past {blob.size} bytes"
            )
        yield engine_pb2.DownloadResponse(blob=blob).SerializeToString()
        for offset, size in read_chunks(blob.size, message.offset):
            data = os.pread(fd, size, offset)
            if len(data) != size:
                raise DeliveryError("INTERNAL", cause="a blob's file is too short", process="engine host")
            yield _pieces.to_message(offset, data)
        if message.release:
            store.release(message.blob_id)
    finally:
        close_file(fd, blob.size)
