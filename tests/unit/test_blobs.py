"""Blobs: uploads that fit together, results that make room, and files that are given back."""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine_service.blobs import TIME_TO_LIVE, BlobStore, close_file, load, read_chunks, save
from enginery._encoded import Codec, Encoded, Stored
from enginery._pieces import SIZE, Piece
from enginery._reasons import DeliveryError
from enginery.v1 import value_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

FDS = Path("/proc/self/fd")


@pytest.fixture
def store() -> Iterator[BlobStore]:
    """A small store; every file that it opened is closed at the end."""
    before = len(list(FDS.iterdir())) if FDS.exists() else 0
    made = BlobStore(value_limit=100, store_limit=150)
    yield made
    made.close()
    if FDS.exists():
        assert len(list(FDS.iterdir())) == before


def blob(blob_id: str = "a", size: int = 6, **fields: object) -> value_pb2.Blob:
    parts = fields.pop("part_sizes", [size])
    return value_pb2.Blob(blob_id=blob_id, codec=1, size=size, part_sizes=parts, **fields)  # type: ignore[arg-type]


def upload(store: BlobStore, description: value_pb2.Blob, *chunks: Piece, now: float = 0.0) -> None:
    incoming = store.start_upload(description, now)
    try:
        for chunk in chunks:
            incoming.write(chunk)
        incoming.finish(now)
    finally:
        incoming.end(now)


def chunk(data: bytes, offset: int = 0) -> Piece:
    return Piece(offset, zlib.crc32(data), data)


def test_an_upload_is_consumed_once(store: BlobStore) -> None:
    """The bytes of all chunks come back, in their parts, to the first who takes them."""
    upload(store, blob(part_sizes=[2, 4]), chunk(b"abc"), chunk(b"def", 3))
    taken = store.take("a", 0.0)
    assert load(taken).parts == (b"ab", b"cdef")
    taken.close()
    with pytest.raises(DeliveryError) as caught:
        store.take("a", 0.0)
    assert caught.value.reason == "BLOB_NOT_FOUND"
    assert store.size == 0


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([chunk(b"abc", 3)], "BAD_REQUEST"),
        ([chunk(b"abcdefg")], "BAD_REQUEST"),
        ([Piece(0, None, b"")], "BAD_REQUEST"),
        ([], "UPLOAD_INCOMPLETE"),
        ([Piece(0, 1, b"abcdef")], "CHECKSUM_MISMATCH"),
        ([chunk(bytes((1 << 20) + 1))], "BAD_REQUEST"),
    ],
    ids=["gap", "long", "empty chunk", "nothing", "damaged", "large chunk"],
)
def test_a_refused_upload_leaves_nothing(store: BlobStore, chunks: list[Piece], reason: str) -> None:
    """Gapped, long, empty or damaged: refused by name, and its room is free again."""
    with pytest.raises(DeliveryError) as caught:
        upload(store, blob(), *chunks)
    assert caught.value.reason == reason
    assert (store.size, len(store)) == (0, 0)
    upload(store, blob(), chunk(b"abcdef"))


def test_uploads_over_a_limit_are_refused_before_a_byte_is_sent(store: BlobStore) -> None:
    """One value, or all together, over their limit: VALUE_TOO_LARGE, naming limit and option."""
    with pytest.raises(DeliveryError, match=r"100 bytes, set by --value-limit"):
        store.start_upload(blob(size=101), 0.0)
    first = store.start_upload(blob(size=100), 0.0)
    with pytest.raises(DeliveryError, match="--store-limit"):
        store.start_upload(blob("b", size=51), 0.0)
    with pytest.raises(DeliveryError) as caught:
        store.start_upload(blob(size=1), 0.0)
    assert caught.value.reason == "BLOB_EXISTS"
    first.end(0.0)
    store.start_upload(blob("b", size=51), 0.0).end(0.0)


def offset_of(store: BlobStore, description: value_pb2.Blob, *chunks: Piece, now: float = 0.0) -> int:
    """Upload too little and return what the host says is there."""
    with pytest.raises(DeliveryError) as caught:
        upload(store, description, *chunks, now=now)
    assert caught.value.reason == "UPLOAD_INCOMPLETE"
    return int(caught.value.metadata["offset"])


def test_an_upload_that_broke_off_goes_on(store: BlobStore) -> None:
    """From where it was, or from before that; a damaged chunk costs only itself; what is whole stays whole."""
    assert offset_of(store, blob(), chunk(b"ab")) == 2
    with pytest.raises(DeliveryError):
        upload(store, blob(), Piece(2, 1, b"xx"))
    assert offset_of(store, blob(), chunk(b"xbcd", 0)) == 4, "the bytes that were there first stay"
    assert offset_of(store, blob()) == 4
    assert store.size == 6
    upload(store, blob(), chunk(b"ef", 4))
    upload(store, blob())
    upload(store, blob(), chunk(b"another one"[:6]))
    taken = store.take("a", 0.0)
    assert load(taken).parts == (b"abcdef",)
    taken.close()
    assert store.size == 0


