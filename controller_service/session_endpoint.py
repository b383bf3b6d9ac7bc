"""ClusterService.Session as the controller serves it: calls go to references of engines, or to any engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery._session_server import MAX_UNREAD, ClientSession, SessionServer

if TYPE_CHECKING:
    from controller_service.any_engine import AnyEngine
    from controller_service.switchboard import Switchboard
    from enginery._function_window import Function
    from enginery._open_streams import OpenStreams
    from enginery.v1 import frame_pb2


class SessionEndpoint(SessionServer):
    """Serves Session. One object for all streams."""

    def __init__(
        self,
        switchboard: Switchboard,
        any_engine: AnyEngine,
        streams: OpenStreams,
        *,
        cluster_id: str,
        controller_epoch: int,
        max_unread: int = MAX_UNREAD,
    ) -> None:
        """Call the engines of `switchboard`, and those that `any_engine` chooses."""
        super().__init__(
            streams, cluster_id=cluster_id, controller_epoch=controller_epoch, max_unread=max_unread
        )
        self._switchboard = switchboard
        self._any_engine = any_engine

    def submit(self, call: frame_pb2.Call, session: ClientSession, function: Function | None) -> None:
        """Send it to the reference of its engine."""
        self._switchboard.submit(call, session, function)

    def submit_task(self, call: frame_pb2.Call, session: ClientSession, function: Function | None) -> None:
        """Let the scheduler choose the engine."""
        self._any_engine.submit(call, session, function)
