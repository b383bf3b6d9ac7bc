"""What callers send an engine: requests of each method, the streams of Upload, Download and Attach, metadata.

An input is two bytes and messages, each behind its length. The first byte says which method is called, the
second how; each is called as it would come over the wire. Metadata are texts, key and value in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from engine_service import kernel_wire as wire
from engine_service import responses
from engine_service.engine import Engine, EngineOptions
from engine_service.kernel_frames import Frame
from engine_service.kernel_messages import Command, Reply
from enginery import _ids, _methods
from enginery._encoded import Codec, Encoded
from enginery._engine import CallContext, context_options, read_context
from enginery._function_window import MIN_PICKLE, Function, digest
from enginery._metadata import cancels_on_disconnect, read_call, read_engine_ids, read_task
from enginery._methods import ENGINE_SERVICE, METHODS, NAMES
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2
from tests.fuzz import mutator
from tests.fuzz.loop import Loop, turns
from tests.fuzz.rules import BrokenRule, Watch, check_error, check_message
from tests.host.fakes import Kernels, failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from random import Random

    from google.protobuf.message import Message

    from enginery._engine import CallReply

_ENGINE: Any = engine_pb2  # to make messages of plain fields, which their types do not tell of
_NUMBERS = sorted(NAMES)
METADATA = len(_NUMBERS)
"""In the place of a method: the messages are keys and values of metadata."""
_RPCS = {METHODS[rpc.name]: rpc for rpc in ENGINE_SERVICE.methods}


def _kind(full_name: str) -> type[Message]:
    name = full_name.rpartition(".")[2]
    return getattr(engine_pb2, name, None) or getattr(operation_pb2, name)  # type: ignore[no-any-return]


REQUESTS = {number: _kind(rpc.input_type.full_name) for number, rpc in _RPCS.items()}
RESPONSES = {number: _kind(rpc.output_type.full_name) for number, rpc in _RPCS.items()}
_IDLE_TURNS = 12
_RENEWAL = 400  # inputs after which another engine is made
_OPERATION = bytes(16)
_JSON = {"a": [1, None, {"b": "c"}], "d": 0.5}


def _seeds() -> list[bytes]:
    blob = {"blob_id": "b", "codec": 1, "size": 3, "part_sizes": [1, 2], "python_version": "3.11.7"}
    array = {"dtype": "<f8", "shape": [1], "data": bytes(8)}
    values = {"x": {"json": {"number_value": 1}}, "y": {"pickle": {"data": b"p"}}, "z": {"ndarray": array}}
    shown = _ids.show(_OPERATION)
    given: dict[str, list[dict[str, Any]]] = {
        "Execute": [{"code": "1+1", "accept": [1, 2]}, {"code": "fail"}, {"code": "die"}, {"code": "print x"}],
        "Apply": [
            {"function_name": "f", "blob_arguments": blob},
            {"pickled_function": {"data": b"f", "name": "f"}, "pickled_arguments": {"data": b"a"}},
            {"function_name": "f", "json_arguments": {"args": [{"number_value": 1}]}},
        ],
        "Push": [{"pickled": {"data": b"p", "buffers": [b"b"]}}, {"blob": blob}],
        "Pull": [{"keys": ["x", "y"], "accept": [1]}],
        "PushFunction": [{"pickled": {"data": b"p"}}, {"blob": blob}],
        "PullFunction": [{"keys": ["f"]}],
        "PushSerialized": [{"values": {**values, "w": {"blob": blob}}}, {"values": values}],
        "PullSerialized": [{"keys": ["x", "y"], "accept": [4, 2, 1, 3]}],
        "SetProperties": [{"properties": {"x": values["x"], "y": values["y"]}}],
        "DelProperties": [{"keys": ["x"]}],
        "GetOperation": [{"operation_id": shown, "after_sequence": 1, "wait": {"seconds": 1}}],
        "Cancel": [{"operation_id": shown, "grace": {"nanos": 5}}],
        "Release": [{"operation_ids": [shown, shown]}],
        "Attach": [{"operation_id": shown}],
        "ListOperations": [{"page_size": 2, "states": [1, 3], "session_id": "00" * 8}],
        "Download": [{"blob_id": "b", "offset": 1, "release": True}],
        "Submit": [{"execute": {"code": "wait"}}, {"apply": {"function_name": "f"}}],
        "Interrupt": [{"operation_id": shown}],
        "GetResult": [{"number": 1}, {}],
    }
    seeds = []
    for number in _NUMBERS:
        for fields in given.get(NAMES[number], [{}]):
            message = REQUESTS[number](**fields)
            seeds += [bytes((number_of(number), how)) + mutator.pack([_bytes(message)]) for how in (0, 5, 30)]
    chunk = _ENGINE.UploadRequest(chunk={"data": b"abc"})
    upload = [_ENGINE.UploadRequest(blob=blob), chunk]
    seeds.append(bytes((number_of(METHODS["Upload"]), 0)) + mutator.pack([_bytes(one) for one in upload]))
    metadata = {
        _methods.ENGINE_ID_KEY: "any",
        _methods.ENGINE_IDS_KEY: "0,1",
        _methods.EPOCH_KEY: "7",
        _methods.OPERATION_ID_KEY: shown,
        _methods.SESSION_ID_KEY: "00" * 8,
        _methods.INLINE_LIMIT_KEY: "100",
        _methods.TASK_KEY: '{"retries":1,"timeout":"2s","after":[""],"label":"x"}',
        _methods.TIMEOUT_KEY: "1.5",
        _methods.GRACE_KEY: "0",
        _methods.CANCEL_ON_DISCONNECT_KEY: "true",
    }
    pairs = [text.encode() for pair in metadata.items() for text in pair]
    seeds += [bytes((METADATA, 0)) + mutator.pack(pairs[at : at + 2]) for at in range(0, len(pairs), 2)]
    return [*seeds, bytes((METADATA, 0)) + mutator.pack(pairs)]


def number_of(method: int) -> int:
    """Return the byte that names a method in an input."""
    return _NUMBERS.index(method)


def _bytes(message: Message) -> bytes:
    data: bytes = message.SerializeToString()
    return data


class RequestTarget:
    """An engine over kernels that answer at once."""

    name = "requests"
    seeds = _seeds()

    def __init__(self, watch: Watch) -> None:
        """Start an engine."""
        self._watch = watch
        self._loop = Loop(watch)
        self._ids = _ids.OperationIds()
        self._calls = 0
        self._engine = self._loop.run(self._make())

    async def _make(self) -> Engine:
        kernels = Kernels()
        self._kernels = kernels
        options = EngineOptions(value_limit=1 << 20, queue_calls=50)
        engine = Engine(options, start_kernel=kernels.start)  # type: ignore[arg-type]
        await engine.start()
        kernels.started[0].reply = _answer
        engine.set_id(0, registered=True)
        return engine

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil a request field by field."""
        head = bytearray(data[:2].ljust(2, b"\0"))
        if random.randrange(6) == 0:
            head[random.randrange(2)] = random.randrange(256)
        which = head[0] % (METADATA + 1)
        if which == METADATA:
            return bytes(head) + mutator.spoil(random, data[2:], other)
        kind = REQUESTS[_NUMBERS[which]]
        return bytes(head) + mutator.spoil_records(random, data[2:], other[2:], kind)

    def run(self, data: bytes) -> str:
        """Call what this says."""
        which, how = (*data[:2], 0, 0)[:2]
        records = mutator.unpack(data[2:])
        with self._watch.in_time():
            if which % (METADATA + 1) == METADATA:
                outcome = _read_metadata(records)
            else:
                outcome = self._loop.run(self._try(_NUMBERS[which % (METADATA + 1)], how, records))
        self._watch.check()
        return outcome

    async def _try(self, method: int, how: int, records: list[bytes]) -> str:
        self._calls += 1
        if self._calls % _RENEWAL == 0 or self._engine.is_draining:
            await self._stop()
            self._engine = await self._make()
        await turns(lambda: self._engine.keeper.is_ready, 200)
        is_said = how & 4 or method != frame_pb2.METHOD_EXECUTE  # what code says the kernel does, otherwise
        self._kernels.started[-1].reply = _answer if is_said else None
        name, kind = NAMES[method], RESPONSES[method]
        try:
            if name == "Upload":
                answer = await self._engine.upload(_each(records))
                return f"Upload {check_message(kind, answer)}"[:60]
            request = records[0] if records else b""
            if name in ("Download", "Attach"):
                open_stream = self._engine.download if name == "Download" else self._engine.attach
                return f"{name} {await _read_some(open_stream(request), kind)}"
            return f"{name} {await self._call(method, request, how)}"
        except DeliveryError as error:
            return check_error(error)

    async def _call(self, method: int, request: bytes, how: int) -> str:
        named = _OPERATION if how & 1 else self._ids.mint()
        function = _FUNCTION if how & 16 and method == frame_pb2.METHOD_APPLY else None
        context = CallContext(
            named,
            bytes(8) if how & 2 else b"",
            keep_queue=bool(how & 8),
            is_task=bool(how & 32),
            function=function,
        )
        call = asyncio.ensure_future(self._engine.call(method, request, context))
        if not await turns(call.done, _IDLE_TURNS) and not self._engine._runner._asides:
            call.cancel()
            for kernel in self._kernels.started[-1:]:
                kernel.released.set()
            await asyncio.gather(call, return_exceptions=True)
            return "waits"
        return self._check(method, await call)

    def _check(self, method: int, reply: CallReply) -> str:
        message = check_message(responses.RESPONSES.get(method, RESPONSES[method]), reply.response)
        fields = [field.name for field, _ in message.ListFields()]
        return f"{frame_pb2.Outcome.Name(reply.outcome)} {fields}"  # type: ignore[arg-type]

    async def _stop(self) -> None:
        self._engine.stop("another follows")
        await self._engine.wait_stopped()

    def close(self) -> None:
        """Stop the engine."""
        self._loop.run(self._stop())
        self._loop.close()


