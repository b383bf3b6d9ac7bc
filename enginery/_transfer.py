"""Large values: to an engine's host by Upload, from it by Download, in chunks with checksums."""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from enginery import _status, _values
from enginery._methods import ENGINE_ID_KEY, ENGINE_IDS_KEY
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, engine_pb2_grpc, value_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from enginery._encoded import Encoded

logger = logging.getLogger(__name__)

CHUNK = 512 << 10
"""Bytes in one message: larger ones are slower, and hold up what shares the connection."""
_SLOWEST = 1 << 20  # bytes a second: a transfer below that is given up
_PATIENCE = 60.0  # seconds on top
_RELEASE_PATIENCE = 5.0  # seconds that an answer may wait until its engine's host has forgotten a value
_INCOMPLETE = frozenset({"BAD_VALUE", "BAD_REQUEST", "PROTOCOL_ERROR"})  # what a host says of missing chunks


class Transfers:
    """Moves values over a channel of their own."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        """Use `channel`; `metadata` goes with every call."""
        self._stub = engine_pb2_grpc.EngineServiceStub(channel)
        self._metadata = metadata

    def _to(self, engine_id: int) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, (ENGINE_ID_KEY, str(engine_id)))

    async def upload(self, engine_id: int, blob: value_pb2.Blob, encoded: Encoded) -> None:
        """Send the bytes of `encoded` as `blob`; DeliveryError if it was refused.

        What is there already is ours, from a connection that broke: ids are never used twice.
        """
        messages = _upload_messages(blob, encoded)
        try:
            await self._stub.Upload(messages, metadata=self._to(engine_id), timeout=_deadline(blob.size))
        except grpc.aio.AioRpcError as error:
            hidden = _status.hides_status(error)
            refusal = await self._refusal(engine_id, blob) if hidden else _status.from_rpc(error)
            if refusal.reason != "BLOB_EXISTS":
                raise refusal from None
            if not await self._is_there(
                engine_id, blob
            ):  # all of it: part of it goes with the stream it came on
                raise DeliveryError("NOT_SENT", cause="the upload of a value is not over") from None

    async def spread(self, engine_ids: Sequence[int], blob: value_pb2.Blob, encoded: Encoded) -> frozenset[int]:
        """Send the bytes of `encoded` as `blob` to several engines, once; return those that have it.

        DeliveryError if none has. At most MAX_UPLOAD_ENGINES at a time.
        """
        metadata = (*self._metadata, (ENGINE_IDS_KEY, ",".join(map(str, engine_ids))))
        messages = _upload_messages(blob, encoded)
        try:
            response = await self._stub.Upload(messages, metadata=metadata, timeout=_deadline(blob.size))
        except grpc.aio.AioRpcError as error:
            raise _status.from_rpc(error) from None
        return frozenset(response.engine_ids)

    async def _is_there(self, engine_id: int, blob: value_pb2.Blob) -> bool:
        request = engine_pb2.DownloadRequest(blob_id=blob.blob_id, offset=blob.size)
        call = self._stub.Download(request, metadata=self._to(engine_id), timeout=_PATIENCE)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            failure = _status.from_rpc(error)
            if failure.reason == "BLOB_NOT_FOUND":
                return False
            raise failure from None
        return True

    async def _refusal(self, engine_id: int, blob: value_pb2.Blob) -> DeliveryError:
        """Return why an upload was refused while it was being written, which hid the reason.

        What is refused for its description or its engine is refused again without a single chunk.
        """
        messages = _upload_messages(blob, None)
        try:
            await self._stub.Upload(messages, metadata=self._to(engine_id), timeout=_PATIENCE)
        except grpc.aio.AioRpcError as error:
            refusal = _status.from_rpc(error)
            if refusal.reason not in _INCOMPLETE:
                return refusal
        return DeliveryError("NOT_SENT", cause="the upload of a value broke off")

    async def download(self, engine_id: int, blob: value_pb2.Blob, *, release: bool) -> Encoded:
        """Return the value of `blob`; `release` lets the engine's host forget it, once it is here."""
        _values.check_blob(blob)
        data = bytearray(blob.size)
        request = engine_pb2.DownloadRequest(blob_id=blob.blob_id)
        call = self._stub.Download(request, metadata=self._to(engine_id), timeout=_deadline(blob.size))
        position = 0
        async for response in call:
            if response.WhichOneof("kind") == "chunk":
                position = _place(response.chunk, data, position, blob)
        if position != blob.size:
            raise DeliveryError("BAD_VALUE", field="blob", cause=f"{position} of {blob.size} bytes came")
        if release:
            await self._release(engine_id, blob)
        return _values.assemble(blob, data)

    async def _release(self, engine_id: int, blob: value_pb2.Blob) -> None:
        """Have a value forgotten that is here whole: one that was forgotten as it was sent may never arrive."""
        request = engine_pb2.DownloadRequest(blob_id=blob.blob_id, offset=blob.size, release=True)
        call = self._stub.Download(request, metadata=self._to(engine_id), timeout=_RELEASE_PATIENCE)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            logger.debug("blob %s is left to its ten minutes: %s", blob.blob_id, error.details())


def _deadline(size: int) -> float:
    return _PATIENCE + size / _SLOWEST


async def _upload_messages(
    blob: value_pb2.Blob, encoded: Encoded | None
) -> AsyncIterator[engine_pb2.UploadRequest]:
    yield engine_pb2.UploadRequest(blob=blob)
    offset = 0
    for part in encoded.parts if encoded is not None else ():
        view = memoryview(part).cast("B")
        for start in range(0, view.nbytes, CHUNK):
            data = bytes(view[start : start + CHUNK])
            chunk = value_pb2.Chunk(offset=offset, crc32=zlib.crc32(data), data=data)
            yield engine_pb2.UploadRequest(chunk=chunk)
            offset += len(data)


def _place(chunk: value_pb2.Chunk, data: bytearray, position: int, blob: value_pb2.Blob) -> int:
    piece = chunk.data
    if chunk.offset != position or position + len(piece) > len(data):
        cause = f"a chunk at {chunk.offset} came where {position} was next"
        raise DeliveryError("BAD_VALUE", field=f"blob {blob.blob_id}", cause=cause)
    if chunk.HasField("crc32") and zlib.crc32(piece) != chunk.crc32:
        raise DeliveryError("CHECKSUM_MISMATCH", offset=position, blob_id=blob.blob_id)
    data[position : position + len(piece)] = piece
    return position + len(piece)
