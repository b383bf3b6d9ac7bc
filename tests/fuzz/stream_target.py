"""What comes over the streams of the controller, from clients and from hosts, and what a host hears from it.

An input is messages, each behind its length. Controller, host and engine are those that the programs are made
of; there is no network between them, and kernels answer at once.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from controller_service.any_engine import AnyEngine
from controller_service.engine_endpoint import ClusterFacts, EngineEndpoint
from controller_service.listing import show
from controller_service.no_journal import NoJournal
from controller_service.operations import Operations
from controller_service.registry import Registry
from controller_service.session_endpoint import SessionEndpoint
from controller_service.switchboard import Switchboard
from controller_service.transfers import Transfers
from engine_service import link as link_module
from engine_service import transfers as transfers_module
from engine_service.engine import Engine, EngineOptions
from engine_service.link import Link
from enginery import _ids
from enginery._certificates import Authority, make_request
from enginery._function_window import digest
from enginery._methods import METHODS
from enginery._open_streams import OpenStreams
from enginery._reasons import DeliveryError
from enginery._status import from_bytes, to_bytes
from enginery.engines import from_message
from enginery.v1 import cluster_pb2, engine_pb2, frame_pb2
from tests.fuzz import mutator
from tests.fuzz.loop import Loop, turns
from tests.fuzz.request_target import RequestTarget, answering
from tests.fuzz.rules import BrokenRule, Watch, check_error, check_message
from tests.host.fakes import Kernels
from tests.machines.wire import Channel, Wire

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from random import Random

    from google.protobuf.message import Message

_IDLE_TURNS = 15
_RENEWAL = 300  # inputs after which all is made anew
_SESSION = bytes(8)
_OPERATION = _ids.OperationIds().mint()
_EPOCH = 3
_CLUSTER: Any = cluster_pb2  # to make messages of plain fields, which their types do not tell of
_ENGINE: Any = engine_pb2
_PICKLE = b"\x7a\x01f"


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
        self.registry.begin(_EPOCH)
        self.switchboard = Switchboard(self.registry, controller_epoch=_EPOCH, journal=NoJournal())
        self.switchboard.start()
        streams = OpenStreams()
        self.engines = EngineEndpoint(self.switchboard, ClusterFacts("c", _EPOCH, b"d", sign), streams)
        self.any_engine = AnyEngine(self.switchboard, Operations(self.switchboard))
        self.sessions = SessionEndpoint(
            self.switchboard, self.any_engine, streams, cluster_id="c", controller_epoch=_EPOCH
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

    async def stop(self) -> None:
        """End."""
        self.engine.listener = None
        self.engine.stop("all was tried")
        await self.engine.wait_stopped()


def _no_file() -> Any:
    raise AssertionError("a host connects here when it is told to")


class _Address:
    """Where a host connects to, in the place of a connection file."""

    metadata = ()

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.address = "nowhere"


def _open_wire(address: _Address) -> Channel:
    return Channel(address.wire)


def _open_nothing(_: object) -> _NoChannel:
    return _NoChannel()


class _World:
    """Controller and host, connected."""

    def __init__(self, authority: Authority) -> None:
        self.controller = Controller(authority)
        self.host = Host()

    async def start(self) -> None:
        await self.host.engine.start()
        self.wire = Wire(self.controller.engines.register_engine)
        self.serving = asyncio.ensure_future(self.host.link._connect(_Address(self.wire)))  # type: ignore[arg-type]
        await self.settle(lambda: bool(self.host.link.registered))

    async def settle(self, condition: Any = lambda: False) -> None:
        """Let what is under way arrive, until nothing is or the condition holds."""
        for _ in range(_IDLE_TURNS):
            while self.wire.deliver_up() or self.wire.deliver_down():
                pass
            if condition():
                return
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self.wire.break_caller()
        await asyncio.gather(self.serving, return_exceptions=True)
        await self.wire.break_handler()
        await self.host.stop()
        await self.controller.stop()


class _StreamTarget:
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
        self._world: _World | None = None

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
            world = self._world = _World(self._authority)
            await world.start()
        return await self._try(world, records)

    @staticmethod
    def _seeds() -> list[bytes]:
        raise NotImplementedError

    async def _try(self, world: _World, records: list[bytes]) -> str:
        raise NotImplementedError

    async def _serve(self, world: _World, handler: Any, records: list[bytes]) -> Context:
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


def _call(call_id: int, method: str, request: bytes = b"", **fields: Any) -> frame_pb2.Call:
    return frame_pb2.Call(call_id=call_id, method=METHODS[method], request=request, **fields)  # type: ignore[arg-type]


def _requests() -> list[tuple[str, bytes]]:
    """Return requests of every method, as those of the other target."""
    names = sorted(METHODS, key=METHODS.__getitem__)
    return [
        (names[seed[0]], mutator.unpack(seed[2:])[0])
        for seed in RequestTarget.seeds
        if seed[0] < len(names) and seed[1] == 0
    ]


class SessionTarget(_StreamTarget):
    """A client's Session."""

    name = "session"
    kind = cluster_pb2.SessionRequest

    @staticmethod
    def _seeds() -> list[bytes]:
        hello = _CLUSTER.SessionRequest(hello={"session_id": _SESSION, "client_version": "1"})
        function = {"digest": digest(_PICKLE), "pickle": _PICKLE}
        seeds = []
        for name, request in _requests():
            for engine_id in (0, -1):
                calls = [
                    _call(1, name, request, engine_id=engine_id, operation_id=_OPERATION),
                    _call(2, name, request),
                ]
                seeds.append([hello, _CLUSTER.SessionRequest(calls=calls)])
        by_digest = _call(3, "Apply", function_digest=digest(_PICKLE), task={"label": "x", "retries": 2})
        by_digest.engine_id = -1
        many = _call(4, "Execute", b"\x0a\x011", targets=[{"engine_id": 0}, {"engine_id": 9, "sent_epoch": 1}])
        options = {"timeout": {"seconds": 5}, "grace": {"nanos": 1}, "keep_queue": True, "inline_limit": 5}
        again = _call(5, "Execute", b"\x0a\x011", options=options, sent_epoch=_EPOCH)
        after = _call(6, "Execute", b"\x0a\x011", engine_id=-1, task={"after": [_ids.show(_OPERATION)]})
        seeds.append(
            [hello, _CLUSTER.SessionRequest(functions=[function], calls=[by_digest, many, again, after])]
        )
        return [mutator.pack([message.SerializeToString() for message in messages]) for messages in seeds]

    async def _try(self, world: _World, records: list[bytes]) -> str:
        context = await self._serve(world, world.controller.sessions.session, records)
        said = [context.outcome]
        for data in context.written:
            response = check_message(cluster_pb2.SessionResponse, data)
            for reply in response.replies:
                said.append(f"{reply.outcome}")
                if reply.error:
                    said.append(check_error(from_bytes(reply.error)))
                elif reply.outcome == frame_pb2.OUTCOME_NOT_DELIVERED:
                    raise BrokenRule("a call that is not delivered, without a reason")
        return " ".join(sorted(said))


