"""A value in one codec, as plain bytes: what kernel, host and client exchange without protobuf or pickle."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

MAX_PROPERTIES = 1 << 20
"""Bytes of all keys and values of an engine's properties, since they travel together with every change."""


class Codec(enum.IntEnum):
    """Names of the forms of a value, with the contract's numbers."""

    PICKLE = 1
    JSON = 2
    TEXT = 3
    NDARRAY = 4


Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)  # nobody changes one; a frozen one takes a microsecond more, and each call has some
class Encoded:
    """One encoded value.

    `parts` holds, for PICKLE, the pickle and then its out-of-band buffers; for JSON and TEXT, UTF-8; for
    NDARRAY, the elements. `python_version` is set for PICKLE; `dtype`, `shape` and `fortran_order` for NDARRAY.
    """

    codec: Codec
    parts: tuple[Buffer, ...]
    python_version: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran_order: bool = False

    @property
    def size(self) -> int:
        """Length of the whole in bytes."""
        total = 0
        for part in self.parts:
            total += part.nbytes if isinstance(part, memoryview) else len(part)
        return total


@dataclass(slots=True, eq=False)
class Stored:
    """One encoded value whose bytes lie in an anonymous file instead: the parts, one after the other.

    The file descriptor belongs to this object; `close()` gives it back. Fields as in `Encoded`.
    """

    codec: Codec
    fd: int
    part_sizes: tuple[int, ...]
    python_version: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran_order: bool = False

    @property
    def size(self) -> int:
        """Length of the whole in bytes."""
        return sum(self.part_sizes)

    def close(self) -> None:
        """Close the file; the second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
