"""Pieces of values: what is framed by hand is what protobuf makes and reads."""

from __future__ import annotations

import zlib

import pytest

from enginery import _pieces
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, value_pb2


@pytest.mark.parametrize("offset", [0, 1, 127, 128, 1 << 32, (1 << 64) - 1])
@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 1 << 20])
def test_a_piece_is_the_chunk_of_both_messages(offset: int, size: int) -> None:
    """Protobuf reads what we write, and we read what protobuf writes: with a checksum and without one."""
    data = b"x" * size
    chunk = value_pb2.Chunk(offset=offset, crc32=zlib.crc32(data), data=data)
    message = _pieces.to_message(offset, memoryview(data))
    assert engine_pb2.UploadRequest.FromString(message).chunk == chunk
    assert engine_pb2.DownloadResponse.FromString(message).chunk == chunk
    for unchecked in (False, True):
        if unchecked:
            chunk.ClearField("crc32")
        piece = _pieces.from_message(engine_pb2.UploadRequest(chunk=chunk).SerializeToString())
        assert piece is not None
        assert piece == _pieces.from_chunk(chunk)
        piece.check("b")


def test_what_is_no_piece_is_left_to_protobuf() -> None:
    """Other messages, other orders of fields, unknown fields, and what is cut or has more after it."""
    whole = _pieces.to_message(300, b"abcdef")
    for other in (
        engine_pb2.UploadRequest(blob=value_pb2.Blob(blob_id="b")).SerializeToString(),
        b"\x12\x08" + b"\x7a\x01x" + b"\x15\0\0\0\0",
        whole + b"\x18\x01",
        *(whole[:length] for length in range(len(whole))),
        *(whole[:3] + bytes([whole[3] | 0x80]) * length for length in range(20)),
        b"\x12" + b"\xff" * 20,
    ):
        assert _pieces.from_message(other) is None


def test_a_damaged_piece_is_refused() -> None:
    """By its place and its blob."""
    piece = _pieces.from_message(_pieces.to_message(7, b"abc")[:-1] + b"d")
    assert piece is not None
    with pytest.raises(DeliveryError, match="the chunk at 7 of blob b is damaged"):
        piece.check("b")
