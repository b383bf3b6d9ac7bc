"""A small real server behind the guard, and a state directory of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from enginery._certificates import Authority, controller_name
from enginery._channel import SERVER_OPTIONS
from enginery._connection_file import ConnectionInfo
from enginery._reasons import DeliveryError
from enginery._serving import (
    Authorizer,
    Guard,
    add_introspection,
    server_credentials,
    service_roles,
    token_digest,
)
from enginery._state_dir import StateDirectory
from enginery.v1 import cluster_pb2, cluster_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CLUSTER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"]


@pytest.fixture(autouse=True)
def own_runtime_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests away from the user's own clusters."""
    runtime = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.delenv("ENGINERY_STATE_DIR", raising=False)
    return runtime


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """A state directory that is made but not locked."""
    directory = StateDirectory(tmp_path / "state")
    directory.prepare()
    return directory


class FakeCluster(cluster_pb2_grpc.ClusterServiceServicer):
    """One handler of each kind, and the ways in which handlers fail."""

    async def GetClusterInfo(self, request: object, context: object) -> cluster_pb2.GetClusterInfoResponse:  # noqa: N802
        return cluster_pb2.GetClusterInfoResponse(pid=7)

    async def ListEngines(self, request: object, context: object) -> cluster_pb2.ListEnginesResponse:  # noqa: N802
        raise DeliveryError("BAD_PAGE_TOKEN")

    async def Shutdown(self, request: object, context: object) -> cluster_pb2.ShutdownResponse:  # noqa: N802
        raise ZeroDivisionError("a defect")

    async def WatchEngines(  # noqa: N802
        self, request: object, context: object
    ) -> AsyncIterator[cluster_pb2.WatchEnginesResponse]:
        yield cluster_pb2.WatchEnginesResponse(snapshot=True)
        raise DeliveryError("SHUTTING_DOWN", process="controller")

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[cluster_pb2.SessionRequest], context: object
    ) -> AsyncIterator[cluster_pb2.SessionResponse]:
        async for _ in requests:
            yield cluster_pb2.SessionResponse()


@dataclass(frozen=True)
class Served:
    """A running server, and how each role reaches it."""

    client: ConnectionInfo
    engine: ConnectionInfo
    state: StateDirectory


@pytest.fixture
async def served(state: StateDirectory) -> AsyncIterator[Served]:
    """Serve ClusterService with TLS and on the socket, for the role client."""
    identity = state.load_identity()
    authority = Authority.load_or_create(state.path)
    name = controller_name(identity.cluster_id)
    digests = {"client": token_digest(identity.client_token), "engine": token_digest(identity.engine_token)}
    guard = Guard(
        Authorizer(digests, socket_role="client"), service_roles(CLUSTER, "client"), process="controller"
    )
    server = grpc.aio.server(interceptors=[guard], options=SERVER_OPTIONS)
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(FakeCluster(), server)  # type: ignore[no-untyped-call,unused-ignore]
    await add_introspection(server, [CLUSTER.full_name])
    port = server.add_secure_port("127.0.0.1:0", server_credentials(*authority.issue_server(name)))
    server.add_insecure_port(f"unix:{state.client_socket}")
    await server.start()
    client = ConnectionInfo(
        "client", identity.cluster_id, f"127.0.0.1:{port}", name, authority.ca_pem, identity.client_token,
        socket_path=state.client_socket,
    )  # fmt: skip
    engine = dataclasses.replace(client, role="engine", token=identity.engine_token, socket_path=None)
    try:
        yield Served(client, engine, state)
    finally:
        await server.stop(0)
