"""A slow and lossy link between two network namespaces: every IP packet is delayed, and some are lost.

    python -m tests.e2e.packet_link PID ADDRESS PID ADDRESS DELAY LOSS

Each end is a TUN device in the network namespace of a process, so what the link does happens below TCP, and
the system's own TCP has to mend it. The device is named after the other end. A line on standard input is the
loss from there on, answered by how many packets were carried and lost until then. The end of input ends it all.
"""

from __future__ import annotations

import collections
import ctypes
import fcntl
import os
import random
import selectors
import struct
import subprocess
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET = 2_048  # bytes; the device's own limit is 1,500
_QUEUE = 1_000  # packets on their way in one direction; one more is lost, as in any router
_libc = ctypes.CDLL(None, use_errno=True)


class Direction:
    """Packets on their way from one end to the other."""

    def __init__(self, source: int, target: int) -> None:
        """Take the descriptors of the two devices."""
        self.source, self._target = source, target
        self._on_the_way: collections.deque[tuple[float, bytes]] = collections.deque()

    def has_room(self) -> bool:
        """Return whether one more packet fits."""
        return len(self._on_the_way) < _QUEUE

    def put(self, arrival: float, packet: bytes) -> None:
        """Let a packet arrive at that time."""
        self._on_the_way.append((arrival, packet))

    def deliver(self, now: float) -> float | None:
        """Deliver what has arrived; return when the next will, None if nothing is on its way."""
        while self._on_the_way and self._on_the_way[0][0] <= now:
            os.write(self._target, self._on_the_way.popleft()[1])
        return self._on_the_way[0][0] if self._on_the_way else None


def open_end(pid: int, address: str, other: str) -> int:
    """Return the descriptor of a new device in the network namespace of `pid`, up and with its address."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter the network of process {pid}")
    os.close(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    name = f"to-{other}"
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "address", "add", address, "peer", other, "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return device


def carry(ends: tuple[int, int], delay: float, loss: float) -> None:
    """Carry packets both ways until standard input ends."""
    chance = random.Random(1)
    directions = (Direction(*ends), Direction(*reversed(ends)))
    carried = lost = 0
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        for direction in directions:
            selector.register(direction.source, selectors.EVENT_READ, direction)
        while True:
            now = time.monotonic()
            due = [at for direction in directions if (at := direction.deliver(now)) is not None]
            for key, _ in selector.select(max(0.0, min(due) - now) if due else None):
                if key.data is None:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    loss = float(line)
                    print(carried, lost, flush=True)
                    continue
                packet = os.read(key.data.source, _PACKET)
                if chance.random() < loss or not key.data.has_room():
                    lost += 1
                else:
                    carried += 1
                    key.data.put(time.monotonic() + delay, packet)


def main() -> None:
    """Open both ends, say so by a line, and carry."""
    first_pid, first, second_pid, second, delay, loss = sys.argv[1:]
    ends = open_end(int(first_pid), first, second), open_end(int(second_pid), second, first)
    print("up", flush=True)
    carry(ends, float(delay), float(loss))


if __name__ == "__main__":
    main()
