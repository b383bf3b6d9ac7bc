"""Tasks outlive their controller: what was placed goes on, what waited is placed, and nothing runs twice."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from controller_service import task_rows
from enginery import _ids
from enginery._methods import ANY_ENGINE
from enginery._status import from_bytes
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2
from tests.controller.fakes import FakeCluster, FakeHost, FakeSession, echo, running, until

if TYPE_CHECKING:
    from pathlib import Path


def silent(_call: frame_pb2.Call) -> None:
    """Answer nothing."""


def task(session: FakeSession, request: bytes, **fields: Any) -> frame_pb2.Call:
    """Return a new task; `fields` are its options."""
    return session.call(ANY_ENGINE, request, task=frame_pb2.TaskOptions(**fields))


def again(call: frame_pb2.Call, epoch: int) -> frame_pb2.Call:
    """Return a call as its client sends it again."""
    resent = frame_pb2.Call()
    resent.CopyFrom(call)
    resent.sent_epoch = epoch
    return resent


def rows(state: Path) -> dict[bytes, int]:
    """Return the tasks of the journal, and the engine of each."""
    database = sqlite3.connect(state / "journal" / "journal.db")
    try:
        return dict(database.execute("SELECT task_id, engine_id FROM tasks"))
    finally:
        database.close()


def rejections(state: Path) -> list[str]:
    """Return who rejected each task of the journal."""
    with closing(sqlite3.connect(state / "journal" / "journal.db")) as database:
        return [row[0] for row in database.execute("SELECT rejected_by FROM tasks")]


def epoch_of(session: FakeSession) -> int:
    assert session.welcome is not None
    return session.welcome.controller_epoch


@pytest.fixture(autouse=True)
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are kept at the next tick."""
    monkeypatch.setattr(task_rows, "YOUNG", 0.0)


async def come_back(cluster: FakeCluster, host: FakeHost, *known: bytes) -> FakeHost:
    """Return a new connection of the host, whose engine 0 knows those operations."""
    back = cluster.host(host_id=host.host_id)
    back.answer = host.answer
    await back.hello(incarnation="kernel", engine_id=0, epoch=host.welcomes[0].epoch, operation_ids=list(known))
    return back


async def test_a_restart(tmp_path: Path) -> None:
    """What was placed joins on its engine, what waited comes after it, and both are told to whoever asks."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        epoch = epoch_of(session)
        calls = [task(session, b"placed"), task(session, b"waits"), task(session, b"nobody", label="N")]
        await session.send(calls=calls)
        await until(lambda: len(rows(state)) == 3)
        ids = [_ids.operation_id(b"sessionA", call.call_id) for call in calls]
        assert rows(state) == {ids[0]: 0, ids[1]: -1, ids[2]: -1}
    async with running(state, lease=1.0) as cluster:
        session = await cluster.session()
        await session.send(calls=[again(call, epoch) for call in calls[:2]])
        back = await come_back(cluster, host, ids[0])
        await until(lambda: back.calls)
        assert [call.operation_id for call in back.calls] == ids[:1]
        back.reply(back.calls[0])
        await until(lambda: len(back.calls) == 3)
        assert [call.operation_id for call in back.calls] == ids
        for call in back.calls[1:]:
            back.reply(call)
        for call in calls[:2]:
            assert (await session.reply(call)).response == call.request
        await until(lambda: not rows(state))
        back.answer = lambda call: frame_pb2.Reply(
            call_id=call.call_id, outcome=frame_pb2.OUTCOME_NOT_DELIVERED
        )
        get = operation_pb2.GetOperationRequest(operation_id=_ids.show(ids[2]))
        found = await cluster.engines.GetOperation(get, metadata=cluster.metadata)
        assert found.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_an_engine_that_does_not_come_back(tmp_path: Path) -> None:
    """What was placed on it is lost with it, once; a task that may run again does so elsewhere."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(0)
        await host.hello(1)
        session = await cluster.session()
        epoch = epoch_of(session)
        calls = [task(session, b"once"), task(session, b"twice", retries=1)]
        await session.send(calls=calls)
        await until(lambda: sorted(rows(state).values()) == [0, 1])
    async with running(state, lease=1.0) as cluster:
        other = cluster.host()
        await other.hello()
        session = await cluster.session()
        fresh = task(session, b"fresh")
        fresh.call_id = 77  # which the journal did not have: it may have run there
        await session.send(calls=[again(call, epoch) for call in (*calls, fresh)])
        for call in (calls[0], fresh):
            assert from_bytes((await session.reply(call)).error).reason == "ENGINE_LOST"
        reply = await session.reply(calls[1])
        assert (reply.response, reply.attempts) == (b"twice", 2)
        assert [call.request for call in other.calls] == [b"twice"]


