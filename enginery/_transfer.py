"""Large values: to an engine's host by Upload, from it by Download, in chunks with checksums."""

from __future__ import annotations

import contextlib
import logging
import mmap
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from enginery import _pieces, _status, _values
from enginery._beside import WORTH, Behind
from enginery._malloc import keep_freed
from enginery._methods import ENGINE_ID_KEY, ENGINE_IDS_KEY
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery._stall import Stall
from enginery.v1 import engine_pb2, value_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from enginery._encoded import Encoded
    from enginery._pieces import Piece

logger = logging.getLogger(__name__)

_LARGE = 1 << 20  # bytes of a value for which pages of its own pay
_PATIENCE = 60.0  # seconds for an answer to what is asked without bytes of a value
_DIGITS = 20  # of an offset at most
_RELEASE_PATIENCE = 5.0  # seconds that an answer may wait until its engine's host has forgotten a value


class Arriving:
    """The bytes of a blob, as far as they came. They outlive the connection that brings them."""

    def __init__(self, blob: value_pb2.Blob) -> None:
        """Have none; BAD_VALUE if `blob` contradicts itself."""
        _values.check_blob(blob)
        self.blob = blob
        self.received = 0
        self._data = _room(blob.size)

    def place(self, piece: Piece) -> None:
        """Take the next piece; DeliveryError if it is another, or damaged."""
        position, end = self.received, self.received + len(piece.data)
        if piece.offset != position or end > len(self._data):
            cause = f"a chunk at {piece.offset} came where {position} was next"
            raise DeliveryError("BAD_VALUE", field=f"blob {self.blob.blob_id}", cause=cause)
        piece.check(self.blob.blob_id)
        self._data[position:end] = piece.data
        self.received = end

    def check(self) -> None:
        """Be refused with BAD_VALUE if bytes are missing."""
        if self.received != self.blob.size:
            cause = f"{self.received} of {self.blob.size} bytes came"
            raise DeliveryError("BAD_VALUE", field="blob", cause=cause)

    def value(self) -> Encoded:
        """Return the value, once it is whole."""
        return _values.assemble(self.blob, self._data)


