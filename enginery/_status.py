"""google.rpc.Status ↔ DeliveryError: the only shared module that touches gRPC statuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from enginery import _times
from enginery._reasons import DOMAIN, TABLE, Code, DeliveryError, Retry

if TYPE_CHECKING:
    from collections.abc import Iterable

DETAILS_KEY = "grpc-status-details-bin"
_MAX_TEXT = 1024  # bytes: trailers over 8 KB fail at random (gRPC's default limit of metadata)
_MAX_METADATA = 2048
_RETRY_HINT_MS = 100
_LONGEST_HINT = 60.0  # seconds
_FAILED_WRITE = "Internal error from Core"  # gRPC's text where a write met the end of its stream


def to_proto(error: DeliveryError) -> status_pb2.Status:
    """Return the status message that carries `error`, small enough for any trailer."""
    metadata: dict[str, str] = {}
    room = _MAX_METADATA
    for key, value in error.metadata.items():
        room -= len(key) + len(value.encode())
        if room < 0:
            break
        metadata[key] = value
    message = error.text.encode("ascii", "backslashreplace")[:_MAX_TEXT].decode("ascii")
    status = status_pb2.Status(code=int(error.code), message=message)
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if TABLE[error.reason].retry is Retry.LATER:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_RETRY_HINT_MS)
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _pack(status: status_pb2.Status, detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def from_proto(status: status_pb2.Status) -> DeliveryError:
    """Return the error that `status` carries; without a known reason it is CONTROLLER_LOST or INTERNAL."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            if info.domain == DOMAIN and info.reason in TABLE:
                return DeliveryError(info.reason, **dict(info.metadata))
    return _unknown(status.code, status.message)


def to_bytes(error: DeliveryError) -> bytes:
    """Return `error` as the bytes of a frame."""
    data: bytes = to_proto(error).SerializeToString()
    return data


def from_bytes(data: bytes) -> DeliveryError:
    """Return the error in the bytes of a frame; malformed bytes become an INTERNAL one."""
    try:
        return from_proto(status_pb2.Status.FromString(data))
    except Exception as error:  # protobuf raises DecodeError, whose class differs between implementations
        return DeliveryError("INTERNAL", cause=f"malformed status: {error}", process="peer")


def retry_delay(data: bytes) -> float:
    """Return how long the error in the bytes of a frame asks to wait before calling again, in seconds; 0 if it
    does not say. At most a minute: whoever is told to wait for longer asks before."""
    for detail in status_pb2.Status.FromString(data).details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            hint = error_details_pb2.RetryInfo()
            try:
                detail.Unpack(hint)
            except Exception:  # as above: a hint that cannot be read is none
                return 0.0
            return min(max(_times.seconds(hint.retry_delay), 0.0), _LONGEST_HINT)
    return 0.0


def trailers(error: DeliveryError) -> tuple[tuple[str, bytes], ...]:
    """Return trailing metadata that carries `error`."""
    return ((DETAILS_KEY, to_bytes(error)),)


def grpc_code(error: DeliveryError) -> grpc.StatusCode:
    """Return gRPC's own enum member of the error's code."""
    return _CODES[int(error.code)]


def from_rpc(error: grpc.aio.AioRpcError) -> DeliveryError:
    """Return the error that a failed rpc carries."""
    return from_parts(error.code(), error.details() or "", error.trailing_metadata() or ())


def from_parts(
    code: grpc.StatusCode, details: str, trailing: Iterable[tuple[str, str | bytes]]
) -> DeliveryError:
    """Return the error of a finished rpc from its code, text and trailing metadata."""
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            return from_bytes(value)
    return _unknown(code.value[0], details)


def hides_status(error: grpc.aio.AioRpcError) -> bool:
    """Return whether gRPC put a failed write in the place of the status that ended the stream."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _FAILED_WRITE


def _unknown(code: int, message: str) -> DeliveryError:
    if code in (Code.UNAVAILABLE, Code.CANCELLED) or message == _FAILED_WRITE:
        return DeliveryError("CONTROLLER_LOST", cause=message)
    if code == Code.UNAUTHENTICATED:
        return DeliveryError("WRONG_TOKEN")
    if code == Code.UNIMPLEMENTED:
        return DeliveryError("UNKNOWN_METHOD", method=message)
    if code == Code.RESOURCE_EXHAUSTED:
        return DeliveryError(
            "VALUE_TOO_LARGE", size="the message's", limit="the receiver's", option=f"gRPC ({message})"
        )
    return DeliveryError("INTERNAL", cause=f"status {code}: {message}", process="peer")


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
