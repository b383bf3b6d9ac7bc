"""A relay of TCP connections that counts bytes, and breaks connections at chosen counts.

    python -m tests.e2e.cutting_relay TARGET

A process of its own, since Python's threads would hold up the client beside them. It prints the address
at which it listens. `up 100 200` on standard input breaks the connection over which the 100th, and later
the 200th, byte comes from clients; `down` counts what comes from the target. `count` is answered by the
bytes that came `up` and `down` since the last line, and by how many connections are still to be broken.
The end of standard input ends it all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
from typing import Self

_PIECE = 1 << 20


class CuttingRelay:
    """The process; a context manager."""

    def __init__(self, target: str) -> None:
        """Relay to `target`, as `host:port`."""
        command = [sys.executable, "-m", "tests.e2e.cutting_relay", target]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._read()

    def __enter__(self) -> Self:
        """Do nothing: it runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()

    def cut_after(self, direction: str, *counts: int) -> None:
        """Count anew, and break the connection over which the last of so many bytes comes."""
        self._write(" ".join([direction, *map(str, counts)]))
        self._read()

    def count(self) -> dict[str, int]:
        """Return the bytes that came `up` and `down`, and how many cuts are `left`; and count anew."""
        self._write("count")
        return dict(zip(("up", "down", "left"), map(int, self._read().split()), strict=True))

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class _Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = {"up": 0, "down": 0}
        self._direction = ""
        self._cuts: list[int] = []

    def cut(self, direction: str, counts: list[int]) -> None:
        with self._lock:
            self._moved = {"up": 0, "down": 0}
            self._direction, self._cuts = direction, counts

    def report(self) -> str:
        with self._lock:
            moved, self._moved = self._moved, {"up": 0, "down": 0}
            return f"{moved['up']} {moved['down']} {len(self._cuts)}"

    def breaks(self, direction: str, size: int) -> bool:
        """Count bytes and return whether their connection is to break."""
        with self._lock:
            self._moved[direction] += size
            if self._cuts and direction == self._direction and self._moved[direction] >= self._cuts[0]:
                del self._cuts[0]
                return True
        return False


def _pass_on(counter: _Counter, direction: str, source: socket.socket, target: socket.socket) -> None:
    read, write = os.pipe()  # the bytes stay in the system
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIECE)
    with contextlib.suppress(OSError):
        while size := os.splice(source.fileno(), write, _PIECE):
            if counter.breaks(direction, size):
                break
            while size:
                size -= os.splice(read, target.fileno(), size)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    os.close(read)
    os.close(write)


def _accept(listener: socket.socket, target: tuple[str, int], counter: _Counter) -> None:
    while True:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(target)
        except ConnectionRefusedError:  # it does not listen yet
            near.close()
            continue
        for pair in (("up", near, far), ("down", far, near)):
            threading.Thread(target=_pass_on, args=(counter, *pair), daemon=True).start()


def main(target: str) -> None:
    """Relay until standard input ends."""
    host, port = target.rsplit(":", 1)
    listener, counter = socket.create_server(("127.0.0.1", 0)), _Counter()
    threading.Thread(target=_accept, args=(listener, (host, int(port)), counter), daemon=True).start()
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    for line in sys.stdin:
        command, *counts = line.split()
        if command == "count":
            print(counter.report(), flush=True)
        else:
            counter.cut(command, [int(count) for count in counts])
            print("counting", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
