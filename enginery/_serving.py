"""What every Enginery server does for every call: who may call what, and how errors leave.

One interceptor, `Guard`, stands before all handlers, those of reflection and health included. It denies by
default; it turns a DeliveryError into its status, and a defect into INTERNAL with the traceback in the log.
Handlers must be those of grpc.aio: coroutines or async generators.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import inspect
import ipaddress
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from enginery._reasons import DeliveryError
from enginery._status import grpc_code, trailers
from enginery.errors import EngineryError

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

logger = logging.getLogger(__name__)

ENGINE = "engine"
CLIENT = "client"
ROLES = frozenset({ENGINE, CLIENT})

_REFLECTION = "grpc.reflection.{version}.ServerReflection"
_REFLECTION_METHOD = "ServerReflectionInfo"


def token_digest(token: str) -> bytes:
    """Return the SHA-256 of a token, 32 bytes: all that a server needs to keep."""
    return hashlib.sha256(token.encode()).digest()


class Authorizer:
    """Knows which role a call has."""

    def __init__(
        self,
        digests: Mapping[str, bytes],
        *,
        also: Iterable[tuple[str, bytes]] = (),
        socket_role: str | None = None,
    ) -> None:
        """Take the digest of each role's token, those of further tokens, and the role of callers on a Unix
        socket, if any."""
        self._digests = [*digests.items(), *also]
        self._socket_role = socket_role

    def role(self, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> str:
        """Return the role of a caller; DeliveryError MISSING_TOKEN or WRONG_TOKEN if it has none."""
        given = next((value for key, value in metadata if key == "authorization"), None)
        if given is not None:
            digest = token_digest(_bearer(given))
            for role, expected in self._digests:
                if hmac.compare_digest(digest, expected):
                    return role
        if self._socket_role is not None and peer.startswith("unix:"):
            return self._socket_role
        raise DeliveryError("MISSING_TOKEN" if given is None else "WRONG_TOKEN")


def _bearer(value: str | bytes) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    scheme, _, token = text.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def service_roles(service: ServiceDescriptor, *roles: str) -> dict[str, frozenset[str]]:
    """Return the part of a role table that lets `roles` call every rpc of `service`."""
    return {f"/{service.full_name}/{rpc.name}": frozenset(roles) for rpc in service.methods}


_INTROSPECTION_ROLES: dict[str, frozenset[str]] = {
    **service_roles(health_pb2.DESCRIPTOR.services_by_name["Health"], *ROLES),
    **{f"/{_REFLECTION.format(version=version)}/{_REFLECTION_METHOD}": ROLES for version in ("v1", "v1alpha")},
}

_Behaviour = Callable[[Any, Any], Any]
_Decode = Callable[[Any], Any]


class Guard(grpc.aio.ServerInterceptor):
    """Authorises every call and translates every error. See the module's text."""

    def __init__(self, authorizer: Authorizer, roles: Mapping[str, frozenset[str]], *, process: str) -> None:
        """Take who is who, the roles of each method by its path, and the process's name for error texts.

        A method that is not in the table is denied to all; health and reflection are open to every role.
        """
        self._authorizer = authorizer
        self._roles = {**_INTROSPECTION_ROLES, **roles}
        self._process = process

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the guarded handler; one that refuses where there is none."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._unknown(method))
        return self._guard(method, handler)

    def _authorize(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        role = self._authorizer.role(context.invocation_metadata() or (), context.peer())
        if role not in self._roles.get(method, frozenset()):
            raise DeliveryError("WRONG_ROLE", role=role, method=method)

    def _unknown(self, method: str) -> _Behaviour:
        async def behave(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                self._authorizer.role(context.invocation_metadata() or (), context.peer())
                raise DeliveryError("UNKNOWN_METHOD", method=method)
            except DeliveryError as error:
                await _abort(context, error)

        return behave

    def _guard(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        decode = _checked(handler.request_deserializer, method)
        inner: _Behaviour
        if handler.request_streaming:
            inner = handler.stream_stream if handler.response_streaming else handler.stream_unary  # type: ignore[assignment]
            first: _Decode = (
                _as_is  # grpc decodes each message as the handler reads it; ours raises through the handler
            )
        else:
            inner = handler.unary_stream if handler.response_streaming else handler.unary_unary  # type: ignore[assignment]
            first = decode or _as_is  # decoded here, since grpc would answer a bad message with UNKNOWN
        wrap = self._wrap_generator if inspect.isasyncgenfunction(inner) else self._wrap_coroutine
        make = _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        return make(
            wrap(method, inner, first),
            request_deserializer=decode if handler.request_streaming else None,
            response_serializer=handler.response_serializer,
        )

    def _wrap_coroutine(self, method: str, inner: _Behaviour, decode: _Decode) -> _Behaviour:
        async def behave(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                self._authorize(method, context)
                return await inner(decode(request), context)
            except Exception as error:
                await self._fail(method, context, error)

        return behave

    def _wrap_generator(self, method: str, inner: _Behaviour, decode: _Decode) -> _Behaviour:
        async def behave(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                self._authorize(method, context)
                async for response in inner(decode(request), context):
                    yield response
            except Exception as error:
                await self._fail(method, context, error)

        return behave

    async def _fail(
        self, method: str, context: grpc.aio.ServicerContext[Any, Any], error: Exception
    ) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error  # the handler chose the status itself
        if not isinstance(error, DeliveryError):
            logger.error("defect while serving %s", method, exc_info=error)
            cause = f"{type(error).__name__} in {method}"
            error = DeliveryError("INTERNAL", cause=cause, process=self._process)
        await _abort(context, error)


_MAKERS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _as_is(request: Any) -> Any:
    return request


def _checked(decode: Callable[[bytes], Any] | None, method: str) -> Callable[[bytes], Any] | None:
    """Return `decode` with MALFORMED_MESSAGE for bytes that it refuses; None for raw handlers."""
    if decode is None:
        return None
    message = getattr(getattr(decode, "__self__", None), "DESCRIPTOR", None)
    name = message.full_name if message is not None else f"request of {method}"

    def checked(data: bytes) -> Any:
        try:
            return decode(data)
        except Exception as error:  # protobuf's DecodeError differs in class between its implementations
            raise DeliveryError("MALFORMED_MESSAGE", message=name) from error

    return checked


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: DeliveryError) -> NoReturn:
    status_text = error.text.encode("ascii", "backslashreplace")[:1024].decode("ascii")
    await abort(context, grpc_code(error), status_text, trailers(error))


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    code: grpc.StatusCode,
    text: str,
    trailing: tuple[tuple[str, bytes], ...],
) -> NoReturn:
    """End an rpc with a status. A caller who has gone meanwhile cannot be told, which is nobody's defect."""
    try:
        await context.abort(code, text, trailing)
    except grpc.aio.AbortError:
        raise
    except Exception as failure:  # grpc has no public type for it
        logger.debug("a caller has gone before it was told %s (%s): %r", code.name, text, failure)
        raise asyncio.CancelledError from None
    raise AssertionError("abort returned")  # it always raises; its stub says otherwise


async def add_introspection(server: grpc.aio.Server, service_names: Iterable[str]) -> health.aio.HealthServicer:
    """Add health and reflection for `service_names`, all SERVING, and return the health servicer.

    Reflection is served under both of its names with one handler: tools try v1 first, and grpcio's own package
    knows only v1alpha, whose messages are the same on the wire.
    """
    names = list(service_names)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in names:
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    listed = [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflector = reflection.aio.ReflectionServicer(listed)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, server)
    alias = grpc.stream_stream_rpc_method_handler(
        reflector.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    v1 = grpc.method_handlers_generic_handler(_REFLECTION.format(version="v1"), {_REFLECTION_METHOD: alias})
    server.add_generic_rpc_handlers((v1,))
    return servicer


def server_credentials(key_pem: bytes, certificate_pem: bytes) -> grpc.ServerCredentials:
    """Return what a TLS port needs."""
    return grpc.ssl_server_credentials([(key_pem, certificate_pem)])


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an IP address, can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


INSECURE_NOTICE = (
    "--insecure: the port speaks plaintext, so whoever may watch this machine's loopback traffic sees tokens "
    "and values; tokens are still required"
)


def check_insecure(bind: str) -> None:
    """Raise EngineryError unless `bind`, the host part of an address, is loopback: --insecure is for that."""
    if not is_loopback(bind):
        raise EngineryError(
            f"--insecure is refused with --bind {bind}: plaintext beyond this machine would show tokens to the "
            "network; leave --insecure out (TLS needs no set-up), or bind 127.0.0.1"
        )
