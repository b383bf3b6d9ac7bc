"""The stubs that clients use: an answer that is no message is refused with MALFORMED_MESSAGE.

gRPC by itself logs a traceback then, and hands None to whoever waits for the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc.aio

from enginery._reasons import DeliveryError
from enginery.v1 import cluster_pb2_grpc, engine_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable


def cluster_stub(channel: grpc.aio.Channel) -> Any:
    """Return the stub of ClusterService; not for its Session."""
    return cluster_pb2_grpc.ClusterServiceStub(_CheckedChannel(channel))  # type: ignore[call-overload]


def engine_stub(channel: grpc.aio.Channel) -> Any:
    """Return the stub of EngineService; not for Upload."""
    return engine_pb2_grpc.EngineServiceStub(_CheckedChannel(channel))  # type: ignore[call-overload]


class _CheckedChannel:
    """A channel whose calls read what they hear themselves. Of gRPC's it has what the stubs need."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Call over `channel`, which stays its owner's."""
        self._channel: Any = channel

    def unary_unary(
        self, method: str, *, response_deserializer: Callable[[bytes], Any], **options: Any
    ) -> Callable[..., Any]:
        """Return what makes a call and waits for its answer."""
        rpc = self._channel.unary_unary(method, **options)

        async def call(request: object, **how: Any) -> Any:
            return _read(method, response_deserializer, await rpc(request, **how))

        return call

    def unary_stream(
        self, method: str, *, response_deserializer: Callable[[bytes], Any], **options: Any
    ) -> Callable[..., Answers]:
        """Return what makes a call that is answered by a stream."""
        rpc = self._channel.unary_stream(method, **options)
        return lambda request, **how: Answers(method, response_deserializer, rpc(request, **how))

    def stream_unary(self, *_: object, **__: object) -> None:
        """Values go another way, see `_transfer`."""

    def stream_stream(self, *_: object, **__: object) -> None:
        """Sessions are opened by `_connection`."""


class Answers:
    """The messages that answer one call."""

    def __init__(self, method: str, parse: Callable[[bytes], Any], call: Any) -> None:
        """Made by a stub."""
        self._method, self._parse, self._call = method, parse, call

    async def read(self) -> Any:
        """Return the next one, `grpc.aio.EOF` behind the last; MALFORMED_MESSAGE if it is none."""
        data = await self._call.read()
        return data if data is grpc.aio.EOF else _read(self._method, self._parse, data)

    def cancel(self) -> bool:
        """End the call."""
        return bool(self._call.cancel())


def _read(method: str, parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except Exception as error:  # DecodeError, whose class differs between protobuf's implementations
        message = f"{method.rpartition('/')[2]}Response"
        raise DeliveryError("MALFORMED_MESSAGE", message=message) from error