class RegistrationTarget(_StreamTarget):
    """A host's RegisterEngine."""

    name = "registration"
    kind = engine_pb2.EngineMessage

    @staticmethod
    def _seeds() -> list[bytes]:
        request = make_request()[1].decode()
        hello = _ENGINE.EngineMessage(
            hellos=[
                {
                    "slot": 1,
                    "host_id": "h",
                    "incarnation": "i",
                    "pid": 5,
                    "hostname": "n",
                    "python_version": "3.11.7",
                    "certificate_request": request,
                    "memory_limit": 5,
                    "direct_addresses": ["h:1"],
                    "operation_ids": [_OPERATION],
                    "properties": {"p": {"json": {"number_value": 1}}},
                }
            ]
        )
        status = {"engine_id": 1, "queued_count": 1, "method": "execute", "start_time": {"seconds": 5}}
        error = to_bytes(DeliveryError("QUEUE_FULL", engine_id=1, size=1, option="x"))
        ended = {"engine_id": 1, "operation_id": _OPERATION, "method": 1, "outcome": 1, "response": b""}
        messages = [
            _ENGINE.EngineMessage(heartbeat={"sequence": 1, "engines": [status]}),
            _ENGINE.EngineMessage(
                kernels_changed=[{"engine_id": 1, "incarnation": "k", "pid": 4, "reason": "x"}]
            ),
            _ENGINE.EngineMessage(properties_changed=[{"engine_id": 1}]),
            _ENGINE.EngineMessage(replies=[{"call_id": 1, "outcome": 1}, {"call_id": 2, "error": error}]),
            _ENGINE.EngineMessage(ended=[ended, {**ended, "error": error}], accepted_count=1),
            _ENGINE.EngineMessage(goodbyes=[{"engine_id": 1, "reason": "x"}]),
            _ENGINE.EngineMessage(
                hellos=[{"slot": 2, "host_id": "h", "incarnation": "j", "engine_id": 5, "epoch": 9}]
            ),
        ]
        seeds = [[hello, message] for message in messages] + [[hello, *messages]]
        return [mutator.pack([message.SerializeToString() for message in seed]) for seed in seeds]

    async def _try(self, world: _World, records: list[bytes]) -> str:
        context = await self._serve(world, world.controller.engines.register_engine, records)
        said = [context.outcome]
        for data in context.written:
            message = check_message(engine_pb2.ControllerMessage, data)
            said += [check_error(from_bytes(refusal.error)) for refusal in message.refusals]
            said += [field.name for field, _ in message.ListFields()]
        for engine in world.controller.registry:  # whatever it says of itself, clients can list the engines
            try:
                from_message(show(engine))
            except Exception as error:
                raise BrokenRule(f"an engine that cannot be listed: {error!r}") from error
        for engine in list(world.controller.registry):  # nobody holds their ids any more
            if engine.engine_id not in world.host.link.registered:
                world.controller.registry.unregister(
                    engine.engine_id,
                    DeliveryError("ENGINE_LOST", engine_id=engine.engine_id, cause="it was tried"),
                )
        return " ".join(said)


