"""Values too large to ride in a call, held outside the kernel in anonymous files.

Bookkeeping is done on the event loop and takes no lock; `save` may run in a thread. Time is an argument.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginery import _pieces, _values
from enginery._encoded import Encoded, Stored
from enginery._engine import DEFAULT_VALUE_LIMIT, MAX_CHUNK
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from enginery._encoded import Buffer
    from enginery._pieces import Piece
    from enginery.v1 import value_pb2

logger = logging.getLogger(__name__)

TIME_TO_LIVE = 600.0
"""Seconds for which an unused blob is kept."""
MAX_BLOBS = 1_000
"""Blobs of one engine at a time; each holds a file descriptor."""
_LARGE = 16 << 20  # bytes of a file that takes milliseconds to give back


def anonymous_file() -> int:
    """Return a new file without a name, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("enginery", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _seal(fd: int) -> None:
    """Let nobody change the bytes of a file any more, where the system can do that."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)


def close_file(fd: int, size: int) -> None:
    """Close an anonymous file of `size` bytes; a large one in a thread, since the system may have its pages to
    take back, 0.15 s for a gigabyte."""
    if size < _LARGE:
        os.close(fd)
    else:
        threading.Thread(target=os.close, args=(fd,), name="enginery-close").start()


def save(value: Encoded) -> Stored:
    """Write the bytes of `value` to an anonymous file. Takes time in proportion to its size."""
    fd = anonymous_file()
    try:
        for part in value.parts:
            _write_all(fd, part)
    except BaseException:
        os.close(fd)
        raise
    return Stored(
        codec=value.codec,
        fd=fd,
        part_sizes=tuple(memoryview(part).nbytes for part in value.parts),
        python_version=value.python_version,
        dtype=value.dtype,
        shape=value.shape,
        fortran_order=value.fortran_order,
    )


def load(value: Stored) -> Encoded:
    """Read the bytes of `value` back; BAD_VALUE if the file is shorter than it says."""
    parts: list[Buffer] = []
    offset = 0
    for size in value.part_sizes:
        parts.append(_read_all(value.fd, size, offset))
        offset += size
    return Encoded(
        value.codec,
        tuple(parts),
        python_version=value.python_version,
        dtype=value.dtype,
        shape=value.shape,
        fortran_order=value.fortran_order,
    )


def _write_all(fd: int, part: Buffer) -> None:
    view = memoryview(part).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def _read_all(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise DeliveryError("BAD_VALUE", field="blob", cause="its file is shorter than it says")
        data += more
    return data


@dataclass(slots=True, eq=False)
class _Held:
    value: Stored
    used_at: float
    is_result: bool  # made by the engine, so it may be dropped to make room


class BlobStore:
    """The blobs of one engine. Uploads that do not fit are refused; results drop older results to make room.

    An upload that breaks off is kept as long as an unused blob, unless another needs its room.
    """

    def __init__(
        self, engine_id: int = -1, value_limit: int = DEFAULT_VALUE_LIMIT, store_limit: int | None = None
    ) -> None:
        """Take the largest value, and the largest sum of all (by default twice that), in bytes."""
        self.engine_id = engine_id
        self._value_limit = value_limit
        self._store_limit = 2 * value_limit if store_limit is None else store_limit
        self._held: dict[str, _Held] = {}
        self._incoming: dict[str, Incoming] = {}  # not whole yet; each has its room
        self._size = 0

    def __len__(self) -> int:
        """Return how many blobs are held."""
        return len(self._held)

    @property
    def size(self) -> int:
        """Bytes held, with those reserved for uploads."""
        return self._size

    def start_upload(self, blob: value_pb2.Blob, now: float) -> Upload:
        """Reserve room for an upload, or go on with one that broke off; the caller must `end` it.

        What is there already, part of it or all, need not be sent again. A stream that still brings it is
        superseded: it may be one whose end nobody has noticed yet.
        """
        _values.check_blob(blob)
        self.expire(now)
        incoming = self._incoming.get(blob.blob_id)
        if incoming is None:
            incoming = self._find_whole(blob, now) or self._reserve(blob, now)
        elif incoming.blob != blob:
            raise DeliveryError("BLOB_EXISTS", blob_id=blob.blob_id)
        return Upload(self, incoming)

    def _find_whole(self, blob: value_pb2.Blob, now: float) -> Incoming | None:
        held = self._held.get(blob.blob_id)
        if held is None:
            return None
        if held.is_result or _values.describe(blob.blob_id, held.value) != blob:
            raise DeliveryError("BLOB_EXISTS", blob_id=blob.blob_id)
        held.used_at = now
        return Incoming(blob, fd=-1, received=blob.size)

    def _reserve(self, blob: value_pb2.Blob, now: float) -> Incoming:
        if blob.size > self._value_limit:
            raise DeliveryError(
                "VALUE_TOO_LARGE", size=blob.size, limit=self._value_limit, option="--value-limit"
            )
        self._drop_broken_off(blob.size)
        if not self._fits(blob.size):
            raise DeliveryError(
                "VALUE_TOO_LARGE",
                size=f"{self._size + blob.size} (with what is stored, {len(self._held)} blobs)",
                limit=self._store_limit,
                option=f"--store-limit (and {MAX_BLOBS} blobs)",
            )
        incoming = Incoming(blob, anonymous_file(), used_at=now)
        self._incoming[blob.blob_id] = incoming
        self._size += blob.size
        return incoming

    def _fits(self, size: int) -> bool:
        return self._size + size <= self._store_limit and len(self._held) + len(self._incoming) < MAX_BLOBS

    def _drop_broken_off(self, size: int) -> None:
        """Drop uploads that nobody brings now, the oldest first, until `size` bytes fit."""
        for incoming in [one for one in self._incoming.values() if one.upload is None]:
            if self._fits(size):
                return
            self.drop_upload(incoming)

    def drop_upload(self, incoming: Incoming) -> None:
        """Give up an upload that is not whole."""
        if self._incoming.get(incoming.blob.blob_id) is incoming:
            del self._incoming[incoming.blob.blob_id]
            self._size -= incoming.blob.size
            close_file(incoming.fd, incoming.received)
            incoming.upload = None

    def keep_upload(self, incoming: Incoming, now: float) -> None:
        """Make the blob of an upload that is whole; once it is one this does nothing."""
        if self._incoming.get(incoming.blob.blob_id) is incoming:
            del self._incoming[incoming.blob.blob_id]
            value = _values.stored(incoming.blob, incoming.fd)
            self._held[incoming.blob.blob_id] = _Held(value, now, is_result=False)
            incoming.upload = None

    def add(self, value: Stored, now: float, blob_id: str) -> None:
        """Keep a result, which then belongs to the store, and drop older results if there is no room."""
        self.expire(now)
        self._drop_broken_off(value.size)
        while not self._fits(value.size):
            oldest = next((key for key, held in self._held.items() if held.is_result), None)
            if oldest is None:
                break  # only uploads are left, and they have limits of their own
            self.release(oldest)
        self._size += value.size
        self._held[blob_id] = _Held(value, now, is_result=True)

    def take(self, blob_id: str, now: float) -> Stored:
        """Hand over an uploaded blob to the call that consumes it; BLOB_NOT_FOUND if it is not there."""
        self.expire(now)
        held = self._held.pop(blob_id, None)
        if held is None:
            raise self._not_found(blob_id)
        self._size -= held.value.size
        return held.value

    def open(self, blob_id: str, now: float) -> tuple[value_pb2.Blob, int]:
        """Return the description of a blob and a file of its bytes, which the caller closes."""
        self.expire(now)
        held = self._held.get(blob_id)
        if held is None:
            raise self._not_found(blob_id)
        held.used_at = now
        return _values.describe(blob_id, held.value), os.dup(held.value.fd)

    def share(self, blob_id: str, others: Iterable[BlobStore], now: float) -> list[BlobStore]:
        """Give a blob to other stores, without a copy of its bytes; return those that took it."""
        blob, fd = self.open(blob_id, now)
        took: list[BlobStore] = []
        try:
            _seal(fd)
            for store in others:
                try:
                    upload = store.start_upload(blob, now)
                    upload.use_file(fd)
                    upload.finish(now)
                except DeliveryError as error:
                    logger.info("engine %d does not take a value for several: %s", store.engine_id, error.text)
                else:
                    took.append(store)
        finally:
            os.close(fd)
        return took

    def find(self, blob_id: str, now: float) -> value_pb2.Blob | None:
        """Return the description of a blob, which is kept for another while; None if it is not there."""
        held = self._held.get(blob_id)
        if held is None:
            return None
        held.used_at = now
        return _values.describe(blob_id, held.value)

    def release(self, blob_id: str) -> None:
        """Drop a blob, if it is there."""
        held = self._held.pop(blob_id, None)
        if held is not None:
            self._size -= held.value.size
            close_file(held.value.fd, held.value.size)
            held.value.fd = -1

    def expire(self, now: float) -> None:
        """Drop what was not used for ten minutes."""
        for blob_id in [key for key, held in self._held.items() if now - held.used_at > TIME_TO_LIVE]:
            self.release(blob_id)
        for incoming in [one for one in self._incoming.values() if now - one.used_at > TIME_TO_LIVE]:
            if incoming.upload is None:
                self.drop_upload(incoming)

    def close(self) -> None:
        """Drop everything."""
        for blob_id in list(self._held):
            self.release(blob_id)
        for incoming in list(self._incoming.values()):
            self.drop_upload(incoming)

    def _not_found(self, blob_id: str) -> DeliveryError:
        return DeliveryError("BLOB_NOT_FOUND", blob_id=blob_id, engine_id=self.engine_id)


@dataclass(slots=True, eq=False)
class Incoming:
    """A blob that is not whole yet. It outlives the stream that brings it."""

    blob: value_pb2.Blob
    fd: int
    received: int = 0
    """How many bytes of it are there, from its beginning."""
    used_at: float = 0.0
    upload: Upload | None = None
    """The stream that brings it now."""


class Upload:
    """A stream that brings a blob, or the rest of one."""

    def __init__(self, store: BlobStore, incoming: Incoming) -> None:
        """Supersede the stream that brought it before; made by `BlobStore.start_upload`."""
        self._store = store
        self._incoming = incoming
        self._is_refused = False
        incoming.upload = self

    def write(self, piece: Piece) -> None:
        """Append the next piece, of at most 1 MiB: short enough for the event loop. What is there stays."""
        incoming, offset, data = self._incoming, piece.offset, piece.data
        if incoming.upload is not self:
            raise DeliveryError("SUPERSEDED")
        if not 1 <= len(data) <= MAX_CHUNK:
            raise self._refuse("data", f"a chunk has 1 to {MAX_CHUNK} bytes, not {len(data)}")
        if offset > incoming.received:
            raise self._refuse("offset", f"{offset} came, {incoming.received} is next")
        if offset + len(data) > incoming.blob.size:
            raise self._refuse("data", f"it goes past the blob's {incoming.blob.size} bytes")
        piece.check(incoming.blob.blob_id)
        known = incoming.received - offset
        if known < len(data):
            _write_all(incoming.fd, memoryview(data)[known:] if known else data)
            incoming.received = offset + len(data)

    def use_file(self, fd: int) -> None:
        """Use the whole file of another store, whose seal keeps the kernels that get it from changing it."""
        incoming = self._incoming
        if incoming.received < incoming.blob.size:
            os.close(incoming.fd)
            incoming.fd, incoming.received = os.dup(fd), incoming.blob.size

    def finish(self, now: float) -> value_pb2.Blob:
        """Put the blob into the store and return its description; UPLOAD_INCOMPLETE if bytes are missing."""
        incoming = self._incoming
        if incoming.upload is not self:
            raise DeliveryError("SUPERSEDED")
        if incoming.received != incoming.blob.size:
            raise DeliveryError(
                "UPLOAD_INCOMPLETE",
                blob_id=incoming.blob.blob_id,
                offset=incoming.received,
                size=incoming.blob.size,
            )
        self._store.keep_upload(incoming, now)
        return incoming.blob

    def end(self, now: float) -> None:
        """Note that the stream is over. What it brought is kept for the next, unless it was refused."""
        incoming = self._incoming
        if incoming.upload is not self:
            return
        if self._is_refused or not incoming.received:
            self._store.drop_upload(incoming)
        incoming.upload, incoming.used_at = None, now

    def _refuse(self, field: str, cause: str) -> DeliveryError:
        self._is_refused = True
        return DeliveryError("BAD_REQUEST", field=f"{field} of blob {self._incoming.blob.blob_id}", cause=cause)


def new_blob_id() -> str:
    """Return an id for a result."""
    return uuid.uuid4().hex


def read_chunks(size: int, offset: int) -> Iterable[tuple[int, int]]:
    """Return offset and length of each chunk from `offset` to the end of `size` bytes."""
    return ((start, min(_pieces.SIZE, size - start)) for start in range(offset, size, _pieces.SIZE))
