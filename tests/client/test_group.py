"""Groups: the answers of many calls, as they come."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from rich.progress import track
from tqdm import tqdm

import enginery
from enginery.group import FIRST_COMPLETED, FIRST_EXCEPTION

if TYPE_CHECKING:
    from tests.client.fake import FakeController


def test_any_operations_make_a_group(client: enginery.Client) -> None:
    """Of several calls, engines and methods; their answers come in order, those that failed in their place."""
    calls: list[enginery.Operation[Any]] = [
        client[0].apply(abs, -1, block=False),
        client[1].pull("id", block=False),
        client[0].execute("1/0", block=False),
    ]
    group = enginery.Group(calls)
    with pytest.raises(enginery.CompositeError, match="1 of 3"):
        group.get()
    one, other, error = group.get(return_exceptions=True)
    assert (one, other) == (1, 1)
    assert isinstance(error, ZeroDivisionError)
    assert group.partial() == {0: 1, 1: 1}
    assert (group.progress, str(group.progress), group.progress.fraction) == ((3, 3), "3/3", 1.0)
    assert calls[2].has_failed
    assert not calls[0].has_failed


def test_groups_in_a_group_stand_for_their_operations(client: enginery.Client) -> None:
    """Whatever is not an operation is refused, by what it is."""
    pulls = [client[:].pull("id", block=False) for _ in range(2)]
    group: enginery.Group[Any] = enginery.Group([*pulls, client[0].pull("id", block=False)])
    assert group.result(5) == [0, 1, 0, 1, 0]
    assert len(group.wait().done) == 5
    assert repr(group) == "<Group pull on engines [0, 1]: 5 of 5 done>"
    nonsense: tuple[Any, ...] = (5, group.result, None)
    for wrong in nonsense:
        with pytest.raises(TypeError, match="a group is of operations"):
            enginery.Group([wrong])


def test_an_empty_group_is_done(client: enginery.Client) -> None:
    """Its answer is no answers."""
    group: enginery.Group[int] = enginery.Group([])
    assert group.done()
    assert group.result(1) == []
    assert group.wait().done == set()
    assert group.progress.fraction == 1.0
    assert (group.elapsed, group.serial_time, group.speedup) == (0.0, 0.0, 0.0)
    assert list(group.as_completed()) == []
    assert not group.cancel()


def test_answers_by_engine(client: enginery.Client) -> None:
    """A dictionary, if each engine has one."""
    assert client[[1, 0]].pull("id", block=False).get_dict() == {0: 0, 1: 1}
    with pytest.raises(ValueError, match="2 operations ran on 1 engines"):
        enginery.Group([client[0].pull("id", block=False) for _ in range(2)]).get_dict()


def test_as_completed_gives_what_is_done_first(client: enginery.Client, controller: FakeController) -> None:
    """In the order in which they end; with a timeout it ends the waiting; its length is known at once."""
    controller.frozen.add(0)
    group = client[[0, 1]].pull("id", block=False)
    completed = group.as_completed()
    assert len(completed) == 2
    assert next(completed) is group[1]
    assert group.progress == (1, 2)
    assert group.partial() == {1: 1}
    with pytest.raises(TimeoutError, match="1 of 2 operations are not done"):
        list(group.as_completed(timeout=0.01))
    controller.thaw()
    assert list(completed) == [group[0]]
    assert list(completed) == []


async def test_async_iteration_gives_what_is_done_first(
    client: enginery.Client, controller: FakeController
) -> None:
    """`async for` does the same and blocks nobody."""
    controller.frozen.add(0)
    group = client[[0, 1]].pull("id", block=False)
    seen = []
    async for operation in group:
        seen.append(await operation)
        if seen == [1]:
            with pytest.raises(TimeoutError):
                await anext(enginery.Group(group[:1]).as_completed(timeout=0.01))
            asyncio.get_running_loop().call_later(0.01, controller.thaw)
    assert seen == [1, 0]


def test_wait_ends_when_it_was_told_to(client: enginery.Client, controller: FakeController) -> None:
    """When the first is done, when one has failed, when all are done; what is done by then it returns."""
    controller.frozen.add(0)
    slow = client[0].pull("id", block=False)
    quick = client[1].pull("id", block=False)
    group = enginery.Group([slow, quick])
    done, not_done = group.wait(5, return_when=FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})
    assert group.wait(0.01).not_done == {slow}
    failing = enginery.Group([slow, quick, client[1].execute("1/0", block=False)])
    assert failing.wait(5, return_when=FIRST_EXCEPTION).not_done == {slow}
    with pytest.raises(ValueError, match="return_when"):
        group.wait(return_when="SOON")
    controller.thaw()
    assert group.wait(5).not_done == set()


def test_waiting_in_a_callback_is_refused(client: enginery.Client, controller: FakeController) -> None:
    """It would stop everything."""
    seen: list[object] = []
    ended = threading.Event()
    controller.frozen.add(0)
    group = client[[0, 1]].pull("id", block=False)

    def callback(_: object) -> None:
        try:
            next(enginery.Group([client[0].pull("id", block=False)]).as_completed())
        except RuntimeError as error:
            seen.append(error)
        ended.set()

    group[0].add_done_callback(callback)  # which has not ended: else it would be called here
    controller.thaw()
    assert ended.wait(5)
    assert "done-callback" in str(seen[0])


def test_times(client: enginery.Client, controller: FakeController) -> None:
    """What engines took, what the caller waited, and how they compare."""
    controller.frozen.add(1)
    group = client[[0, 1]].execute("1", block=False)  # the fake engines say 1.5 s
    group[0].result(5)
    assert group[0].duration == 1.5
    assert group[1].duration is None
    waited = group.elapsed
    controller.thaw()
    group.result(5)
    assert group.elapsed == group.wall_time >= waited > 0
    assert group.serial_time == 3.0
    assert group.speedup == pytest.approx(3.0 / group.wall_time)
    assert group[0].elapsed <= group.wall_time


def test_a_group_of_what_has_ended_is_done(client: enginery.Client) -> None:
    """Also when its operations ended long ago."""
    operation = client[0].pull("id", block=False)
    operation.result(5)
    group = enginery.Group([operation, operation])
    assert group.done()
    assert group.result() == [0, 0]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_shown_on_a_terminal_alone(
    client: enginery.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never where nobody looks, unless it is asked for."""
    group = client[:].pull("id", block=False)
    assert group.wait_interactive()
    assert capsys.readouterr() == ("", "")
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert group.wait_interactive(show=False)
    assert terminal.getvalue() == ""
    assert group.wait_interactive()
    assert "2/2" in terminal.getvalue()
    assert "Group pull on engines" in terminal.getvalue()


def test_other_bars_know_how_many_there_are(client: enginery.Client) -> None:
    """tqdm and rich, around what is completed and around a map."""
    group = client[:].pull("id", block=False)
    with tqdm(group.as_completed(), file=io.StringIO()) as bar:
        assert {operation.engine_id for operation in bar} == {0, 1}
        assert (bar.total, bar.n) == (2, 2)
    with tqdm(client.map(abs, range(5)), file=io.StringIO()) as bar:
        assert (list(bar), bar.total) == ([0, 1, 2, 3, 4], 5)
    console = Console(file=io.StringIO())
    assert list(track(client.map(abs, range(5)), console=console)) == [0, 1, 2, 3, 4]


def test_waiting_behind_a_bar_ends_at_the_timeout(client: enginery.Client, controller: FakeController) -> None:
    """It says that not all is done."""
    controller.frozen.add(0)
    group = client[:].pull("id", block=False)
    assert not group.wait_interactive(timeout=0.01)
    controller.thaw()
    assert group.wait_interactive(timeout=5)
