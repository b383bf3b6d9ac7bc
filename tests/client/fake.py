"""A controller with engines that need no kernel: it serves the client's side of the contract, in this process.

Its engines hold a plain dictionary and run code in the server's thread. What a test wants to see go wrong it
sets on the controller: frozen engines, refused uploads, lost connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import threading
import traceback
from typing import TYPE_CHECKING, Any, TypeVar, cast

import cloudpickle
import grpc
import grpc.aio

from enginery import _codec, _connection_file, _ids, _methods, _outcomes, _status, _values
from enginery._channel import SERVER_OPTIONS
from enginery._encoded import Codec, Encoded
from enginery._function_window import FunctionWindow
from enginery._reasons import DeliveryError
from enginery._wire import embed, tag
from enginery.v1 import cluster_pb2, engine_pb2, error_pb2, frame_pb2, operation_pb2, value_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from google.protobuf.message import Message

T = TypeVar("T")

INLINE = 1 << 20


class FakeEngine:
    """One engine: a dictionary in which code runs, and what it was asked."""

    def __init__(self, engine_id: int) -> None:
        self.engine_id = engine_id
        self.incarnation = _ids.new_incarnation()
        self.epoch = engine_id + 7
        self.namespace: dict[str, Any] = {"id": engine_id}
        self.properties: dict[str, value_pb2.Value] = {}
        self.blobs: dict[str, tuple[value_pb2.Blob, bytes]] = {}
        self.records: list[engine_pb2.ExecuteResult] = []
        self.asked: list[str] = []
        self.released: list[str] = []

    def info(self) -> cluster_pb2.Engine:
        return cluster_pb2.Engine(
            engine_id=self.engine_id,
            incarnation=self.incarnation,
            epoch=self.epoch,
            state=cluster_pb2.ENGINE_STATE_READY,
            hostname="here",
            ip="127.0.0.1",
            port=1,
            pid=42,
            python_version="3.11.7",
            properties=self.properties,
        )

    # ---- calls

    def call(self, name: str, request: Any, operation_id: bytes) -> tuple[int, bytes]:
        """Answer a call as an engine's host does: outcome and serialized response."""
        self.asked.append(name)
        response = getattr(engine_pb2, f"{name}Response")()
        handler: Callable[[Any, Any], None] = getattr(self, f"_{name.lower()}")
        if "operation_id" in response.DESCRIPTOR.fields_by_name:
            response.operation_id = _ids.show(operation_id)
        try:
            handler(request, response)
        except DeliveryError:
            raise
        except BaseException as error:
            response.error.CopyFrom(remote_error(error, self.engine_id, name.lower(), operation_id))
            return frame_pb2.OUTCOME_USER_ERROR, response.SerializeToString()
        failed = name == "Execute" and response.result.HasField("error")
        return frame_pb2.OUTCOME_USER_ERROR if failed else frame_pb2.OUTCOME_OK, response.SerializeToString()

    def _execute(self, request: Any, response: Any) -> None:
        result = response.result
        result.engine_id = self.engine_id
        result.number = len(self.records) + 1
        result.input.raw = result.input.translated = request.code
        result.duration.FromMilliseconds(1500)
        result.start_time.FromSeconds(1_700_000_000)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                try:
                    value = eval(request.code, self.namespace)
                except SyntaxError:
                    value = None
                    exec(request.code, self.namespace)
        except BaseException as error:
            result.error.CopyFrom(remote_error(error, self.engine_id, "execute", b"\1" * 16))
            value = None
        text = output.getvalue()
        result.stdout = text if len(text) <= INLINE else f"{text[:100]}...{text[-100:]}"
        if len(text) > INLINE:
            result.stdout_blob.CopyFrom(self.store(Encoded(Codec.TEXT, (text.encode(),))))
        if value is not None:
            result.text = result.pretty = repr(value)
            try:
                result.value.CopyFrom(self.value(_codec.encode(value, (Codec.PICKLE,))))
            except Exception as error:
                result.value_error = str(error)
        self.records.append(result)

    def _apply(self, request: Any, response: Any) -> None:
        if request.WhichOneof("function") == "function_name":
            function = self.namespace.get(request.function_name) or eval(request.function_name)
        else:
            function = cast("Any", _codec.decode(_values.from_pickle(request.pickled_function)))
        args: Any = ()
        kwargs: Any = {}
        match request.WhichOneof("arguments"):
            case "pickled_arguments":
                args, kwargs = _pair(_codec.decode(_values.from_pickle(request.pickled_arguments)))
            case "blob_arguments":
                args, kwargs = _pair(_codec.decode(self.taken(request.blob_arguments)))
        response.stdout = "applied\n"
        response.value.CopyFrom(self.value(_codec.encode(function(*args, **kwargs), (Codec.PICKLE,))))

    def _push(self, request: Any, _: Any) -> None:
        pickled = request.WhichOneof("namespace") == "pickled"
        encoded = _values.from_pickle(request.pickled) if pickled else self.taken(request.blob)
        self.namespace.update(_codec.decode(encoded))  # type: ignore[call-overload]

    _pushfunction = _push

    def _pull(self, request: Any, response: Any) -> None:
        found = {}
        for key in request.keys:
            if key not in self.namespace:
                raise NameError(f"name {key!r} is not defined")
            found[key] = self.namespace[key]
        encoded = _codec.encode(found, (Codec.PICKLE,))
        if encoded.size > INLINE:
            response.blob.CopyFrom(self.store(encoded))
        else:
            response.pickled.CopyFrom(_values.to_pickle(encoded))

    def _pullfunction(self, request: Any, response: Any) -> None:
        encoded = _codec.encode_functions({key: self.namespace[key] for key in request.keys})
        response.pickled.CopyFrom(_values.to_pickle(encoded))

    def _pushserialized(self, request: Any, _: Any) -> None:
        for key, value in request.values.items():
            blob = value.WhichOneof("kind") == "blob"
            self.namespace[key] = _codec.decode(self.taken(value.blob) if blob else _values.from_value(value))

    def _pullserialized(self, request: Any, response: Any) -> None:
        for key in request.keys:
            codecs = [Codec(number) for number in request.accept]
            response.values[key].CopyFrom(self.value(_codec.encode(self.namespace[key], codecs)))

    def _getresult(self, request: Any, response: Any) -> None:
        number = request.number if request.HasField("number") else len(self.records)
        if not 1 <= number <= len(self.records):
            raise IndexError(f"no command {number}")
        response.result.CopyFrom(self.records[number - 1])

    def _keys(self, _: Any, response: Any) -> None:
        response.keys.extend(sorted(key for key in self.namespace if not key.startswith("_")))

    def _reset(self, _: Any, __: Any) -> None:
        self.namespace = {"id": self.engine_id}

    def _kill(self, _: Any, __: Any) -> None:
        raise DeliveryError("ENGINE_STOPPED", engine_id=self.engine_id, cause="killed")

    def _setproperties(self, request: Any, _: Any) -> None:
        self.properties.update(request.properties)

    def _getproperties(self, request: Any, response: Any) -> None:
        for key in request.keys or self.properties:
            if key not in self.properties:
                raise KeyError(key)
            response.properties[key].CopyFrom(self.properties[key])

    def _hasproperties(self, request: Any, response: Any) -> None:
        response.present.extend(key in self.properties for key in request.keys)

    def _delproperties(self, request: Any, _: Any) -> None:
        for key in request.keys:
            del self.properties[key]

    def _clearproperties(self, _: Any, __: Any) -> None:
        self.properties.clear()

    def _interrupt(self, request: Any, response: Any) -> None:
        response.operation_id = request.operation_id

    def _queuestatus(self, _: Any, response: Any) -> None:
        response.pending.method = "execute"
        response.pending.progress_fraction = 0.5
        response.queue.add(method="push", arguments="a")

    def _clearqueue(self, _: Any, response: Any) -> None:
        response.cleared_count = 3

    # ---- values

    def value(self, encoded: Encoded) -> value_pb2.Value:
        """Return a value as a reply carries it."""
        return value_pb2.Value(blob=self.store(encoded)) if encoded.size > INLINE else _values.to_value(encoded)

    def store(self, encoded: Encoded) -> value_pb2.Blob:
        """Keep a value for download."""
        blob = _values.describe(f"blob-{len(self.blobs)}", encoded)
        self.blobs[blob.blob_id] = (blob, b"".join(encoded.parts))
        return blob

    def taken(self, blob: value_pb2.Blob) -> Encoded:
        """Take an uploaded value."""
        return _values.assemble(blob, self.blobs.pop(blob.blob_id)[1])


