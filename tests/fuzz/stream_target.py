"""What comes over the streams of the controller, from clients and from hosts, and what a host hears from it.

An input is messages, each behind its length. `world` has who reads them.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from controller_service.listing import show
from controller_service.transfers import Transfers
from enginery import _ids
from enginery._certificates import make_request
from enginery._function_window import digest
from enginery._methods import METHODS
from enginery._reasons import DeliveryError
from enginery._status import from_bytes, to_bytes
from enginery.engines import from_message
from enginery.v1 import cluster_pb2, engine_pb2, frame_pb2
from tests.fuzz import mutator
from tests.fuzz.loop import turns
from tests.fuzz.request_target import RequestTarget
from tests.fuzz.rules import BrokenRule, check_error, check_message
from tests.fuzz.world import EPOCH, IDLE_TURNS, Address, Context, Host, StreamTarget, World
from tests.machines.wire import Wire

_SESSION = bytes(8)
_OPERATION = _ids.OperationIds().mint()
_CLUSTER: Any = cluster_pb2  # to make messages of plain fields, which their types do not tell of
_ENGINE: Any = engine_pb2
_PICKLE = b"\x7a\x01f"


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


class SessionTarget(StreamTarget):
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
        again = _call(5, "Execute", b"\x0a\x011", options=options, sent_epoch=EPOCH)
        after = _call(6, "Execute", b"\x0a\x011", engine_id=-1, task={"after": [_ids.show(_OPERATION)]})
        seeds.append(
            [hello, _CLUSTER.SessionRequest(functions=[function], calls=[by_digest, many, again, after])]
        )
        return [mutator.pack([message.SerializeToString() for message in messages]) for messages in seeds]

    async def _try(self, world: World, records: list[bytes]) -> str:
        context = await self._serve(world, self._session_of(world), records)
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

    def _session_of(self, world: World) -> Any:
        return world.controller.sessions.session


class DirectTarget(SessionTarget):
    """A client's Session on the port of a host."""

    name = "direct"

    def _session_of(self, world: World) -> Any:
        return world.host.sessions.session


class RegistrationTarget(StreamTarget):
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

    async def _try(self, world: World, records: list[bytes]) -> str:
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


class HostTarget(StreamTarget):
    """What a host hears from its controller."""

    name = "host"
    kind = engine_pb2.ControllerMessage

    @staticmethod
    def _seeds() -> list[bytes]:
        welcome = {"slot": 0, "engine_id": 0, "epoch": 7, "cluster_id": "c", "controller_epoch": EPOCH}
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

    async def _try(self, world: World, records: list[bytes]) -> str:
        return await self._hear(records)

    async def _hear(self, records: list[bytes]) -> str:
        host = Host()
        await host.engine.start()
        wire = Wire(_silent)
        serving = asyncio.ensure_future(host.link._connect(Address(wire)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        wire.down.extend(records)
        while wire.deliver_down() and wire.down:
            pass
        await turns(serving.done, IDLE_TURNS)
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


class TransferTarget(StreamTarget):
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

    async def _try(self, world: World, records: list[bytes]) -> str:
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


for _target in (SessionTarget, DirectTarget, RegistrationTarget, HostTarget, TransferTarget):
    _target.seeds = _target._seeds()
