"""The host's end of the socket to a kernel: sends without waiting, and in as few pieces as there can be."""

from __future__ import annotations

import array
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from engine_service.kernel_frames import FrameReader, WireError, rest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from engine_service.kernel_frames import Frame
    from enginery._encoded import Buffer

_MAX_VECTOR = 512  # buffers of one sendmsg


class KernelSocket:
    """A stream socket on an event loop. Frames go in order; what it does not take at once follows by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        """Take over a connected socket."""
        self.fd = sock.fileno()
        self.reader = FrameReader()
        self._loop = loop
        self._socket = sock
        self._socket.setblocking(False)
        self._unsent: list[Buffer] = []
        self._unsent_size = 0
        self._sending: asyncio.Task[None] | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether it did not take all that was sent, and does not yet."""
        return self._sending is not None and not self._sending.done()

    def follow(self, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever there is something to read, until `unfollow`."""
        self._loop.add_reader(self.fd, on_readable)

    def unfollow(self) -> None:
        """Call it no more."""
        self._loop.remove_reader(self.fd)

    def receive(self) -> bool:
        """Let `reader` take in what is there; False at the end. WireError, and as `recvmsg`."""
        return self.reader.receive(self._socket)

    def end(self) -> None:
        """Send no more, which tells the other side to end. OSError if it has."""
        self._socket.shutdown(socket.SHUT_WR)

    def put(self, frame: Frame | bytes) -> int:
        """Send a frame with the next `flush`, at once if it brings files; return its size."""
        if isinstance(frame, bytes):
            self._unsent.append(frame)
            self._unsent_size += len(frame)
            return len(frame)
        buffers: list[Buffer] = frame.pack()
        size = sum(buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers)
        if frame.fds:
            self.flush()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", frame.fds))]
            self._send_what_fits(buffers, size, ancillary)
        else:
            self._unsent += buffers
            self._unsent_size += size
        return size

    def flush(self) -> None:
        """Send what was put, unless it is closed."""
        if self._unsent and self._socket.fileno() >= 0:
            buffers, size = self._unsent, self._unsent_size
            self._unsent, self._unsent_size = [], 0
            self._send_what_fits(buffers, size)

    def _send_what_fits(
        self, buffers: list[Buffer], size: int, ancillary: Iterable[tuple[int, int, array.array[int]]] = ()
    ) -> None:
        """Send as much as the socket takes at once, and the rest as soon as it does."""
        try:
            sent = self._socket.sendmsg(buffers[:_MAX_VECTOR], ancillary)
        except BlockingIOError:  # never with so little in flight, unless the system is out of buffers
            if ancillary:
                raise WireError("the socket of the kernel takes nothing") from None
            sent = 0
        except (BrokenPipeError, ConnectionResetError):  # it has ended: the answer will say how
            return
        if sent < size:
            self._sending = self._loop.create_task(self._send(rest(buffers, sent)), name="command for a kernel")

    async def _send(self, unsent: list[memoryview]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended: the answer will say how
            for view in unsent:
                await self._loop.sock_sendall(self._socket, view)

    def close(self) -> None:
        """Close it; what was not sent is dropped."""
        if self._sending is not None:
            self._sending.cancel()
        self.unfollow()
        self._socket.close()
        self.reader.close()
