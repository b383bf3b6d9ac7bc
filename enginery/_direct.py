"""Direct paths: streams to the hosts of engines that were called, past the controller, where they are reached.

All of it is in the background: what cannot be reached, or is another host than was meant, costs a call nothing.
docs/design.md tells when calls take such a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import random
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from enginery import _address
from enginery._certificates import host_name
from enginery._channel import open_channel
from enginery._connection import cause_of, connect_early, greet, open_session, translated
from enginery._direct_token import MAX_ADDRESSES, direct_token
from enginery._methods import ENGINE_ID_KEY
from enginery._path import Path
from enginery._reasons import DeliveryError
from enginery._rpc import engine_stub
from enginery._transfer import Transfers
from enginery.v1 import cluster_pb2, engine_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery._connection_file import ConnectionInfo
    from enginery._link import Link

MAX_HOSTS = 64
"""Hosts that one client is connected to; the engines of others are called by the relay."""
_FIRST_DELAY = 1.0  # seconds before a host is tried again
_LONGEST_DELAY = 60.0
_LASTING = 60.0  # seconds after which a stream was a good one: some ways carry what is small and lose the rest
_PATIENCE = 5.0  # seconds for an engine to say who it is
_ASK_AGAIN = 5.0  # seconds after which engines without a path are asked again
_LOOKED_AT = frozenset(
    {
        cluster_pb2.ENGINE_EVENT_KIND_REGISTERED,
        cluster_pb2.ENGINE_EVENT_KIND_BACK,
        cluster_pb2.ENGINE_EVENT_KIND_GONE,
        cluster_pb2.ENGINE_EVENT_KIND_KERNEL_CHANGED,
    }
)

logger = logging.getLogger("enginery")


class DirectPaths:
    """The hosts to which a client has a stream, or tries to. On the loop's thread."""

    def __init__(self, link: Link, *, is_allowed: bool) -> None:
        """Serve the calls of `link`, or leave them to the relay."""
        self._link = link
        self._is_allowed = is_allowed
        self._hosts: dict[tuple[str, ...], _Host] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._called = 0

    def engines_changed(self, response: cluster_pb2.WatchEnginesResponse) -> None:
        """Leave engines that are others now, and look for those that are new."""
        if response.snapshot or any(event.kind in _LOOKED_AT for event in response.events):
            self._look()

    def wake(self) -> None:
        """Have what waits for a host sent, and look for hosts of engines that are called for the first time."""
        for host in self._hosts.values():
            if host.path.outbox:
                host.sendable.set()
        if self._link.session.ways.called != self._called:
            self._look()

    def _look(self) -> None:
        session = self._link.session
        self._called = session.ways.called
        if self._link.closed or not self._is_allowed:
            return
        there: dict[tuple[str, ...], dict[int, _Who]] = {}
        for engine in self._link.roster.reachable():
            if session.ways.was_called(engine.engine_id):
                addresses = _addresses(engine)
                there.setdefault(addresses, {})[engine.engine_id] = _Who(engine.epoch, engine.incarnation)
        for addresses, host in list(self._hosts.items()):
            host.is_to_have(there.pop(addresses, {}))
            if not host.engines:
                host.task.cancel()
                del self._hosts[addresses]
        for addresses, engines in there.items():
            if addresses and len(self._hosts) < MAX_HOSTS:
                host = self._hosts[addresses] = _Host(self._link, addresses, engines)
                self._tasks.add(host.task)
                host.task.add_done_callback(self._tasks.discard)

    def transfers(self, engine_ids: Sequence[int]) -> Transfers | None:
        """Return what moves values to and from the host of an engine whose calls go there; None for several."""
        path = self._link.session.ways.of(engine_ids[0])
        if len(engine_ids) > 1 or not path.is_direct:
            return None
        return next((host.transfers for host in self._hosts.values() if host.path is path), None)

    def doubt(self, transfers: Transfers) -> None:
        """Leave the path beside which values do not move any more: what broke that has broken both."""
        for host in self._hosts.values():
            if host.transfers is transfers:
                host.leave()

    def finish(self) -> set[asyncio.Task[None]]:
        """Send what is left and end the streams; return the tasks that end when all is answered."""
        for host in self._hosts.values():
            host.sendable.set()
        return {host.task for host in self._hosts.values() if host.is_open}

    async def close(self) -> None:
        """End all streams at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Who:
    """An engine, as the controller tells of it."""

    epoch: int
    incarnation: str


class _Host:
    """One host, the stream to it, and its engines that were called."""

    def __init__(self, link: Link, addresses: tuple[str, ...], engines: dict[int, _Who]) -> None:
        self._link = link
        self._addresses = addresses
        self.engines = engines
        self._changed = asyncio.Event()
        self.path = Path(is_direct=True)
        self.sendable = asyncio.Event()
        self.is_open = False
        self.transfers: Transfers | None = None
        """Over a channel of its own, while the stream is open."""
        self._stream: Any = None
        self.task = asyncio.create_task(self._run(), name="enginery-direct")

    def is_to_have(self, engines: dict[int, _Who]) -> None:
        """Take the engines that it has, as the controller tells; leave those that are others now."""
        if engines == self.engines:
            return
        before, self.engines = self.engines, engines
        others = [one for one, who in before.items() if one not in engines or engines[one].epoch != who.epoch]
        self._link.leave(others, "the engine is registered anew, or no more")
        self._changed.set()

    def leave(self) -> None:
        """End the stream that is open; it is opened again later."""
        if self._stream is not None:
            self._stream.cancel()

    async def _run(self) -> None:
        delay = _FIRST_DELAY
        while True:
            began = time.monotonic()
            self._changed.clear()
            for address in self._addresses:
                cause = await self._serve(address)
                logger.debug("no direct path to %s: %s", address, cause)
                if self._link.closed:
                    return
            if time.monotonic() - began > _LASTING:
                delay = _FIRST_DELAY
            pause = delay * random.uniform(0.8, 1.2)  # noqa: S311 - spreads clients, hides nothing
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)
            delay = min(delay * 2, _LONGEST_DELAY)

    async def _serve(self, address: str) -> str:
        """Serve a stream to an address until it ends; return why it did, or was not opened."""
        link = self._link
        assert link.info is not None
        info = dataclasses.replace(
            link.info,
            address=address,
            server_name=host_name(link.cluster_id),
            socket_path=None,
            token=direct_token(link.info.token, address),
        )
        if info.insecure and not _is_here(address):
            return "it is not on this machine, and nothing is encrypted"
        channel, bulk = open_channel(info), open_channel(info)
        began = time.monotonic()
        try:
            async with asyncio.timeout(link.timeout):
                # Another host would take the session for one that comes again, and end the stream that it has.
                if not await self._has_some(engine_stub(channel), info):
                    return "none of its engines is there"
                stream = self._stream = open_session(channel, info)
                welcome = await greet(stream, link.session.session_id)
            if welcome.cluster_id != link.cluster_id:
                return f"it is of cluster {welcome.cluster_id}"
            connect_early(bulk, time.monotonic() - began)
            self.transfers = Transfers(bulk, info.metadata)
            return await self._serve_open(stream, channel, info)
        except TimeoutError:
            return f"no answer within {link.timeout:g} s"
        except (Exception, asyncio.CancelledError) as error:
            return translated(error).text
        finally:
            self.leave()
            self.transfers = self._stream = None
            await channel.close()
            await bulk.close()

    async def _has_some(self, stub: Any, info: ConnectionInfo) -> bool:
        """Return whether one of its engines is where `stub` leads."""
        for engine_id, who in list(self.engines.items()):
            if await _is_there(stub, info, engine_id, who):
                return True
        return False

    async def _serve_open(self, stream: Any, channel: grpc.aio.Channel, info: ConnectionInfo) -> str:
        link = self._link
        path = self.path = Path(is_direct=True)
        self.is_open = True
        reader = asyncio.create_task(link.read_replies(stream, path))
        writer = asyncio.create_task(self._write(stream, path))
        asker = asyncio.create_task(self._offer(stream, channel, info, path))
        cause = "this client closes it"
        try:
            await asyncio.wait({reader})
            cause = cause_of(reader)
        finally:
            self.is_open = False
            asker.cancel()
            left = [one for one in self.engines if link.session.ways.direct(one) is path]
            link.leave(left, f"the connection to the engine's host broke: {cause}")
            writer.cancel()
            stream.cancel()
            await asyncio.gather(reader, writer, asker, return_exceptions=True)
        return cause

    async def _offer(self, stream: Any, channel: grpc.aio.Channel, info: ConnectionInfo, path: Path) -> None:
        """Offer the path for each engine that is there, as the controller tells of it; end it if none is."""
        stub = engine_stub(channel)
        session = self._link.session
        while True:
            self._changed.clear()
            for engine_id, who in list(self.engines.items()):
                if session.ways.direct(engine_id) is None and await _is_there(stub, info, engine_id, who):
                    # The stream is that of the answer: on a new connection of the channel it would be over.
                    if stream.done():
                        return
                    if self.engines.get(engine_id) == who:
                        session.ways.offer(engine_id, path)
            if not any(session.ways.direct(engine_id) is path for engine_id in self.engines):
                stream.cancel()
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _ASK_AGAIN)

    async def _write(self, stream: Any, path: Path) -> None:
        link = self._link
        try:
            while True:
                while (message := link.session.take(path)) is not None:
                    await stream.write(message)
                    link.accept()
                if link.closed:
                    await stream.done_writing()
                    return
                self.sendable.clear()
                await self.sendable.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream.cancel()  # the reader learns why


async def _is_there(stub: Any, info: ConnectionInfo, engine_id: int, who: _Who) -> bool:
    """Return whether an engine is where `stub` leads, and not another of that id."""
    metadata = (*info.metadata, (ENGINE_ID_KEY, str(engine_id)))
    try:
        answer = await stub.GetId(engine_pb2.GetIdRequest(), metadata=metadata, timeout=_PATIENCE)
    except (DeliveryError, grpc.aio.AioRpcError) as error:
        logger.debug("engine %d is not at %s: %s", engine_id, info.address, translated(error).text)
        return False
    return bool((answer.engine_id, answer.incarnation) == (engine_id, who.incarnation))


def _addresses(engine: cluster_pb2.Engine) -> tuple[str, ...]:
    """Return where the host of an engine says that it is reached, as far as these are addresses."""
    return tuple(filter(_address.is_host_port, engine.direct_addresses[:MAX_ADDRESSES]))


def _is_here(address: str) -> bool:
    try:
        return ipaddress.ip_address(_address.split(address)[0]).is_loopback
    except ValueError:
        return False
