"""Values too large for a frame: anonymous files, handed over by descriptor."""

from __future__ import annotations

import fcntl
import mmap
import os
import sys

from enginery._encoded import Encoded, Stored


def store(value: Encoded) -> Stored:
    """Write a value to an anonymous file that nobody can change any more."""
    fd = _open()
    try:
        for part in value.parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[os.write(fd, view) :]
        if sys.platform == "linux":
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    sizes = tuple(memoryview(part).nbytes for part in value.parts)
    return Stored(value.codec, fd, sizes, value.python_version, value.dtype, value.shape, value.fortran_order)


def _open() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("enginery-value", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def load(stored: Stored) -> Encoded:
    """Map a stored value, and close its file. Its parts can be written to; that changes our copy alone."""
    parts: list[memoryview] = []
    if stored.size:
        view = memoryview(mmap.mmap(stored.fd, stored.size, access=mmap.ACCESS_COPY))
        position = 0
        for size in stored.part_sizes:
            parts.append(view[position : position + size])
            position += size
    else:
        parts = [memoryview(bytearray()) for _ in stored.part_sizes]
    stored.close()
    return Encoded(
        stored.codec,
        tuple(parts),
        stored.python_version,
        stored.dtype,
        stored.shape,
        stored.fortran_order,
    )
