"""How the C library keeps memory that was given back, in processes that pass on large values."""

from __future__ import annotations

import ctypes
import functools
import os

_KEPT = 8 << 20  # in each arena of threads
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


@functools.cache
def keep_freed() -> None:
    """Keep up to 8 MiB of what is freed for the next value, where the C library is glibc and the user has not
    set by the environment what it keeps.

    As it is, the library gives each buffer of 1 MiB back to the system, which then makes every page of the next
    one anew: a third of the CPU time of a transfer.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_MMAP_THRESHOLD, _KEPT)