class HostTarget(_StreamTarget):
    """What a host hears from its controller."""

    name = "host"
    kind = engine_pb2.ControllerMessage

    @staticmethod
    def _seeds() -> list[bytes]:
        welcome = {"slot": 0, "engine_id": 0, "epoch": 7, "cluster_id": "c", "controller_epoch": _EPOCH}
        function = {"digest": digest(_PICKLE), "pickle": _PICKLE}
        apply = _call(3, "Apply", function_digest=digest(_PICKLE), operation_id=_OPERATION, task={"label": "x"})
        first = _ENGINE.ControllerMessage(welcomes=[welcome])
        error = to_bytes(DeliveryError("FENCED", engine_id=1, epoch=2))
        messages = [
            _ENGINE.ControllerMessage(functions=[function], calls=[apply]),
            _ENGINE.ControllerMessage(heartbeat_ack={"sequence": 1}, journaled_count=1),
            _ENGINE.ControllerMessage(dismissals=[{"engine_id": 0, "grace": {"seconds": 1}, "reason": "x"}]),
            _ENGINE.ControllerMessage(refusals=[{"slot": 0, "error": error}]),
        ]
        for name, request in _requests():
            call = _call(
                1, name, request, operation_id=_OPERATION, session_id=_SESSION, options={"keep_queue": True}
            )
            messages.append(_ENGINE.ControllerMessage(calls=[call]))
        seeds = [[first, message] for message in messages] + [[messages[3]]]
        return [mutator.pack([message.SerializeToString() for message in seed]) for seed in seeds]

    async def _try(self, world: _World, records: list[bytes]) -> str:
        return await self._hear(records)

    async def _hear(self, records: list[bytes]) -> str:
        host = Host()
        await host.engine.start()
        wire = Wire(_silent)
        serving = asyncio.ensure_future(host.link._connect(_Address(wire)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        wire.down.extend(records)
        while wire.deliver_down() and wire.down:
            pass
        await turns(serving.done, _IDLE_TURNS)
        said = ["waits"]
        if serving.done():
            said = [check_error(serving.result())]
        wire.break_caller()
        await asyncio.gather(serving, return_exceptions=True)
        for data in wire.up:
            message = check_message(engine_pb2.EngineMessage, data)
            for reply in message.replies:
                said.append(f"{reply.outcome}")
                if reply.error:
                    said.append(check_error(from_bytes(reply.error)))
        await wire.break_handler()
        await host.stop()
        return " ".join(said)


async def _silent(_: object, context: Any) -> None:
    await context.read()


class TransferTarget(_StreamTarget):
    """A host's Transfer, between the controller and a caller: the first message is the caller's."""

    name = "transfers"
    kind = engine_pb2.TransferRequest

    @staticmethod
    def _seeds() -> list[bytes]:
        accept = _ENGINE.TransferRequest(accept={"transfer_id": "x"})
        error = _ENGINE.TransferRequest(
            status=to_bytes(DeliveryError("BLOB_NOT_FOUND", blob_id="b", engine_id=1))
        )
        done = _ENGINE.TransferRequest(status=b"")
        piece = _ENGINE.TransferRequest(message=b"piece")
        seeds = [[accept, done], [piece, piece, done], [piece, error], [piece, accept]]
        return [mutator.pack([message.SerializeToString() for message in seed]) for seed in seeds]

    async def _try(self, world: _World, records: list[bytes]) -> str:
        transfers = Transfers(1 << 10)
        caller, host = Context(records[:1]), Context([])
        accepting: list[asyncio.Future[None]] = []

        class Offered:
            engine_id = 1

            async def offer(self, transfer_id: str, *_: object) -> None:
                accept = _ENGINE.TransferRequest(accept={"transfer_id": transfer_id})
                host._records = [accept.SerializeToString(), *records[1:]]
                accepting.append(asyncio.ensure_future(transfers.accept(None, host)))  # type: ignore[arg-type]

        caller.finish()
        host.finish()
        try:
            await transfers.relay(Offered(), METHODS["Upload"], caller)  # type: ignore[arg-type]
        except grpc.aio.AbortError:
            outcome = str(caller.reason)  # as the host said it
        except DeliveryError as error:
            outcome = check_error(error)
        else:
            outcome = f"{len(caller.written)} messages"
        for ended in await asyncio.gather(*accepting, return_exceptions=True):
            if ended is not None:
                outcome += check_error(ended)
        await transfers.close()
        return outcome


class _NoChannel:
    """In the place of a channel for transfers: whatever is written to it, it is over."""

    def stream_stream(self, *_: object, **__: object) -> Any:
        return lambda **_: self

    async def write(self, message: object) -> None:
        raise asyncio.InvalidStateError

    def cancel(self) -> None:
        """It is over."""

    async def close(self) -> None:
        """It is not open."""


for _target in (SessionTarget, RegistrationTarget, HostTarget, TransferTarget):
    _target.seeds = _target._seeds()
