"""Tasks: calls to any engine, placed by the controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery._methods import ANY_ENGINE
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from tests.controller.fakes import FakeCluster


async def test_a_task_runs_on_an_engine(cluster: FakeCluster) -> None:
    """It is placed, its host is told that it is a task, and its reply says where it ran and how often."""
    host = cluster.host()
    await host.hello()
    session = await cluster.session()
    reply = await session.ask(
        session.call(ANY_ENGINE, b"work", task=frame_pb2.TaskOptions(label="L", retries=3))
    )
    assert (reply.outcome, reply.response) == (frame_pb2.OUTCOME_OK, b"work")
    assert (reply.engine_id, reply.attempts) == (0, 1)
    sent = host.calls[0]
    assert (sent.engine_id, sent.session_id, sent.task) == (0, b"", frame_pb2.TaskOptions(label="L"))
    assert sent.options.any_incarnation
