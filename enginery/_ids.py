"""Ids of sessions, operations and kernels. No I/O but randomness and the clock.

An operation id is a UUIDv8 (RFC 9562): its first 8 bytes are the session's prefix, its last 8 a counter. So a
stream of one session needs to carry the counter alone, and duplicates can be told by one bitmap a session.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
import uuid

_VERSION = 0x8000  # in the prefix: the four bits that say "version 8"
_VARIANT = 1 << 63  # in the counter half: the two bits that say "RFC 9562"
_COUNTER = (1 << 62) - 1


def new_session_id() -> bytes:
    """Return 8 bytes: 40 bits of time in 1/16 s, random bits, and the UUID version in its place."""
    clock = (time.time_ns() // 62_500_000) & 0xFF_FFFF_FFFF
    value = clock << 24 | int.from_bytes(os.urandom(3), "big")
    return ((value & ~0xF000) | _VERSION).to_bytes(8, "big")


def operation_id(session_id: bytes, counter: int) -> bytes:
    """Return the 16-byte id of operation number `counter` (below 2^62) of a session."""
    return session_id + (_VARIANT | counter & _COUNTER).to_bytes(8, "big")


def attempt_id(task_id: bytes, attempt: int) -> bytes:
    """Return the operation id of a task's attempt, counted from 1: the first has the task's own."""
    if attempt == 1:
        return task_id
    return hashlib.blake2b(task_id + attempt.to_bytes(4, "big"), digest_size=16).digest()


class OperationIds:
    """Mints the operation ids of one session. Safe to use from several threads."""

    def __init__(self, session_id: bytes | None = None) -> None:
        """Mint for `session_id`, by default a new one."""
        self.session_id = session_id or new_session_id()
        self._counter = itertools.count(1)

    def mint(self) -> bytes:
        """Return the next id, 16 bytes."""
        return operation_id(self.session_id, next(self._counter))


def show(operation: bytes) -> str:
    """Return an operation id as people read it; an empty one gives an empty text."""
    digits = operation.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}" if operation else ""


def parse(text: str) -> bytes:
    """Return the 16 bytes of an operation id that a person wrote; ValueError if it is not a UUID."""
    if not isinstance(text, str):
        raise TypeError(f"an operation's id is text, not {type(text).__name__}")
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise ValueError(f"{text!r} is not an operation's id: that is a UUID") from None


def new_incarnation() -> str:
    """Return the id of a new kernel, a random UUID."""
    return str(uuid.uuid4())
