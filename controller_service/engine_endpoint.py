"""ControllerService.RegisterEngine: pumps the streams of engine hosts. Translates, nothing else."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from google.protobuf import duration_pb2

from controller_service.events import Facts, HelloReceived, Registration
from controller_service.link import Link
from enginery._direct_token import MAX_ADDRESSES
from enginery._reasons import DeliveryError
from enginery._requests import parse
from enginery._server_stream import Stream
from enginery._status import to_bytes
from enginery.errors import CertificateError
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import grpc.aio

    from controller_service.switchboard import Switchboard
    from enginery._open_streams import OpenStreams

logger = logging.getLogger(__name__)

_LONGEST_DURATION = 315_576_000_000  # seconds: the bound of google.protobuf.Duration
_LAST_SECOND = 253_402_300_799  # of the year 9999: the bound of google.protobuf.Timestamp
_NANOS = 1_000_000_000
_REFUSALS = frozenset({"FENCED", "BAD_REQUEST", "WRONG_CLUSTER"})  # of one engine; the stream goes on


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What every welcome tells."""

    cluster_id: str
    controller_epoch: int
    client_token_digest: bytes
    sign_request: Callable[[bytes, Collection[str]], bytes] | None
    """Makes a certificate of a PEM request and further names; None if the cluster speaks plaintext."""
    direct_digest: Callable[[str], bytes] | None = None
    """Says by which digest the host at an address knows clients that show it a token of its own."""