_PICKLE = _ENGINE.PushRequest(pickled={"data": b"f" * MIN_PICKLE}).pickled.SerializeToString()
_FUNCTION = Function(digest(_PICKLE), _PICKLE)


def _answer(command: Command) -> Reply:
    """Return a good answer to any command, once it went over the socket and came out the same."""
    frame = wire.write_command(7, command)
    if isinstance(frame, Frame):
        frame.pack()
        frame = Frame(json.loads(json.dumps(frame.meta)), frame.parts, frame.fds)
    serial, read = wire.read_command(frame)
    if (serial, read.method, read.keys, read.code) != (7, command.method, command.keys, command.code):
        raise BrokenRule(f"a command that does not survive the socket: {command.method}")
    if command.method == "del_properties":
        return failure("KeyError", "x")
    pickled, as_json = (
        Encoded(Codec.PICKLE, (b"p",), "3.11.7"),
        Encoded(Codec.JSON, (json.dumps(_JSON).encode(),)),
    )
    values: dict[str, Any] = {}
    if command.method in ("execute", "apply"):
        values = {"value": as_json if Codec.JSON in command.accept else pickled}
    elif command.method in ("pull", "pull_function"):
        values = {"namespace": as_json if Codec.JSON in command.accept else pickled}
    elif command.method == "pull_serialized":
        values = dict.fromkeys(command.keys, pickled)
    return Reply(values=values, text="t", pretty="p", started_at=1.5, duration=0.5)