def _pair(decoded: object) -> tuple[Any, Any]:
    assert isinstance(decoded, tuple)
    return decoded[0], decoded[1]


def remote_error(
    error: BaseException, engine_id: int, method: str, operation_id: bytes
) -> error_pb2.RemoteError:
    """Return what a kernel says of an exception."""
    try:
        message = str(error)
    except Exception as bad:
        message = f"<str() raised {type(bad).__name__}>"
    raised = error_pb2.RaisedError(
        module=type(error).__module__,
        type_name=type(error).__qualname__,
        hierarchy=[f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__[:-1]],
        message=message,
        representation=message,
        notes=getattr(error, "__notes__", []),
    )
    remote = error_pb2.RemoteError(
        errors=[raised],
        traceback="".join(traceback.format_tb(error.__traceback__)) + f"{raised.type_name}: {message}\n",
        engine_id=engine_id,
        method=method,
        operation_id=_ids.show(operation_id),
        category=error_pb2.ERROR_CATEGORY_USER,
    )
    with contextlib.suppress(Exception):
        pickled = cloudpickle.dumps(error, protocol=5)
        cloudpickle.loads(pickled)
        remote.pickled.CopyFrom(value_pb2.Pickle(python_version="3.11.7", data=pickled))
    return remote


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _not_delivered(call: frame_pb2.Call, error: DeliveryError) -> frame_pb2.Reply:
    return frame_pb2.Reply(
        call_id=call.call_id, outcome=_outcomes.outcome_of(error), error=_status.to_bytes(error)
    )