class EngineEndpoint:
    """Serves RegisterEngine. One object for all streams."""

    def __init__(self, switchboard: Switchboard, cluster: ClusterFacts, streams: OpenStreams) -> None:
        """Register engines in `switchboard`."""
        self._switchboard = switchboard
        self._cluster = cluster
        self._streams = streams

    async def register_engine(self, _requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Serve one stream until its host ends it, or breaks the contract."""
        # What waits for the stream are calls, which the references bound.
        async with self._streams.opened(Stream(context, limit=None)) as stream:
            number = self._switchboard.next_stream_number()
            link = Link(number, stream.send, stream.end)
            connection = _Connection(self._switchboard, self._cluster, link, context.peer())
            try:
                await stream.read_all(connection.receive)
            finally:
                self._switchboard.close_link(link)


class _Connection:
    """Takes the messages of one host."""

    def __init__(self, switchboard: Switchboard, cluster: ClusterFacts, link: Link, peer: str) -> None:
        self._switchboard = switchboard
        self._registry = switchboard.registry
        self._cluster = cluster
        self._link = link
        self._ip, self._port = address(peer)
        self._greeted = False

    def receive(self, data: bytes) -> None:
        """Handle one serialized EngineMessage, field by field in the order of their numbers, goodbyes last."""
        message = parse(engine_pb2.EngineMessage, data)
        if not self._greeted and not message.hellos:
            raise DeliveryError("PROTOCOL_ERROR", cause="the first message must hold a hello")
        self._greeted = True
        number = self._link.number
        for hello in message.hellos:
            self._greet(hello)
        if message.HasField("heartbeat"):
            self._heartbeat(message.heartbeat)
        for kernel in message.kernels_changed:
            self._registry.kernel_changed(
                number, kernel.engine_id, kernel.incarnation, kernel.pid, kernel.reason
            )
        for changed in message.properties_changed:
            self._registry.properties_changed(number, changed.engine_id, dict(changed.properties))
        dropped = self._switchboard.journal.dropped
        for reply in message.replies:
            self._link.answer(reply)
        for ended in message.ended:
            self._switchboard.ended(self._link, ended)
        if message.accepted_count:
            self._link.accepted(message.accepted_count)
        self._count(len(message.replies) + len(message.ended), dropped)
        for goodbye in message.goodbyes:
            self._registry.goodbye(number, goodbye.engine_id, goodbye.reason)

    def _count(self, answers: int, dropped: int) -> None:
        """Count the answers of a message before which the journal had dropped so many."""
        receipts, journal = self._link.receipts, self._switchboard.journal
        if journal.dropped > dropped:
            receipts.miss(appended=journal.appended)
        receipts.take(answers)
        if receipts.is_due:
            self._switchboard.acknowledge(self._link)

    def _send(self, message: engine_pb2.ControllerMessage) -> None:
        self._link.send(message.SerializeToString())

    def _heartbeat(self, heartbeat: engine_pb2.Heartbeat) -> None:
        for status in heartbeat.engines:
            begun = status.start_time
            if not (0 <= begun.seconds <= _LAST_SECOND and 0 <= begun.nanos < _NANOS):
                cause = f"{begun.seconds} s is no time that clients could show"
                raise DeliveryError("BAD_REQUEST", field="heartbeat.engines.start_time", cause=cause)
        self._switchboard.heartbeat(self._link, heartbeat.engines)
        acknowledgement = engine_pb2.HeartbeatAck(sequence=heartbeat.sequence)
        self._send(engine_pb2.ControllerMessage(heartbeat_ack=acknowledgement))

    def _greet(self, hello: engine_pb2.Hello) -> None:
        try:
            certificate = self._certify(hello)
            engine = self._switchboard.hello(self._link, self._translate(hello))
        except DeliveryError as error:
            if error.reason not in _REFUSALS:
                raise
            logger.warning("hello refused (%s:%d, slot %d): %s", self._ip, self._port, hello.slot, error)
            refusal = engine_pb2.Refusal(slot=hello.slot, error=to_bytes(error))
            self._send(engine_pb2.ControllerMessage(refusals=(refusal,)))
            return
        self._send(engine_pb2.ControllerMessage(welcomes=(self._welcome(engine, certificate),)))
        self._switchboard.connect(engine, self._link, frozenset(hello.operation_ids))

    def _certify(self, hello: engine_pb2.Hello) -> str:
        if not hello.certificate_request or self._cluster.sign_request is None:
            return ""
        names = {self._ip, hello.hostname} - {""}
        try:
            return self._cluster.sign_request(hello.certificate_request.encode(), names).decode()
        except (CertificateError, ValueError) as error:  # ValueError: a name that no certificate can bear
            raise DeliveryError("BAD_REQUEST", field="certificate_request", cause=error) from error

    def _translate(self, hello: engine_pb2.Hello) -> HelloReceived:
        for name in ("host_id", "incarnation"):
            if not getattr(hello, name):
                raise DeliveryError("BAD_REQUEST", field=name, cause="it is required")
        return HelloReceived(
            host_id=hello.host_id,
            slot=hello.slot,
            incarnation=hello.incarnation,
            engine_id=hello.engine_id if hello.HasField("engine_id") else None,
            epoch=hello.epoch if hello.HasField("epoch") else None,
            facts=Facts(
                pid=hello.pid,
                hostname=hello.hostname,
                ip=self._ip,
                port=self._port,
                python_version=hello.python_version,
                enginery_version=hello.enginery_version,
                direct_addresses=tuple(hello.direct_addresses),
                memory_limit=hello.memory_limit,
            ),
            properties=dict(hello.properties),
        )

    def _welcome(self, engine: Registration, certificate: str) -> engine_pb2.Welcome:
        return engine_pb2.Welcome(
            slot=engine.slot,
            engine_id=engine.engine_id,
            epoch=engine.epoch,
            cluster_id=self._cluster.cluster_id,
            controller_epoch=self._cluster.controller_epoch,
            lease=lease_duration(self._registry.lease),
            certificate=certificate,
            client_token_digest=self._cluster.client_token_digest,
            direct_token_digests=self._direct_digests(engine.facts.direct_addresses),
        )

    def _direct_digests(self, addresses: Sequence[str]) -> list[bytes]:
        digest = self._cluster.direct_digest
        return [] if digest is None else [digest(address) for address in addresses[:MAX_ADDRESSES]]


def lease_duration(lease: float) -> duration_pb2.Duration:
    """Return a lease in seconds, which may be infinite, as the contract carries it."""
    seconds = min(lease, _LONGEST_DURATION)
    return duration_pb2.Duration(seconds=math.floor(seconds), nanos=round(seconds % 1 * 1e9))


def address(peer: str) -> tuple[str, int]:
    """Return IP and port of gRPC's name of a peer; empty and 0 for one without, such as a Unix socket."""
    family, _, rest = peer.partition(":")
    host, _, port = unquote(rest).rpartition(":")
    if family not in ("ipv4", "ipv6") or not port.isdigit():
        return "", 0
    return host.strip("[]"), int(port)