@pytest.mark.parametrize("journal", [True, False])
async def test_tasks_that_the_journal_did_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: bool
) -> None:
    """Sent again they are held until the engines have come back, and join where an inventory names them."""
    monkeypatch.setattr(task_rows, "YOUNG", 60.0)
    state = tmp_path / "state"
    async with running(state, lease=1.0, journal=journal) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        epoch = epoch_of(session)
        calls = [task(session, b"placed"), task(session, b"waits")]
        await session.send(calls=calls)
        await until(lambda: host.calls)
    async with running(state, lease=1.0, journal=journal) as cluster:
        stranger = cluster.host()
        await stranger.hello()
        session = await cluster.session()
        await session.send(calls=[again(call, epoch) for call in calls])
        new = task(session, b"new")
        new.call_id = 77
        assert (await session.ask(new)).response == b"new"  # which nobody can have
        assert [call.request for call in stranger.calls] == [b"new"]
        back = await come_back(cluster, host, host.calls[0].operation_id)
        await until(lambda: back.calls)
        assert back.calls[0].operation_id == host.calls[0].operation_id
        back.reply(back.calls[0])
        assert (await session.reply(calls[0])).response == b"placed"
        assert (await session.reply(calls[1])).response == b"waits"


async def test_a_task_that_may_be_on_an_engine_is_not_kept_as_on_none(tmp_path: Path) -> None:
    """A second controller that is told of it again, and ends before it knows, says not that it is nowhere."""
    state = tmp_path / "state"
    async with running(state, lease=2.0) as cluster:
        await cluster.host().hello()
        epoch = epoch_of(await cluster.session())
    async with running(state, lease=2.0) as cluster:
        session = await cluster.session()
        call, new = task(session, b"may have run"), task(session, b"new", label="N")
        await session.send(calls=[again(call, epoch), new])
        await until(lambda: rows(state))
        assert list(rows(state)) == [_ids.operation_id(b"sessionA", new.call_id)]
    async with running(state, lease=2.0) as cluster:
        other = cluster.host()
        await other.hello()
        session = await cluster.session()
        await session.send(calls=[again(call, epoch)])
        assert from_bytes((await session.reply(call)).error).reason == "ENGINE_LOST"
        assert b"may have run" not in [one.request for one in other.calls]


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_task_of_an_earlier_registration_is_lost_when_the_id_has_another(
    tmp_path: Path, retries: int
) -> None:
    """The journal may be behind, as on a full disk: nobody comes back for whom the task could wait."""
    state = tmp_path / "state"
    async with running(state, lease=5.0) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        epoch = epoch_of(session)
        call = task(session, b"fine", retries=retries)
        await session.send(calls=[call])
        await until(lambda: list(rows(state).values()) == [0])
    with closing(sqlite3.connect(state / "journal" / "journal.db")) as database, database:
        database.execute("UPDATE tasks SET epoch = epoch - 1")
    async with running(state, lease=5.0) as cluster:
        session = await cluster.session()
        await session.send(calls=[again(call, epoch)])
        host.answer = echo
        await come_back(cluster, host)
        reply = await session.reply(call)
        assert reply.response == b"fine" if retries else from_bytes(reply.error).reason == "ENGINE_LOST"