class FakeOperation:
    """What an engine's host remembers of one operation."""

    def __init__(self, operation_id: str, call: frame_pb2.Call) -> None:
        self.operation_id = operation_id
        self.call = call
        self.state: int = operation_pb2.OPERATION_STATE_RUNNING
        self.stopping = False
        self.events: list[operation_pb2.OperationEvent] = []
        self.reply: frame_pb2.Reply | None = None
        self.outcome: operation_pb2.OperationOutcome | None = None

    def message(self) -> operation_pb2.Operation:
        return operation_pb2.Operation(
            operation_id=self.operation_id,
            state=operation_pb2.OperationState.ValueType(self.state),
            engine_id=self.call.engine_id,
            method=_methods.PYTHON_NAMES[self.call.method],
            arguments="its arguments",
            last_sequence=len(self.events),
            stopping=self.stopping,
            progress_fraction=0.5,
            progress_text="half",
        )

    def emit(self, **kind: Any) -> None:
        event = operation_pb2.OperationEvent(sequence=len(self.events) + 1, **kind)
        event.event_time.FromSeconds(1_700_000_000)
        self.events.append(event)

    def end(self, reply: frame_pb2.Reply) -> None:
        """Take the answer, and keep it as an outcome."""
        self.reply = reply
        self.state = _outcomes.STATES[reply.outcome]
        outcome = operation_pb2.OperationOutcome(state=operation_pb2.OperationState.ValueType(self.state))
        if reply.error:
            outcome.error.CopyFrom(_outcomes.failure_of(_status.from_bytes(reply.error)))
        else:
            response = getattr(engine_pb2, f"{_methods.NAMES[self.call.method]}Response")
            outcome.response.Pack(response.FromString(reply.response))
        self.outcome = outcome
        self.emit(outcome=outcome)

    def cancelled(self) -> frame_pb2.Reply:
        """Return the reply of an operation that was stopped: interrupted, or taken out of the queue."""
        if self.state == operation_pb2.OPERATION_STATE_QUEUED:
            cause = "it was taken out of the queue"
            return _not_delivered(
                self.call,
                DeliveryError(
                    "OPERATION_CANCELLED", operation_id=self.operation_id, cause=cause, namespace="kept"
                ),
            )
        response = engine_pb2.ExecuteResponse()
        interrupt = remote_error(KeyboardInterrupt(), self.call.engine_id, "execute", b"\1" * 16)
        response.result.error.CopyFrom(interrupt)
        response.result.error.category = error_pb2.ERROR_CATEGORY_CANCELLED
        response.result.stdout = "begun\n"
        return frame_pb2.Reply(
            call_id=self.call.call_id,
            outcome=frame_pb2.OUTCOME_CANCELLED,
            response=response.SerializeToString(),
        )


