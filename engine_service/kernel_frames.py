"""How messages lie on the socket between host and kernel. No asyncio, gRPC, protobuf or pickle.

A frame is a fixed header, the lengths of its raw parts, a JSON part that says what they mean, and the parts.
File descriptors come by SCM_RIGHTS. A short frame is a header and bytes (`kernel_short`). What does not fit the
bounds raises `WireError` before it takes memory. Uses `_socket`, since `socket` takes a tenth of a
kernel's start.
"""

from __future__ import annotations

import _socket
import json
import os
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from enginery._encoded import Buffer

MAX_FDS = 250  # of one frame; Linux passes 253 at a time
MAX_META = 16 << 20
MAX_PARTS = 1 << 16
MAX_PARTS_SIZE = 64 << 20
MAX_SHORT = 64 << 10  # of a short frame, its header included
SHORT_MAGIC = 0x53474E45
SHORT_HEADER = struct.Struct("<II")  # magic, number of bytes that follow
_MAGIC = 0x474E4531
_HEADER = struct.Struct("<IIII")  # magic, length of the JSON part, number of parts, number of descriptors
_READ_SIZE = 64 << 10
_ANCILLARY = _socket.CMSG_SPACE(MAX_FDS * struct.calcsize("i"))
_to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder each time
_from_json = json.JSONDecoder().decode


class WireError(Exception):
    """The other side sent what the protocol forbids."""


@dataclass(slots=True)
class Frame:
    """One message. Its descriptors belong to whoever holds it."""

    meta: dict[str, object]
    parts: Sequence[Buffer] = ()
    fds: Sequence[int] = ()

    def pack(self) -> list[Buffer]:
        """Return the bytes of the frame; WireError if it is over a bound."""
        meta = _to_json(self.meta).encode()
        sizes = [part.nbytes if isinstance(part, memoryview) else len(part) for part in self.parts]
        _check(len(meta), len(sizes), len(self.fds))
        _check_sizes(sizes)
        head = _HEADER.pack(_MAGIC, len(meta), len(sizes), len(self.fds)) + struct.pack(
            f"<{len(sizes)}Q", *sizes
        )
        return [head + meta, *(part for part, size in zip(self.parts, sizes, strict=True) if size)]

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


def _check(meta: int, parts: int, fds: int) -> None:
    if meta > MAX_META or parts > MAX_PARTS or fds > MAX_FDS:
        raise WireError(f"a frame of {meta} bytes of text, {parts} parts and {fds} files is over the bounds")


def _check_sizes(sizes: Sequence[int]) -> int:
    """Return the sum."""
    total = sum(sizes)
    if total > MAX_PARTS_SIZE:
        raise WireError(f"parts of {total} bytes are over the bound of {MAX_PARTS_SIZE}")
    return total


class FrameReader:
    """Cuts what arrives into frames. Keeps at most one frame's worth and its descriptors."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._data = bytearray()
        self._start = 0  # of what was not taken
        self._fds: list[int] = []

    def receive(self, sock: _socket.socket, how: int = 0) -> bool:
        """Take in what one read with these flags gives; False at the end. WireError, and as `recvmsg`."""
        data, ancillary, flags, _ = sock.recvmsg(_READ_SIZE, _ANCILLARY, how)
        for level, kind, content in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds = array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                for fd in fds:
                    os.set_inheritable(fd, False)
                self._fds.extend(fds)
        if flags & _socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise WireError("more files than a frame may carry")
        self._drop_taken()
        self._data += data
        return bool(data)

    def _drop_taken(self) -> None:
        if self._start:
            del self._data[: self._start]
            self._start = 0

    def take(self) -> Frame | bytes | None:
        """Return the next complete frame, None if there is none yet. WireError if it cannot be one.

        A short frame is returned as it is.
        """
        data, start = self._data, self._start
        if len(data) - start < SHORT_HEADER.size:
            return None
        magic, size = SHORT_HEADER.unpack_from(data, start)
        if magic != SHORT_MAGIC:
            return self._take_long()
        if size > MAX_SHORT:
            raise WireError(f"a short frame of {size} bytes")
        end = start + SHORT_HEADER.size + size
        if len(data) < end:
            return None
        short = bytes(data[start:end])
        self._start = end
        return short

    def _take_long(self) -> Frame | None:
        self._drop_taken()
        data = self._data
        if len(data) < _HEADER.size:
            return None
        magic, meta_size, part_count, fd_count = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise WireError(f"a frame begins with {bytes(data[:4])!r}")
        _check(meta_size, part_count, fd_count)
        start = _HEADER.size + 8 * part_count
        if len(data) < start:
            return None
        sizes = struct.unpack_from(f"<{part_count}Q", data, _HEADER.size)
        position = start + meta_size
        end = position + _check_sizes(sizes)
        if len(data) < end:
            return None
        if len(self._fds) < fd_count:
            raise WireError(f"a frame speaks of {fd_count} files and brings {len(self._fds)}")
        try:
            meta = _from_json(str(data[start:position], "utf-8"))
        except (ValueError, RecursionError) as error:
            raise WireError(f"the text of a frame is no JSON: {error}") from error
        if not isinstance(meta, dict):
            raise WireError("the text of a frame is no JSON object")
        parts: list[Buffer] = []
        for size in sizes:
            parts.append(data[position : position + size])  # a bytearray: arrays made of it are writable
            position += size
        del data[:end]
        fds, self._fds = self._fds[:fd_count], self._fds[fd_count:]
        return Frame(meta, parts, fds)

    def close(self) -> None:
        """Close descriptors that no frame claimed, and forget the rest."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._data.clear()
        self._start = 0


def rest(buffers: Iterable[Buffer], sent: int) -> list[memoryview]:
    """Return what remains of `buffers` after the first `sent` bytes."""
    remaining: list[memoryview] = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        if sent < view.nbytes:
            remaining.append(view[sent:])
        sent = max(0, sent - view.nbytes)
    return remaining


def send(sock: _socket.socket, frame: Frame | bytes) -> None:
    """Send a whole frame on a blocking socket."""
    if isinstance(frame, bytes):
        sock.sendall(frame)
        return
    buffers: list[Buffer] = frame.pack()
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", frame.fds))] if frame.fds else []
    sent = sock.sendmsg(buffers[:_MAX_VECTOR], ancillary)
    while remaining := rest(buffers, sent):
        buffers = list(remaining)
        sent = sock.sendmsg(buffers[:_MAX_VECTOR])


_MAX_VECTOR = 512  # buffers of one sendmsg; the system's limit is 1,024