def test_a_later_stream_supersedes_an_earlier_one(store: BlobStore) -> None:
    """Whose end nobody has noticed yet; what it still brings changes nothing. It must be of the same blob."""
    late = store.start_upload(blob(), 0.0)
    late.write(chunk(b"ab"))
    now = store.start_upload(blob(), 0.0)
    for act in (lambda: late.write(chunk(b"xx", 2)), lambda: late.finish(0.0)):
        with pytest.raises(DeliveryError) as caught:
            act()
        assert caught.value.reason == "SUPERSEDED"
    late.end(0.0)
    now.write(chunk(b"cdef", 2))
    for other in (blob(size=5), blob(dtype="x")):
        with pytest.raises(DeliveryError) as caught:
            store.start_upload(other, 0.0)
        assert caught.value.reason == "BLOB_EXISTS"
    now.finish(0.0)
    now.end(0.0)
    with pytest.raises(DeliveryError) as caught:
        store.start_upload(blob(size=5), 0.0)
    assert caught.value.reason == "BLOB_EXISTS"
    taken = store.take("a", 0.0)
    assert load(taken).parts == (b"abcdef",)
    taken.close()


def test_an_upload_that_broke_off_makes_room(store: BlobStore) -> None:
    """For an upload or a result that needs it, and after ten minutes; one that is under way does not."""
    assert offset_of(store, blob(size=100), chunk(b"a")) == 1
    upload(store, blob("b", size=60), chunk(bytes(60)))
    assert offset_of(store, blob(size=90)) == 0
    assert offset_of(store, blob(size=90), chunk(b"a")) == 1
    store.add(result(70), 0.0, "r")
    assert offset_of(store, blob(size=20), chunk(b"a")) == 1
    store.expire(TIME_TO_LIVE + 1)
    assert store.size == 0
    running = store.start_upload(blob(size=100), 0.0)
    running.write(chunk(b"a"))
    store.expire(TIME_TO_LIVE + 1)
    with pytest.raises(DeliveryError, match="--store-limit"):
        upload(store, blob("b", size=60))
    running.end(0.0)


def result(size: int) -> Stored:
    return save(Encoded(Codec.TEXT, (bytes(size),)))


def test_results_make_room_by_dropping_older_results(store: BlobStore) -> None:
    """The oldest results go; uploads stay."""
    upload(store, blob("up"), chunk(b"abcdef"))
    store.add(result(70), 0.0, "one")
    store.add(result(70), 1.0, "two")
    store.add(result(70), 2.0, "three")
    for blob_id, there in (("up", True), ("one", False), ("two", True), ("three", True)):
        if there:
            os.close(store.open(blob_id, 2.0)[1])
        else:
            with pytest.raises(DeliveryError):
                store.open(blob_id, 2.0)


def test_unused_blobs_expire_and_used_ones_stay(store: BlobStore) -> None:
    """Ten minutes without use; reading is use."""
    store.add(result(1), 0.0, "read")
    store.add(result(1), 0.0, "forgotten")
    os.close(store.open("read", TIME_TO_LIVE - 1)[1])
    store.expire(TIME_TO_LIVE + 1)
    assert len(store) == 1
    os.close(store.open("read", TIME_TO_LIVE + 1)[1])


def test_large_files_are_given_back_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes back a gigabyte's pages in 0.15 s; those of small ones are not worth a thread."""
    closed_by: dict[int, threading.Thread] = {}
    monkeypatch.setattr(os, "close", lambda fd: closed_by.setdefault(fd, threading.current_thread()))
    close_file(-2, 1 << 20)
    close_file(-3, 1 << 30)
    for thread in threading.enumerate():
        if thread.name == "enginery-close":
            thread.join()
    assert closed_by[-2] is threading.current_thread()
    assert closed_by[-3].name == "enginery-close"


def test_a_file_shorter_than_it_says_is_an_error() -> None:
    """A kernel may cut the file that it handed over."""
    stored = save(Encoded(Codec.TEXT, (b"abc",)))
    os.ftruncate(stored.fd, 1)
    with pytest.raises(DeliveryError, match="shorter"):
        load(stored)
    stored.close()


def test_chunks_cover_the_rest() -> None:
    """From any offset, without gaps, of one size."""
    assert list(read_chunks(2 * SIZE + 1, 0)) == [(0, SIZE), (SIZE, SIZE), (2 * SIZE, 1)]
    assert list(read_chunks(10, 4)) == [(4, 6)]
    assert list(read_chunks(10, 10)) == []


def test_a_blob_is_shared_without_a_copy(store: BlobStore) -> None:
    """Other stores take it in the same file, which nobody can change then; one that has no room does not."""
    upload(store, blob(), chunk(b"abcdef"))
    roomy, partial, full, again = BlobStore(1), BlobStore(2), BlobStore(3, value_limit=5), BlobStore(4)
    assert offset_of(partial, blob(), chunk(b"ab")) == 2
    upload(again, blob(), chunk(b"abcdef"))
    assert store.share("a", [roomy, partial, full, again], 0.0) == [roomy, partial, again]
    taken = [one.take("a", 0.0) for one in (store, roomy, partial, again)]
    assert [load(one).parts for one in taken] == [(b"abcdef",)] * 4
    assert len({os.fstat(one.fd).st_ino for one in taken[:3]}) == 1
    with pytest.raises(PermissionError):
        os.pwrite(taken[0].fd, b"x", 0)
    for one in taken:
        one.close()
    assert [one.size for one in (store, roomy, partial, full, again)] == [0] * 5