class FakeController:
    """Serves clients. Its public methods may be called from the test's thread."""

    def __init__(self, path: Path, engines: int = 2) -> None:
        self.path = path
        self.engines = {engine_id: FakeEngine(engine_id) for engine_id in range(engines)}
        self.frozen: set[int] = set()
        self.held: list[tuple[frame_pb2.Call, asyncio.Queue[frame_pb2.Reply]]] = []
        self.busy: set[int] = set()
        """Engines on which what is held waits in the queue, rather than runs."""
        self.deaf = False
        """Whether what is cancelled goes on."""
        self.refusals: dict[int, DeliveryError] = {}
        """What an engine refuses calls with."""
        self.records: dict[str, FakeOperation] = {}
        self.cancels: list[operation_pb2.CancelRequest] = []
        self.calls: list[frame_pb2.Call] = []
        self.functions: list[bytes] = []
        """Digests of the functions that came apart from calls."""
        self.frames = 0
        """How many calls came, those to many engines as one."""
        self.epoch = 1
        self.attached: list[int] = []
        self.cut_after: int | None = None
        """Break an attached stream after so many events."""
        self.messages: list[int] = []
        self.sessions: list[bytes] = []
        self.ends_sessions = False
        """Whether sessions end as soon as they are welcome."""
        self.shut_down = threading.Event()
        self.upload_failure: DeliveryError | None = None
        self.upload_gate: asyncio.Event | None = None
        self.uploads: list[str | None] = []  # the engines of each upload that was for several, else None
        self.unshared: set[int] = set()  # engines that do not take uploads that are for several
        self.damage = False
        self.incoming: dict[str, bytearray] = {}  # the bytes of every blob that was ever uploaded
        self.chunks_taken = self.chunks_given = 0
        self.cut_uploads: set[int] = set()  # after which chunks of all an upload is to break off
        self.pause = 0.0  # seconds before each chunk, either way
        self.cut_downloads = 0
        """Downloads that are to break off before their last chunk arrives."""
        self.cluster_id = "11111111-2222-4333-8444-555555555555"
        self.loop = asyncio.new_event_loop()
        self._watchers: list[asyncio.Queue[cluster_pb2.WatchEnginesResponse]] = []
        self._server: grpc.aio.Server | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._port = 0
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    # ---- the test's thread

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def start(self) -> None:
        """Listen, on the same port as before, and write the connection file."""
        self.run(self._start())
        info = _connection_file.ConnectionInfo(
            role="client",
            cluster_id=self.cluster_id,
            address=f"127.0.0.1:{self._port}",
            server_name="",
            ca_pem="",
            token="secret",
            insecure=True,
        )
        _connection_file.write(self.path, info)

    def stop(self) -> None:
        """Break every connection and listen no more."""
        self.run(self._stop())

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def add(self, engine_id: int) -> None:
        """Register one more engine."""
        self.run(self._add(engine_id))

    def lose(self, engine_id: int) -> None:
        """Unregister an engine."""
        self.run(self._remove(engine_id))

    def thaw(self) -> None:
        """Answer what frozen engines were asked."""
        self.run(self._thaw())

    # ---- the server's thread

    async def _start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers(self._handlers())
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        cluster: dict[str, Any] = {
            "Session": grpc.stream_stream_rpc_method_handler(
                self._session, cluster_pb2.SessionRequest.FromString, _serialized
            ),
            "WatchEngines": grpc.unary_stream_rpc_method_handler(
                self._watch, cluster_pb2.WatchEnginesRequest.FromString, _serialized
            ),
            "Shutdown": grpc.unary_unary_rpc_method_handler(
                self._shutdown, cluster_pb2.ShutdownRequest.FromString, _serialized
            ),
        }
        engine: dict[str, Any] = {
            "Upload": grpc.stream_unary_rpc_method_handler(
                self._upload, engine_pb2.UploadRequest.FromString, _serialized
            ),
            "Download": grpc.unary_stream_rpc_method_handler(
                self._download, engine_pb2.DownloadRequest.FromString, _serialized
            ),
            "GetOperation": grpc.unary_unary_rpc_method_handler(
                self._get_operation, operation_pb2.GetOperationRequest.FromString, _serialized
            ),
            "ListOperations": grpc.unary_unary_rpc_method_handler(
                self._list_operations, operation_pb2.ListOperationsRequest.FromString, _serialized
            ),
            "Release": grpc.unary_unary_rpc_method_handler(
                self._release, operation_pb2.ReleaseRequest.FromString, _serialized
            ),
            "Attach": grpc.unary_stream_rpc_method_handler(
                self._attach, operation_pb2.AttachRequest.FromString, _serialized
            ),
        }
        return (
            grpc.method_handlers_generic_handler("enginery.v1.ClusterService", cluster),
            grpc.method_handlers_generic_handler("enginery.v1.EngineService", engine),
        )

    async def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def _add(self, engine_id: int) -> None:
        self.engines[engine_id] = FakeEngine(engine_id)
        self._tell(cluster_pb2.ENGINE_EVENT_KIND_REGISTERED, self.engines[engine_id])

    async def _remove(self, engine_id: int) -> None:
        self._tell(cluster_pb2.ENGINE_EVENT_KIND_GONE, self.engines.pop(engine_id))

    def _tell(self, kind: cluster_pb2.EngineEventKind.ValueType, engine: FakeEngine) -> None:
        event = cluster_pb2.EngineEvent(kind=kind, engine=engine.info())
        for watcher in self._watchers:
            watcher.put_nowait(cluster_pb2.WatchEnginesResponse(events=[event]))

    async def _thaw(self) -> None:
        self.frozen.clear()
        held, self.held = self.held, []
        for call, replies in held:
            replies.put_nowait(self._once(call))

    async def _watch(
        self, request: cluster_pb2.WatchEnginesRequest, context: Any
    ) -> AsyncIterator[cluster_pb2.WatchEnginesResponse]:
        queue: asyncio.Queue[cluster_pb2.WatchEnginesResponse] = asyncio.Queue()
        self._watchers.append(queue)
        kind = cluster_pb2.ENGINE_EVENT_KIND_REGISTERED
        events = [cluster_pb2.EngineEvent(kind=kind, engine=engine.info()) for engine in self.engines.values()]
        yield cluster_pb2.WatchEnginesResponse(events=events, snapshot=True)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    async def _session(
        self, requests: AsyncIterator[cluster_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[cluster_pb2.SessionResponse]:
        first = await anext(aiter(requests))
        self.sessions.append(first.hello.session_id)
        yield cluster_pb2.SessionResponse(
            welcome=cluster_pb2.SessionWelcome(cluster_id=self.cluster_id, controller_epoch=self.epoch)
        )
        if self.ends_sessions:
            return
        replies: asyncio.Queue[frame_pb2.Reply] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, replies, first.hello.session_id))
        try:
            while True:
                batch = [await replies.get()]
                while not replies.empty():
                    batch.append(replies.get_nowait())
                yield cluster_pb2.SessionResponse(replies=batch)
        finally:
            reader.cancel()

    async def _read(self, requests: Any, replies: asyncio.Queue[frame_pb2.Reply], session_id: bytes) -> None:
        functions = FunctionWindow()
        async for message in requests:
            for function in message.functions:
                functions.take_in(function.digest, function.pickle)
                self.functions.append(function.digest)
            for call in message.calls:
                if (named := functions.named_by(call)) is not None:  # what is asked for is shown whole
                    call.request += embed(tag(1), named.pickle)
            functions.trim()
            calls = [one for call in message.calls for one in _single(call)]
            self.messages.append(len(calls))
            self.frames += len(message.calls)
            for call in calls:
                call.session_id = session_id
                self.calls.append(call)
                self._take(call, replies)

    def _take(self, call: frame_pb2.Call, replies: asyncio.Queue[frame_pb2.Reply]) -> None:
        known = (call.session_id, call.call_id)  # if it is sent again it joins what it began
        self.held = [held for held in self.held if (held[0].session_id, held[0].call_id) != known]
        if call.method == frame_pb2.METHOD_CANCEL:
            replies.put_nowait(self._cancel(call))
        elif call.engine_id in self.refusals and call.method in _methods.OPERATIONS:
            replies.put_nowait(_not_delivered(call, self.refusals[call.engine_id]))
        elif call.engine_id in self.frozen and call.method in _methods.OPERATIONS:
            self._record(call)
            self.held.append((call, replies))
        else:
            replies.put_nowait(self._once(call))

    # ---- operations

    def _record(self, call: frame_pb2.Call) -> FakeOperation | None:
        """Return the record of an operation, a new one if need be; None for a control call."""
        if call.method not in _methods.OPERATIONS:
            return None
        operation_id = _ids.show(_ids.operation_id(call.session_id, call.call_id))
        record = self.records.setdefault(operation_id, FakeOperation(operation_id, call))
        if call.engine_id in self.busy:
            record.state = operation_pb2.OPERATION_STATE_QUEUED
        return record

    def _once(self, call: frame_pb2.Call) -> frame_pb2.Reply:
        """Answer a call, an operation always the same."""
        record = self._record(call)
        if record is None:
            return self._answer(call)
        if record.reply is None:
            record.end(self._answer(call))
        assert record.reply is not None
        return record.reply

    def _cancel(self, call: frame_pb2.Call) -> frame_pb2.Reply:
        request = operation_pb2.CancelRequest.FromString(call.request)
        self.cancels.append(request)
        record = self.records.get(request.operation_id)
        if record is None:
            return _not_delivered(call, DeliveryError("OPERATION_NOT_FOUND", operation_id=request.operation_id))
        for held in list(self.held):
            if held[0].SerializeToString() == record.call.SerializeToString():
                record.stopping = True
                if not self.deaf:
                    self.held.remove(held)
                    record.end(record.cancelled())
                    assert record.reply is not None
                    held[1].put_nowait(record.reply)
        response = operation_pb2.CancelResponse(operation=record.message())
        return frame_pb2.Reply(
            call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK, response=response.SerializeToString()
        )

    def emit(self, operation_id: str, **kind: Any) -> None:
        """Let something happen to an operation that is held."""
        self.run(self._emit(operation_id, kind))

    async def _emit(self, operation_id: str, kind: dict[str, Any]) -> None:
        self.records[operation_id].emit(**kind)

    async def _found(self, operation_id: str, context: Any) -> FakeOperation:
        record = self.records.get(operation_id)
        if record is None:
            error = DeliveryError("OPERATION_NOT_FOUND", operation_id=operation_id)
            await context.abort(_status.grpc_code(error), error.text, _status.trailers(error))
        assert record is not None
        return record

    async def _get_operation(
        self, request: operation_pb2.GetOperationRequest, context: Any
    ) -> operation_pb2.GetOperationResponse:
        record = await self._found(request.operation_id, context)
        for _ in range(round(request.wait.ToNanoseconds() / 5e6)):
            if record.reply is None:
                await asyncio.sleep(0.005)
        response = operation_pb2.GetOperationResponse(operation=record.message())
        if record.outcome is not None:
            response.outcome.CopyFrom(record.outcome)
        if request.HasField("after_sequence"):
            events = [event for event in record.events if event.sequence > request.after_sequence]
            response.events.extend([event for event in events if not event.HasField("outcome")][:2])
        return response

    async def _list_operations(
        self, request: operation_pb2.ListOperationsRequest, context: Any
    ) -> operation_pb2.ListOperationsResponse:
        records = [
            record.message()
            for record in reversed(self.records.values())
            if not request.states or record.state in request.states
        ]
        start = int(request.page_token or 0)
        end = start + min(request.page_size, 2)
        token = str(end) if end < len(records) else ""
        again = max(0, start - 1)  # as if it had moved from its engine's pages to the journal's meanwhile
        return operation_pb2.ListOperationsResponse(operations=records[again:end], next_page_token=token)

    async def _release(
        self, request: operation_pb2.ReleaseRequest, context: Any
    ) -> operation_pb2.ReleaseResponse:
        known = [self.records.pop(operation_id, None) for operation_id in request.operation_ids]
        return operation_pb2.ReleaseResponse(released_count=len(known) - known.count(None))

    async def _attach(
        self, request: operation_pb2.AttachRequest, context: Any
    ) -> AsyncIterator[operation_pb2.AttachResponse]:
        record = await self._found(request.operation_id, context)
        self.attached.append(request.after_sequence)
        sent = request.after_sequence
        while True:
            events = [event for event in record.events if event.sequence > sent]
            cut, self.cut_after = (self.cut_after, None) if events else (None, self.cut_after)
            events = events[:cut]
            if events:
                sent = events[-1].sequence
                yield operation_pb2.AttachResponse(events=events)
                if cut is not None or events[-1].HasField("outcome"):
                    return
            await asyncio.sleep(0.005)

    def _answer(self, call: frame_pb2.Call) -> frame_pb2.Reply:
        name = _methods.NAMES[call.method]
        try:
            engine = self.engines.get(call.call_id % 2 if call.HasField("task") else call.engine_id)
            if engine is None:
                ids = ", ".join(map(str, self.engines))
                raise DeliveryError("INVALID_ENGINE_ID", engine_id=call.engine_id, engine_ids=ids)
            request = getattr(engine_pb2, f"{name}Request").FromString(call.request)
            operation_id = _ids.operation_id(call.session_id, call.call_id)
            outcome, response = engine.call(name, request, operation_id)
        except DeliveryError as error:
            if name == "Kill":
                self._tell(cluster_pb2.ENGINE_EVENT_KIND_GONE, self.engines.pop(call.engine_id))
            return _not_delivered(call, error)
        reply = frame_pb2.Reply(
            call_id=call.call_id, outcome=frame_pb2.Outcome.ValueType(outcome), response=response
        )
        if call.HasField("task"):
            reply.engine_id, reply.attempts = engine.engine_id, 1
        return reply

    async def _shutdown(self, request: Any, context: Any) -> cluster_pb2.ShutdownResponse:
        self.shut_down.set()
        asyncio.get_running_loop().call_later(0.05, self._stop_soon)
        return cluster_pb2.ShutdownResponse()

    def _stop_soon(self) -> None:
        self._stopping = asyncio.create_task(self._stop())

    def _engine(self, context: Any) -> FakeEngine:
        metadata = dict(context.invocation_metadata())
        assert metadata["authorization"] == "Bearer secret"
        return self.engines[int(metadata[_methods.ENGINE_ID_KEY])]

    async def _upload(self, requests: Any, context: Any) -> engine_pb2.UploadResponse:
        several = dict(context.invocation_metadata()).get(_methods.ENGINE_IDS_KEY)
        self.uploads.append(several)
        if several is None:
            engines = [self._engine(context)]
        else:
            engines = [self.engines[int(one)] for one in several.split(",") if int(one) not in self.unshared]
        if self.upload_gate is not None:
            await self.upload_gate.wait()
        if self.upload_failure is not None:
            code, text = _status.grpc_code(self.upload_failure), self.upload_failure.text
            await context.abort(code, text, _status.trailers(self.upload_failure))
        blob = (await anext(aiter(requests))).blob
        data = self.incoming.setdefault(blob.blob_id, bytearray())
        async for request in requests:
            assert request.chunk.offset == len(data)
            assert 0 < len(request.chunk.data) <= 1 << 20
            data += request.chunk.data
            self.chunks_taken += 1
            await asyncio.sleep(self.pause)
            if self.chunks_taken in self.cut_uploads:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if len(data) != blob.size:
            missing = DeliveryError("UPLOAD_INCOMPLETE", blob_id=blob.blob_id, offset=len(data), size=blob.size)
            await context.abort(_status.grpc_code(missing), missing.text, _status.trailers(missing))
        for engine in engines:
            engine.blobs[blob.blob_id] = (blob, bytes(data))
        ids = [] if several is None else [engine.engine_id for engine in engines]
        return engine_pb2.UploadResponse(blob=blob, engine_ids=ids)

    async def _download(
        self, request: engine_pb2.DownloadRequest, context: Any
    ) -> AsyncIterator[engine_pb2.DownloadResponse]:
        engine = self._engine(context)
        if request.blob_id not in engine.blobs:
            error = DeliveryError("BLOB_NOT_FOUND", blob_id=request.blob_id, engine_id=engine.engine_id)
            await context.abort(_status.grpc_code(error), error.text, _status.trailers(error))
        blob, data = engine.blobs[request.blob_id]
        yield engine_pb2.DownloadResponse(blob=blob)
        for offset in range(request.offset, len(data), 1 << 19):
            self.chunks_given += 1
            if self.cut_downloads and offset + (1 << 19) >= len(data):
                self.cut_downloads -= 1
                if request.release:  # as a host does that has sent all, though not all of it arrived
                    del engine.blobs[request.blob_id]
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            await asyncio.sleep(self.pause)
            chunk = value_pb2.Chunk(offset=offset, data=data[offset : offset + (1 << 19)])
            if self.damage:
                chunk.crc32 = 1
            yield engine_pb2.DownloadResponse(chunk=chunk)
        if request.release:
            engine.released.append(request.blob_id)
            del engine.blobs[request.blob_id]


def _single(call: frame_pb2.Call) -> list[frame_pb2.Call]:
    """Return the calls that one to many engines stands for."""
    calls = []
    for position, target in enumerate(call.targets):
        one = frame_pb2.Call()
        one.CopyFrom(call)
        one.ClearField("targets")
        one.call_id += position
        one.engine_id, one.sent_epoch = target.engine_id, target.sent_epoch
        calls.append(one)
    return calls or [call]


def info_of(controller: FakeController) -> _connection_file.ConnectionInfo:
    """Return what the controller's connection file says."""
    return dataclasses.replace(_connection_file.read(controller.path, "client"))
