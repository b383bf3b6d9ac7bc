"""What the kernel does to its own process before user code runs in it."""

from __future__ import annotations

import builtins
import faulthandler
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_IONBF = 2


def prepare(host_pid: int) -> None:
    """Tie the process to its host, and make its output arrive in the order in which it is written."""
    if sys.platform == "linux":
        _call_libc()
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"1000")  # it is killed before its host is
        os.close(fd)
    if os.getppid() != host_pid:
        sys.exit("the host has gone")
    faulthandler.enable()  # a segfault says on stderr where it was
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    builtins.input = _no_input
    sys.argv = [""]
    sys.path.insert(0, "")  # as in an interactive Python; started with -P, so that no file there shadows ours


def _call_libc() -> None:
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # else an orphan runs on beside its successor
    for name in ("stdout", "stderr"):
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, _IONBF, 0)


def _no_input(prompt: object = "", /) -> str:
    raise EOFError("input() has nobody to ask on an engine: push the value into the namespace instead")


def flush() -> None:
    """Flush what stands for stdout and stderr; where user code put something else there, it may refuse."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: S112  # closed, deleted, None, or an object of the user's own
            continue