def answering(kernels: Kernels) -> Any:
    """Return what starts kernels that answer everything well, but for code, which says what they do."""

    def answer(command: Command) -> Reply:
        return _answer(command)

    async def start(options: Any, listener: Any) -> Any:
        kernel = await kernels.start(options, listener)
        kernel.reply = answer
        return kernel

    return start


async def _each(records: list[bytes]) -> AsyncIterator[bytes]:
    for record in records:
        yield record


async def _read_some(messages: Any, kind: type[Message]) -> int:
    """Return how many messages come within some turns of the loop, at most a hundred."""
    count = 0
    try:
        while count < 100:
            following = asyncio.ensure_future(anext(messages, None))
            if not await turns(following.done, _IDLE_TURNS):
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
                break
            data = await following
            if data is None:
                break
            check_message(kind, data)
            count += 1
    finally:
        await messages.aclose()
    return count


def _read_metadata(records: list[bytes]) -> str:
    """Read metadata as each server does; what is read must fit a call of the contract."""
    texts = [record.decode("ascii", "ignore") for record in records]
    metadata = list(zip(texts[::2], texts[1::2], strict=False))
    said = []
    for read in (read_call, read_engine_ids, read_task, cancels_on_disconnect):
        try:
            found: Any = read(metadata)
        except DeliveryError as error:
            said.append(check_error(error))
            continue
        said.append(f"{read.__name__} {bool(found)}")
        if read is read_call:
            engine_id, context = found
            options = context_options(context) or frame_pb2.CallOptions()
            call = frame_pb2.Call(engine_id=engine_id, options=options, sent_epoch=context.epoch)
            read_context(context.operation_id, context.session_id, call.options, known=False)
    return "; ".join(said)