async def test_a_task_of_the_journal_is_sent_when_that_says_so(tmp_path: Path) -> None:
    """Its engine is on disk before the engine has it: after a crash what is said to wait has not run."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        session = await cluster.session()
        calls = [task(session, b"%d" % number) for number in range(3)]
        await session.send(calls=calls)
        await until(lambda: len(rows(state)) == 3)
        seen = []
        host = cluster.host()

        def answer(call: frame_pb2.Call) -> frame_pb2.Reply:
            seen.append(rows(state)[call.operation_id])
            return frame_pb2.Reply(call_id=call.call_id, outcome=frame_pb2.OUTCOME_OK)

        host.answer = answer
        await host.hello()
        for call in calls:
            await session.reply(call)
        assert seen == [0, 0, 0]


async def test_a_task_that_is_cancelled_before_it_is_sent(tmp_path: Path) -> None:
    """It is placed, and waits for the disk: then it is taken back, and never sent."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        host = cluster.host()
        session = await cluster.session()
        call = task(session, b"never")
        await session.send(calls=[call])
        await until(lambda: len(rows(state)) == 1)
        journal = cluster.controller.journal
        on_commit, journal.on_commit = journal.on_commit, lambda: None
        tasks = cluster.controller._switchboard.tasks  # type: ignore[union-attr]
        await host.hello()
        waiting = tasks.scheduler.find(_ids.operation_id(b"sessionA", call.call_id))
        assert waiting is not None
        await until(lambda: waiting.engine_id == 0)
        tasks.cancel(waiting)
        journal.on_commit = on_commit
        assert (await session.reply(call)).outcome == frame_pb2.OUTCOME_CANCELLED
        await until(lambda: not rows(state))
        assert not host.calls


async def test_a_journal_of_before_tasks_is_taken_over(tmp_path: Path) -> None:
    """Its results are found, and tasks are kept in it."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        await cluster.host().hello()
        session = await cluster.session()
        done = session.call(0, b"result")
        assert (await session.ask(done)).response == b"result"
    database = sqlite3.connect(state / "journal" / "journal.db")
    without = "ALTER TABLE results DROP COLUMN attempts; ALTER TABLE results DROP COLUMN label;"
    database.executescript(f"DROP TABLE tasks; {without} PRAGMA user_version = 5;")
    database.close()
    async with running(state, lease=1.0) as cluster:
        session = await cluster.session()
        resent = again(done, 1)
        await until(lambda: not cluster.controller.registry.ids())
        assert (await session.ask(resent)).response == b"result"
        waiting = task(session, b"waits")
        await session.send(calls=[waiting])
        await until(lambda: len(rows(state)) == 1)


async def test_an_attempt_that_failed_before_the_crash_is_not_the_end(tmp_path: Path) -> None:
    """What its engine tells of it by itself is that attempt's alone: with retries left the task runs again."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        epoch = epoch_of(session)
        call = task(session, b"flaky", retries=1, label="L")
        once = task(session, b"once")
        await session.send(calls=[call, once])
        await until(lambda: host.calls)
        task_id = host.calls[0].operation_id
    async with running(state, lease=1.0) as cluster:
        back = cluster.host(host_id=host.host_id)

        def answer(call: frame_pb2.Call) -> frame_pb2.Reply:
            outcome = frame_pb2.OUTCOME_USER_ERROR if call.operation_id == task_id else frame_pb2.OUTCOME_OK
            return frame_pb2.Reply(call_id=call.call_id, outcome=outcome, response=call.request)

        back.answer = answer
        epoch_0 = host.welcomes[0].epoch
        await back.hello(incarnation="kernel", engine_id=0, epoch=epoch_0, operation_ids=[task_id])
        failed = engine_pb2.OperationEnded(
            engine_id=0,
            operation_id=task_id,
            method=call.method,
            outcome=frame_pb2.OUTCOME_USER_ERROR,
            response=b"raised",
        )
        back.send(ended=[failed])
        journal = cluster.controller.journal
        await until(lambda: journal.appended == journal.committed and journal.appended)
        session = await cluster.session()
        await session.send(calls=[again(call, epoch)])
        reply = await session.reply(call)
        assert (reply.outcome, reply.response, reply.attempts) == (frame_pb2.OUTCOME_OK, b"flaky", 2)
        back.send(ended=[failed])  # it comes once more, and changes nothing
        await until(lambda: journal.appended == journal.committed)
        kept = await journal.find(task_id)
        assert kept is not None
        assert (kept.outcome, kept.response, kept.attempts, kept.label) == (
            frame_pb2.OUTCOME_OK,
            b"flaky",
            2,
            "L",
        )