class Transfers:
    """Moves values over a channel of their own."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        """Use `channel`; `metadata` goes with every call."""
        self._upload_stream: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
        self._upload_stream = channel.stream_unary(  # of bytes: protobuf would copy them
            "/enginery.v1.EngineService/Upload",
            request_serializer=None,
            response_deserializer=None,
        )
        self._download_stream: grpc.aio.UnaryStreamMultiCallable[engine_pb2.DownloadRequest, bytes]
        self._download_stream = channel.unary_stream(
            "/enginery.v1.EngineService/Download",
            request_serializer=engine_pb2.DownloadRequest.SerializeToString,
            response_deserializer=None,
        )
        self._metadata = metadata

    def _to(self, engine_id: int) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, (ENGINE_ID_KEY, str(engine_id)))

    async def upload(
        self, engine_ids: Sequence[int], blob: value_pb2.Blob, encoded: Encoded, *, is_begun: bool
    ) -> frozenset[int]:
        """Send the bytes of `encoded` as `blob`, once, and return the engines that have it then: at most
        MAX_UPLOAD_ENGINES. DeliveryError if none has.

        `is_begun` says that part of it may be there, from a stream that broke: only the rest is sent.
        """
        _prepare(blob)
        offset = 0
        if is_begun:
            try:
                return await self._upload(engine_ids, _messages(blob), _PATIENCE)
            except DeliveryError as error:
                if error.reason != "UPLOAD_INCOMPLETE":
                    raise
                offset = _offset_of(error)
        return await self._upload(engine_ids, _messages(blob, encoded, offset))

    async def _upload(
        self, engine_ids: Sequence[int], messages: AsyncGenerator[bytes], timeout: float | None = None
    ) -> frozenset[int]:
        if len(engine_ids) == 1:
            metadata = self._to(engine_ids[0])
        else:
            metadata = (*self._metadata, (ENGINE_IDS_KEY, ",".join(map(str, engine_ids))))
        stall = Stall()
        call = self._upload_stream(stall.noting(messages), metadata=metadata, timeout=timeout)
        try:
            with stall.ending(call):
                answer = await call
        except grpc.aio.AioRpcError as error:
            if _status.hides_status(error):  # it will be told why when it asks what is there
                raise DeliveryError("NOT_SENT", cause="the upload of a value broke off") from None
            raise _status.from_rpc(error) from None
        response = parse(engine_pb2.UploadResponse, answer)
        return frozenset(response.engine_ids if len(engine_ids) > 1 else engine_ids)

    async def download(self, engine_id: int, arriving: Arriving, *, release: bool) -> None:
        """Fetch what is missing of a blob; `release` lets the engine's host forget it, once it is here."""
        blob = arriving.blob
        _prepare(blob)
        request = engine_pb2.DownloadRequest(blob_id=blob.blob_id, offset=arriving.received)
        call = self._download_stream(request, metadata=self._to(engine_id))
        stall = Stall()
        with stall.ending(call):
            async with Behind(arriving.place, blob.size) as placing:
                async for data in call:
                    stall.moved()
                    piece = _pieces.from_message(data) or _parsed(data)
                    if piece is not None:
                        await placing.put(piece)
        arriving.check()
        if release:
            await self._release(engine_id, blob)

    async def _release(self, engine_id: int, blob: value_pb2.Blob) -> None:
        """Have a value forgotten that is here whole: one that was forgotten as it was sent may never arrive."""
        request = engine_pb2.DownloadRequest(blob_id=blob.blob_id, offset=blob.size, release=True)
        call = self._download_stream(request, metadata=self._to(engine_id), timeout=_RELEASE_PATIENCE)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            logger.debug("blob %s is left to its ten minutes: %s", blob.blob_id, error.details())


def _offset_of(incomplete: DeliveryError) -> int:
    """Return how much of a value is there, as UPLOAD_INCOMPLETE tells; PROTOCOL_ERROR if it does not."""
    told = incomplete.metadata.get("offset", "")
    if not told.isdecimal() or len(told) > _DIGITS:
        raise DeliveryError("PROTOCOL_ERROR", cause="an upload is incomplete, and it is not told from where on")
    return int(told)


def _room(size: int) -> memoryview:
    """Return writable memory for a value.

    Large ones get pages of their own, which the system makes as they are written: to make a gigabyte of zeros
    first would hold up the loop, and every call. VALUE_TOO_LARGE if there is not so much.
    """
    if size < _LARGE:
        return memoryview(bytearray(size))
    try:
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, MemoryError) as error:
        option = f"the system ({error})"
        raise DeliveryError("VALUE_TOO_LARGE", size=size, limit="this process's", option=option) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)


def _prepare(blob: value_pb2.Blob) -> None:
    if blob.size >= WORTH:  # or the user's process stays as it is
        keep_freed()


async def _messages(
    blob: value_pb2.Blob, encoded: Encoded | None = None, offset: int = 0
) -> AsyncGenerator[bytes]:
    """Yield the description of a blob, and its bytes from `offset` on; without `encoded` none."""
    yield engine_pb2.UploadRequest(blob=blob).SerializeToString()
    start = 0  # of a part
    for part in encoded.parts if encoded is not None else ():
        view = memoryview(part).cast("B")
        for position in range(max(0, offset - start), view.nbytes, _pieces.SIZE):
            yield _pieces.to_message(start + position, view[position : position + _pieces.SIZE])
        start += view.nbytes


def _parsed(data: bytes) -> Piece | None:
    response = parse(engine_pb2.DownloadResponse, data)
    return _pieces.from_chunk(response.chunk) if response.WhichOneof("kind") == "chunk" else None
