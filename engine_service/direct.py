"""The host's own port: EngineService and Session for its engines, for clients that can reach the host directly.

The port is reserved at once, so that hellos can name it, and serves nothing before the controller has signed
its certificate and said by which digest clients are known.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from engine_service.direct_sessions import DirectSessions
from engine_service.servicer import engine_handlers
from enginery import _address
from enginery._certificates import issuer, make_request
from enginery._channel import SERVER_OPTIONS
from enginery._methods import ENGINE_SERVICE
from enginery._open_streams import OpenStreams
from enginery._reasons import DeliveryError
from enginery._serving import (
    CLIENT,
    Authorizer,
    Guard,
    add_introspection,
    check_insecure,
    server_credentials,
    service_roles,
)
from enginery._session_server import METHOD as SESSION
from enginery.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from grpc_health.v1 import health

    from engine_service.engine import Engine

logger = logging.getLogger(__name__)

_GRACE = 1.0


class DirectPort:
    """The port, first reserved, then open."""

    def __init__(
        self, engines: Sequence[Engine], *, bind: str = "127.0.0.1", advertise: str | None = None, port: int = 0
    ) -> None:
        """Reserve a port of the address `bind`; clients are told `advertise`, HOST or HOST:PORT.

        By default that is the same address, or the one by which the controller is reached if `bind` means all.
        OSError if the port cannot be had.
        """
        self._engines = engines
        self._bind = bind = bind.strip("[]")
        self._advertise = advertise or ("" if bind in _address.WILDCARDS else bind)
        self._key, request = make_request()
        self.certificate_request = request.decode()
        self._reserved: socket.socket | None = _reserve(bind, port)
        self.port: int = self._reserved.getsockname()[1]
        self._server: grpc.aio.Server | None = None
        self._health: health.aio.HealthServicer | None = None
        self._is_draining = False
        self._reporting: asyncio.Task[None] | None = None
        self._known: tuple[str, tuple[bytes, ...], bytes] | None = None
        self._streams = OpenStreams()
        self.on_call: Callable[[], None] = lambda: None
        """Called with each call of a Session."""

    async def addresses(self, controller: str) -> list[str]:
        """Return where clients can reach it, `host:port`; `controller` is the controller's address."""
        if self._advertise:
            host, port = _address.split(self._advertise)
            return [_address.join(host, port or self.port)]
        return [_address.join(await asyncio.to_thread(_address.own_towards, controller), self.port)]

    @property
    def is_open(self) -> bool:
        """Whether it serves."""
        return self._server is not None

    async def open(
        self,
        cluster_id: str,
        certificate: str,
        client_token_digest: bytes,
        direct_token_digests: tuple[bytes, ...] = (),
    ) -> None:
        """Serve clients that have the token of this digest, or one of those that are for this host alone;
        without a certificate in plaintext, on loopback.

        Called again with the same cluster, digests and authority it does nothing; with others, or with TLS in
        the place of plaintext, it serves those alone.
        """
        try:
            authority = issuer(certificate.encode()) if certificate else b""
        except CertificateError:
            logger.exception("the host's own port stays as it is")
            return
        known = (cluster_id, (client_token_digest, *direct_token_digests), authority)
        if self._known == known or self._is_draining:
            return
        if self._server is not None:
            self.engine_changed()
            await self._server.stop(_GRACE)
            self._server = None
        guard = Guard(
            Authorizer(
                {CLIENT: client_token_digest}, also=[(CLIENT, digest) for digest in direct_token_digests]
            ),
            {**service_roles(ENGINE_SERVICE, CLIENT), SESSION: frozenset({CLIENT})},
            process="engine host",
        )
        # The reserved socket lets go only when the server has the port.
        options = [option for option in SERVER_OPTIONS if option[0] != "grpc.so_reuseport"]
        server = grpc.aio.server(interceptors=(guard,), options=[*options, ("grpc.so_reuseport", 1)])
        sessions = DirectSessions(self._engines, self._streams, cluster_id, self._called)
        server.add_generic_rpc_handlers((engine_handlers(self._engines), sessions.handlers()))
        health = await add_introspection(server, [ENGINE_SERVICE.full_name])
        address = _address.join(self._bind, self.port)
        try:
            if certificate:
                server.add_secure_port(address, server_credentials(self._key, certificate.encode()))
            else:
                check_insecure(self._bind)
                server.add_insecure_port(address)
            await server.start()
        except Exception:
            # Clients go through the controller then; the engines are none the worse.
            logger.exception("the host's own port %s does not open", address)
            await server.stop(None)
            return
        self._server = server
        self._health = health
        self._known = known
        self._let_go()
        logger.info("direct calls at %s", address)

    def engine_changed(self) -> None:
        """An engine has another id or registration: end all Sessions, so that clients ask anew who is here."""
        for stream in self._streams:
            stream.end(DeliveryError("SUPERSEDED"))

    def _called(self) -> None:
        self.on_call()

    def drain(self) -> None:
        """Report NOT_SERVING from here on; calls are answered as before. Needs a running loop."""
        self._is_draining = True
        if self._health is not None and self._reporting is None:
            self._reporting = asyncio.create_task(self._health.enter_graceful_shutdown())

    async def close(self) -> None:
        """Stop serving."""
        self._let_go()
        if self._reporting is not None:
            await self._reporting
        if self._server is not None:
            for stream in self._streams:
                stream.end_behind(DeliveryError("SHUTTING_DOWN", process="engine host"))
            await self._server.stop(_GRACE)
            self._server = None

    def _let_go(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None


def _reserve(bind: str, port: int) -> socket.socket:
    """Return a socket that holds a port without listening, so that nothing answers there yet."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        if port:  # held by another host? With SO_REUSEPORT the two would share it
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((bind, port))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((bind, port))
    except OSError:
        reserved.close()
        raise
    return reserved