async def test_a_task_whose_engine_told_of_it_first_ends_as_it_ends(tmp_path: Path) -> None:
    """An attempt of a task that is held is told by the engine too, when it comes back: that is not kept."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        await session.send(calls=[task(session, b"flaky", retries=1)])
        await until(lambda: rows(state))
        (task_id,) = rows(state)
    async with running(state, lease=1.0) as cluster:
        back = await come_back(cluster, host, task_id)
        failed = engine_pb2.OperationEnded(
            engine_id=0,
            operation_id=task_id,
            method=frame_pb2.METHOD_APPLY,
            outcome=frame_pb2.OUTCOME_USER_ERROR,
            response=b"raised",
        )
        back.send(ended=[failed])
        await until(lambda: back.calls)
        raised = frame_pb2.Reply(
            call_id=back.calls[0].call_id, outcome=frame_pb2.OUTCOME_USER_ERROR, response=b"raised"
        )
        back.send(replies=[raised])
        second = _ids.attempt_id(task_id, 2)
        await until(lambda: any(call.operation_id == second for call in back.calls))
        failed.operation_id = second  # as after a break
        back.send(ended=[failed])
        back.reply(next(call for call in back.calls if call.operation_id == second))
        await until(lambda: not rows(state))
        kept = await cluster.controller.journal.find(task_id)
        assert kept is not None
        assert (kept.outcome, kept.attempts) == (frame_pb2.OUTCOME_OK, 2)
        assert await cluster.controller.journal.find(second) is None


async def test_a_task_that_runs_again_is_not_lost_with_the_engine_that_had_it(tmp_path: Path) -> None:
    """The engine had it in its inventory: with the engine that attempt is lost, and the task runs elsewhere."""
    state = tmp_path / "state"
    async with running(state, lease=0.3) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        await session.send(calls=[task(session, b"again", retries=1)])
        await until(lambda: rows(state))
        (task_id,) = rows(state)
    async with running(state, lease=0.3) as cluster:
        back = await come_back(cluster, host, task_id)
        await until(lambda: back.calls)
        other = cluster.host()
        await other.hello()
        back.send(goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="done")])
        await until(lambda: not rows(state))
        kept = await cluster.controller.journal.find(task_id)
        assert kept is not None
        assert (kept.outcome, kept.response, kept.attempts) == (frame_pb2.OUTCOME_OK, b"again", 2)


async def test_who_rejected_a_task_is_not_asked_again(tmp_path: Path) -> None:
    """An engine that rejected it has released it: sent there again it would end as released."""
    state = tmp_path / "state"
    async with running(state, lease=1.0) as cluster:
        host = cluster.host()
        host.answer = lambda call: frame_pb2.Reply(
            call_id=call.call_id, outcome=frame_pb2.OUTCOME_REJECTED, response=b"no"
        )
        await host.hello(0, incarnation="kernel")
        busy = cluster.host()
        busy.answer = silent
        await busy.hello()
        session = await cluster.session()
        view = session.call(1, b"view")
        await session.send(calls=[view])
        await until(lambda: busy.calls)
        epoch = epoch_of(session)
        call = task(session, b"picky")
        await session.send(calls=[call])
        await until(lambda: rejections(state) == ["0"])
    async with running(state, lease=30.0) as cluster:
        back = await come_back(cluster, host)
        session = await cluster.session()
        await session.send(calls=[again(call, epoch)])
        other = cluster.host()
        await other.hello()
        assert (await session.reply(call)).response == b"picky"
        assert not [one for one in back.calls if one.HasField("task")]


async def test_a_task_that_everybody_rejected_before_a_restart(tmp_path: Path) -> None:
    """It ends, and says so, when nobody is left: what the engines said is not kept."""
    state = tmp_path / "state"
    async with running(state, lease=0.3) as cluster:
        host, busy = cluster.host(), cluster.host()
        host.answer = lambda call: frame_pb2.Reply(
            call_id=call.call_id, outcome=frame_pb2.OUTCOME_REJECTED, response=b"no"
        )
        await host.hello(0, incarnation="kernel")
        busy.answer = silent
        await busy.hello()
        session = await cluster.session()
        epoch = epoch_of(session)
        call = task(session, b"picky")
        await session.send(calls=[session.call(1, b"view")])
        await until(lambda: busy.calls)
        await session.send(calls=[call])
        await until(lambda: rejections(state) == ["0"])
    async with running(state, lease=0.3) as cluster:
        await come_back(cluster, host)
        session = await cluster.session()
        await session.send(calls=[again(call, epoch)])
        assert from_bytes((await session.reply(call)).error).reason == "TASK_REJECTED"


async def test_a_task_whose_engine_is_away_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the journal does not have it: it is not lost while an engine that may have it has a lease."""
    monkeypatch.setattr(task_rows, "YOUNG", 60.0)
    state = tmp_path / "state"
    async with running(state, lease=30.0) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        epoch = epoch_of(session)
        call = task(session, b"placed")
        await session.send(calls=[call])
        await until(lambda: host.calls)
        await host.close()
        await until(lambda: cluster.controller._switchboard.statistics().connected == 0)  # type: ignore[union-attr]
    async with running(state, lease=30.0) as cluster:
        session = await cluster.session()
        other = cluster.host()
        await other.hello()
        await session.send(calls=[again(call, epoch)])
        probe = session.call(1, b"probe")
        probe.call_id = 77
        assert (await session.ask(probe)).response == b"probe"
        back = await come_back(cluster, host, host.calls[0].operation_id)
        await until(lambda: back.calls)
        back.reply(back.calls[0])
        assert (await session.reply(call)).response == b"placed"
        assert not [one for one in other.calls if one.HasField("task")]


