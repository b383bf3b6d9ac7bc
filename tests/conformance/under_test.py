"""An engine as the conformance suite sees it: one call, by name, with the contract's messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import cloudpickle

from enginery import _codec
from enginery._encoded import Codec
from enginery._values import from_value, to_value
from enginery.v1 import engine_pb2, operation_pb2, value_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

Response = TypeVar("Response", bound="Message")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls and how: session (8 bytes, or none), operation (16 bytes, by default a new one) and options."""

    session_id: bytes = b""
    keep_queue: bool = False
    inline_limit: int = 1 << 20
    operation_id: bytes = b""
    timeout: float | None = None
    grace: float | None = None
    interrupt_only: bool = False
    any_incarnation: bool = False


@dataclass(slots=True)
class Transport:
    """How to reach one engine."""

    name: str
    call: Call
    upload: Upload
    download: Download
    attach: Download
    registered: bool = field(default=True)


class Call(Protocol):
    """Calls a unary method; DeliveryError if it is not delivered."""

    async def __call__(self, method: str, request: bytes, caller: Caller) -> bytes: ...


class Upload(Protocol):
    """Sends the messages of an upload."""

    async def __call__(self, requests: AsyncIterator[bytes]) -> bytes: ...


class Download(Protocol):
    """Returns the messages of a streaming call: Download, Attach."""

    def __call__(self, request: bytes) -> AsyncIterator[bytes]: ...


NOBODY = Caller()


class EngineUnderTest:
    """Typed calls over one transport, with shortcuts for what most tests do."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def call(self, request: Message, answer: type[Response], caller: Caller = NOBODY) -> Response:
        """Call the method that `request` is named after."""
        method = type(request).__name__.removesuffix("Request")
        data = await self.transport.call(method, request.SerializeToString(), caller)
        return answer.FromString(data)

    async def submit(self, code: str, caller: Caller = NOBODY) -> str:
        """Submit source and return its operation's id."""
        request = engine_pb2.SubmitRequest(execute=engine_pb2.ExecuteRequest(code=code))
        return (await self.call(request, engine_pb2.SubmitResponse, caller)).operation.operation_id

    async def operation(
        self, operation_id: str, *, wait: float = 0, after: int | None = None
    ) -> operation_pb2.GetOperationResponse:
        """Return an operation, by default at once."""
        request = operation_pb2.GetOperationRequest(operation_id=operation_id, after_sequence=after)
        request.wait.FromMilliseconds(round(wait * 1000))
        return await self.call(request, operation_pb2.GetOperationResponse)

    async def events(self, operation_id: str, after: int = 0) -> AsyncIterator[operation_pb2.OperationEvent]:
        """Attach and return event by event."""
        request = operation_pb2.AttachRequest(operation_id=operation_id, after_sequence=after)
        async for data in self.transport.attach(request.SerializeToString()):
            for event in operation_pb2.AttachResponse.FromString(data).events:
                yield event

    async def cancel(
        self, operation_id: str, *, grace: float | None = None, interrupt_only: bool | None = None
    ) -> operation_pb2.Operation:
        """Cancel an operation and return how it stands."""
        request = operation_pb2.CancelRequest(operation_id=operation_id, interrupt_only=interrupt_only)
        if grace is not None:
            request.grace.FromMilliseconds(round(grace * 1000))
        return (await self.call(request, operation_pb2.CancelResponse)).operation

    async def execute(
        self, code: str, *accept: value_pb2.Codec.ValueType, caller: Caller = NOBODY
    ) -> engine_pb2.ExecuteResult:
        """Run source and return its record."""
        request = engine_pb2.ExecuteRequest(code=code, accept=accept)
        return (await self.call(request, engine_pb2.ExecuteResponse, caller)).result

    async def evaluate(self, expression: str) -> object:
        """Return the value of an expression, by pickle."""
        result = await self.execute(expression, value_pb2.CODEC_PICKLE)
        assert not result.HasField("error"), result.error.traceback
        return decode(result.value)

    async def push(self, **namespace: object) -> engine_pb2.PushResponse:
        """Push objects as one pickle."""
        return await self.call(
            engine_pb2.PushRequest(pickled=encode(namespace).pickle), engine_pb2.PushResponse
        )

    async def pull(self, *keys: str) -> dict[str, object]:
        """Pull objects as one pickle."""
        response = await self.call(
            engine_pb2.PullRequest(keys=keys, accept=[value_pb2.CODEC_PICKLE]), engine_pb2.PullResponse
        )
        assert not response.HasField("error"), response.error.traceback
        value = decode(value_pb2.Value(pickle=response.pickled))
        assert isinstance(value, dict)
        return value


def encode(obj: object, *accept: Codec) -> value_pb2.Value:
    """Encode as the client does."""
    return to_value(_codec.encode(obj, accept or (Codec.PICKLE,)))


def decode(value: value_pb2.Value) -> object:
    """Decode as the client does."""
    return _codec.decode(from_value(value))


def pickled(obj: object) -> value_pb2.Pickle:
    """Pickle by value, as for functions of a script."""
    return value_pb2.Pickle(python_version=_python_version(), data=cloudpickle.dumps(obj, protocol=5))


def _python_version() -> str:
    import platform

    return platform.python_version()
