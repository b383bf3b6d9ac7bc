"""Those who read streams: controller, host and engine, as the programs are made of them.

There is no network between them, and kernels answer at once.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from controller_service.any_engine import AnyEngine
from controller_service.engine_endpoint import ClusterFacts, EngineEndpoint
from controller_service.no_journal import NoJournal
from controller_service.operations import Operations
from controller_service.registry import Registry
from controller_service.session_endpoint import SessionEndpoint
from controller_service.switchboard import Switchboard
from controller_service.transfers import Transfers
from engine_service import link as link_module
from engine_service import transfers as transfers_module
from engine_service.direct_sessions import DirectSessions
from engine_service.engine import Engine, EngineOptions
from engine_service.link import Link
from enginery._certificates import Authority
from enginery._open_streams import OpenStreams
from enginery._reasons import DeliveryError
from enginery._status import from_bytes
from tests.fuzz import mutator
from tests.fuzz.loop import Loop
from tests.fuzz.request_target import answering
from tests.fuzz.rules import Watch, check_error
from tests.host.fakes import Kernels
from tests.machines.wire import Channel, Wire

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from random import Random

    from google.protobuf.message import Message

IDLE_TURNS = 15
EPOCH = 3
_RENEWAL = 300  # inputs after which all is made anew


class Context:
    """The handler's end of a stream whose caller sends these messages, and then waits or ends it."""

    def __init__(self, records: list[bytes]) -> None:
        """Send `records`."""
        self._records = list(records)
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.written: list[bytes] = []
        self.reason: DeliveryError | None = None
        self.is_idle = False
        self.is_waiting = False

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    async def read(self) -> Any:
        if self._records:
            return self._records.pop(0)
        self.is_idle = True
        await asyncio.shield(self._end)
        return None

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    async def abort(self, code: object, text: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        self.reason = from_bytes(trailing[0][1])
        self.finish(grpc.aio.AbortError())
        raise grpc.aio.AbortError

    @property
    def outcome(self) -> str:
        """How it ended; BrokenRule if that was no rejection."""
        return check_error(self.reason) if self.reason else "waits" if self.is_waiting else "ended"

    def finish(self, error: Exception | None = None) -> None:
        """End what the caller sends."""
        if not self._end.done():
            if error is not None:
                self._end.set_exception(error)
                self._end.exception()
            else:
                self._end.set_result(None)


class Controller:
    """A controller without ports and disk."""

    def __init__(self, authority: Authority) -> None:
        """Begin."""

        def sign(request: bytes, names: Collection[str]) -> bytes:
            return authority.sign_request(request, "host", *names)

        self.registry = Registry(lease=60.0)
        self.registry.begin(EPOCH)
        self.switchboard = Switchboard(self.registry, controller_epoch=EPOCH, journal=NoJournal())
        self.switchboard.start()
        streams = OpenStreams()
        self.engines = EngineEndpoint(self.switchboard, ClusterFacts("c", EPOCH, b"d", sign), streams)
        self.any_engine = AnyEngine(self.switchboard, Operations(self.switchboard))
        self.sessions = SessionEndpoint(
            self.switchboard, self.any_engine, streams, cluster_id="c", controller_epoch=EPOCH
        )
        self.transfers = Transfers()

    async def stop(self) -> None:
        """End."""
        await self.any_engine.stop()
        self.switchboard.close(DeliveryError("SHUTTING_DOWN", process="controller"))
        await self.switchboard.stop()


class Host:
    """A host with one engine."""

    def __init__(self) -> None:
        """Not started yet."""
        self.kernels = Kernels()
        options = EngineOptions(queue_calls=50)
        self.engine = Engine(options, start_kernel=answering(self.kernels))
        self.link = Link([self.engine], _no_file, host_id="host", heartbeat=3600.0)
        self.sessions = DirectSessions([self.engine], OpenStreams(), "c")

    async def stop(self) -> None:
        """End."""
        self.engine.listener = None
        self.engine.stop("all was tried")
        await self.engine.wait_stopped()


def _no_file() -> Any:
    raise AssertionError("a host connects here when it is told to")


class Address:
    """Where a host connects to, in the place of a connection file."""

    metadata = ()

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.address = "nowhere"


def _open_wire(address: Address) -> Channel:
    return Channel(address.wire)


def _open_nothing(_: object) -> _NoChannel:
    return _NoChannel()


class World:
    """Controller and host, connected."""

    def __init__(self, authority: Authority) -> None:
        self.controller = Controller(authority)
        self.host = Host()

    async def start(self) -> None:
        await self.host.engine.start()
        self.wire = Wire(self.controller.engines.register_engine)
        self.serving = asyncio.ensure_future(self.host.link._connect(Address(self.wire)))  # type: ignore[arg-type]
        await self.settle(lambda: bool(self.host.link.registered))

    async def settle(self, condition: Any = lambda: False) -> None:
        """Let what is under way arrive, until nothing is or the condition holds."""
        for _ in range(IDLE_TURNS):
            while self.wire.is_calling and self.wire.is_served:
                if not (self.wire.deliver_up() or self.wire.deliver_down()):
                    break
            if condition():
                return
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self.wire.break_caller()
        await asyncio.gather(self.serving, return_exceptions=True)
        await self.wire.break_handler()
        await self.host.stop()
        await self.controller.stop()


class StreamTarget:
    """What the three have in common."""

    name = ""
    kind: type[Message]
    seeds: Sequence[bytes] = ()

    def __init__(self, watch: Watch) -> None:
        """Make controller and host."""
        self._watch = watch
        self._loop = Loop(watch)
        with tempfile.TemporaryDirectory() as folder:
            self._authority = Authority.load_or_create(Path(folder))
        self._modules: list[Any] = [link_module, transfers_module]
        self._open = [module.open_channel for module in self._modules]
        for module, opens in zip(self._modules, (_open_wire, _open_nothing), strict=True):
            module.open_channel = opens
        self._inputs = 0
        self._world: World | None = None

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil messages field by field."""
        return mutator.spoil_records(random, data, other, self.kind)

    def run(self, data: bytes) -> str:
        """Send these messages."""
        with self._watch.in_time():
            outcome = self._loop.run(self._renewed(mutator.unpack(data)))
        self._watch.check()
        return outcome

    async def _renewed(self, records: list[bytes]) -> str:
        self._inputs += 1
        world = self._world
        if (
            world is None
            or self._inputs % _RENEWAL == 0
            or world.serving.done()
            or world.host.engine.is_draining
        ):
            if world is not None:
                await world.stop()
            world = self._world = World(self._authority)
            await world.start()
        return await self._try(world, records)

    @staticmethod
    def _seeds() -> list[bytes]:
        raise NotImplementedError

    async def _try(self, world: World, records: list[bytes]) -> str:
        raise NotImplementedError

    async def _serve(self, world: World, handler: Any, records: list[bytes]) -> Context:
        """Let a handler of the controller serve these messages to the end, or until nothing happens."""
        context = Context(records)
        serving = asyncio.ensure_future(handler(None, context))
        await world.settle(lambda: serving.done() or context.is_idle)
        await world.settle(serving.done)
        context.finish()
        await world.settle(serving.done)
        if not serving.done():
            serving.cancel()  # the caller has gone
        try:
            await serving
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            context.is_waiting = True
        except DeliveryError as error:
            context.reason = error
        return context

    def close(self) -> None:
        """End."""
        if self._world is not None:
            self._loop.run(self._world.stop())
        self._loop.close()
        for module, opens in zip(self._modules, self._open, strict=True):
            module.open_channel = opens


class _NoChannel:
    """In the place of a channel for transfers: whatever is written to it, it is over."""

    def stream_stream(self, *_: object, **__: object) -> Any:
        return lambda **_: self

    def get_state(self, *, try_to_connect: bool) -> None:
        """It is over."""

    async def write(self, message: object) -> None:
        raise asyncio.InvalidStateError

    def cancel(self) -> None:
        """It is over."""

    async def close(self) -> None:
        """It is not open."""