async def test_a_task_that_is_cancelled_before_its_engine_is_back(tmp_path: Path) -> None:
    """It may run there: it is stopped, as its caller said how, when the engine has come back."""
    state = tmp_path / "state"
    async with running(state, lease=5.0) as cluster:
        host = cluster.host()
        host.answer = silent
        await host.hello(incarnation="kernel")
        session = await cluster.session()
        await session.send(calls=[task(session, b"long", retries=3)])
        await until(lambda: 0 in rows(state).values())
        (task_id,) = rows(state)
    async with running(state, lease=5.0) as cluster:
        cancel = operation_pb2.CancelRequest(operation_id=_ids.show(task_id), interrupt_only=True)
        response = await cluster.engines.Cancel(cancel, metadata=cluster.metadata)
        assert response.operation.stopping
        back = await come_back(cluster, host, task_id)
        await until(lambda: len(back.calls) == 2)
        assert back.calls[0].operation_id == task_id
        assert back.calls[1].method == frame_pb2.METHOD_CANCEL
        assert operation_pb2.CancelRequest.FromString(back.calls[1].request) == cancel
        raised = frame_pb2.Reply(call_id=back.calls[0].call_id, outcome=frame_pb2.OUTCOME_USER_ERROR)
        back.send(replies=[raised])
        await until(lambda: not rows(state))
        assert len(back.calls) == 2
