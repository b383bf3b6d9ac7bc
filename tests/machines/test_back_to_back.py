"""Client, controller and host back to back, while streams break, processes die and the journal lags behind."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from engine_service import link as host_link
from engine_service.kernel_process import ExitStatus
from tests.machines.parties import Client, Controller, Disk, Host, Run, name_of, open_channel

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from enginery.operation import Operation
    from tests.machines.wire import Wire

LATER = 1_000_000  # milliseconds between the starts of two controllers
TURNS = 12  # of the event loop, after which nothing moves any more
ROUNDS = 400  # of delivering and finishing, after which everything must have been answered
TRAFFIC = ("call", "call", "up", "up", "up", "down", "down", "down", "retry", "finish")
WAITED = 20  # rounds in which whoever is alive has come back
LOSSES = frozenset({"KERNEL_DIED", "ENGINE_LOST"})
NEVER_RAN = frozenset({"INVALID_ENGINE_ID", "NO_ENGINES_REGISTERED", "QUEUE_FULL"})


class World(RuleBasedStateMachine):
    """One client, one controller in several lives, and hosts that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.runs: list[Run] = []
        self.disk = Disk()
        self.wires: list[Wire] = []
        self.hosts: list[Host] = []
        self.forgiven = False
        """Something happened after which calls may be lost."""
        self.lives = 0
        self.run(self._begin())

    async def _begin(self) -> None:
        self._start_controller()
        self.client = Client()
        await self._add_host()
        await self._until_still()
        self._connect_client()
        await self._until_still()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something, and let it come to rest."""

        async def whole() -> None:
            await work
            await self._rest()

        self.loop.run_until_complete(whole())

    async def _rest(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self.client.wire is not None:
            self.client.read()
            self.client.send()

    # ---- how things are done

    def _start_controller(self) -> None:
        self.lives += 1
        self.controller = Controller(self.disk, epoch=time.time_ns() // 1_000_000 + self.lives * LATER)

    async def _add_host(self) -> None:
        host = Host(f"host {len(self.hosts)}", self.runs)
        await host.engine.start()
        self.hosts.append(host)
        host.connect(self.controller)

    def _connect_client(self) -> None:
        if self.client.wire is not None:
            self.client.wire.break_caller()
            self.client.read()
        self.client.connect(self.controller)
        self.wires.append(self.client.wire)  # type: ignore[arg-type]

    def _connect_all(self) -> None:
        for host in self.hosts:
            if not host.is_connected:
                host.connect(self.controller)
        if not self.client.is_connected:
            self._connect_client()

    def _all_wires(self) -> list[Wire]:
        return self.wires + [wire for host in self.hosts for wire in host.wires]

    async def _deliver_all(self) -> bool:
        """Deliver all that is under way; return whether there was anything."""
        moved = False
        for wire in self._all_wires():
            while wire.deliver_up():
                moved = True
                await asyncio.sleep(0)
                if not wire.is_calling:
                    break
            while wire.deliver_down():
                moved = True
        await self._rest()
        return moved

    # ---- what happens

    @precondition(lambda self: self.client.epochs)
    @rule(which=st.integers(0, 1), count=st.integers(1, 4))
    def call(self, which: int, count: int) -> None:
        """The client calls an engine that it knows, connected or not."""
        known = sorted(self.client.epochs)

        async def call() -> None:
            for _ in range(count):
                self.client.call(known[which % len(known)])

        self.run(call())

    @rule()
    def look(self) -> None:
        """The client hears which engines there are."""

        async def look() -> None:
            if self.client.is_connected:
                self.client.look(self.controller)

        self.run(look())

    @rule(which=st.integers(0, 3), up=st.booleans(), count=st.integers(1, 6))
    def deliver(self, which: int, up: bool, count: int) -> None:
        """Some messages of one stream arrive, perhaps of one that is half open."""
        wires = self._all_wires()
        wire = wires[-1 - which % len(wires)]

        async def deliver() -> None:
            for _ in range(count):
                if not (wire.deliver_up() if up else wire.deliver_down()):
                    return

        self.run(deliver())

    @rule(steps=st.lists(st.sampled_from(TRAFFIC), min_size=4, max_size=24), which=st.integers(0, 3))
    def traffic(self, steps: list[str], which: int) -> None:
        """Much happens on streams that are open, each message by itself."""

        async def move() -> None:
            wires = self._all_wires()
            known = sorted(self.client.epochs)
            for number, step in enumerate(steps):
                wire = wires[-1 - (which + number) % len(wires)]
                kernel = self.hosts[(which + number) % len(self.hosts)].kernel
                if step == "call" and known:
                    self.client.call(known[which % len(known)])
                elif step == "up":
                    wire.deliver_up()
                elif step == "down":
                    wire.deliver_down()
                elif step == "retry":
                    self.client.retry()
                elif step == "finish" and kernel.is_busy:
                    kernel.finish()
                await self._rest()

        self.run(move())

    @rule()
    def heal(self) -> None:
        """Whoever has no stream opens one, and all hear of it."""

        async def heal() -> None:
            self._connect_all()
            await self._until_still()

        self.run(heal())

    @rule()
    def deliver_everything(self) -> None:
        """All that is under way arrives."""
        self.run(self._until_still())

    async def _until_still(self) -> None:
        await self._rest()
        while await self._deliver_all():
            pass

    @rule(which=st.integers(0, 1))
    def finish(self, which: int) -> None:
        """A kernel finishes what it runs."""
        kernel = self.hosts[which % len(self.hosts)].kernel

        async def finish() -> None:
            if kernel.is_busy:
                kernel.finish()

        self.run(finish())

    @rule()
    def commit(self) -> None:
        """The journal is written, and hosts are told."""

        async def commit() -> None:
            self.controller.journal.commit()
            for link in list(self.controller.switchboard._links.values()):
                self.controller.switchboard.acknowledge(link)

        self.run(commit())

    @rule()
    def retry(self) -> None:
        """Time passes, and the client sends again what was refused."""

        async def retry() -> None:
            self.client.retry()

        self.run(retry())

    @rule()
    def break_client(self) -> None:
        """The client's stream breaks on its side; the controller may not know yet."""

        async def break_() -> None:
            assert self.client.wire is not None
            self.client.wire.break_caller()

        self.run(break_())

    @rule()
    def reconnect_client(self) -> None:
        """The client connects again."""

        async def connect() -> None:
            if not self.client.is_connected:
                self._connect_client()

        self.run(connect())

    @rule(which=st.integers(0, 1), at_host=st.booleans())
    def break_host(self, which: int, at_host: bool) -> None:
        """A host's stream breaks on one side."""
        host = self.hosts[which % len(self.hosts)]

        async def break_() -> None:
            if at_host:
                host.wires[-1].break_caller()
            else:
                await host.wires[-1].break_handler()

        self.run(break_())

    @rule(which=st.integers(0, 1))
    def reconnect_host(self, which: int) -> None:
        """A host connects again."""
        host = self.hosts[which % len(self.hosts)]

        async def connect() -> None:
            if not host.is_connected:
                host.connect(self.controller)

        self.run(connect())

    @precondition(lambda self: len(self.hosts) < 2)
    @rule()
    def add_host(self) -> None:
        """Another host comes."""
        self.run(self._add_host())

    @rule(commits=st.booleans())
    def kill_controller(self, commits: bool) -> None:
        """The controller is killed and started again; what was not written is gone."""

        async def kill() -> None:
            if commits:
                self.controller.journal.commit()
            await self.controller.kill()
            for wire in self._all_wires():
                await wire.break_handler()
            self._start_controller()

        self.run(kill())

    @rule(which=st.integers(0, 1))
    def kill_kernel(self, which: int) -> None:
        """A kernel dies; its engine gets a new one."""
        host = self.hosts[which % len(self.hosts)]
        self.forgiven = True

        async def kill() -> None:
            host.kernel.die(ExitStatus(-9))

        self.run(kill())

    @precondition(lambda self: len(self.hosts) > 1)
    @rule()
    def kill_host(self) -> None:
        """A host dies, and its lease ends."""
        self.forgiven = True

        async def kill() -> None:
            host = self.hosts.pop()
            await host.kill()
            for wire in host.wires:
                await wire.break_handler()
            await self._rest()
            self.controller.end_leases()

        self.run(kill())

    # ---- what holds

    @invariant()
    def check(self) -> None:
        """No call ran twice; what ran, ran in the order of the calls; no answer is that of another call."""
        ran: dict[bytes, list[Run]] = {}
        for run in self.runs:
            ran.setdefault(run.operation_id, []).append(run)
        for operation_id, runs in ran.items():
            assert len(runs) == 1, f"{name_of(operation_id)} ran twice: {runs}"
        order = {operation.id: number for number, operation in enumerate(self.client.operations)}
        last: dict[int, int] = {}
        for run in self.runs:
            number = order[name_of(run.operation_id)]
            assert number > last.get(run.engine_id, -1), f"call {number} ran after {last[run.engine_id]}"
            last[run.engine_id] = number
        for operation in self.client.operations:
            said = self.client.heard(operation)
            if said is None:
                continue
            runs = ran.get(bytes.fromhex(operation.id.replace("-", "")), [])
            if said.nonce:
                assert [run.nonce for run in runs] == [said.nonce], f"{operation.id}: {said}, {runs}"
            else:
                assert said.reason in (LOSSES | NEVER_RAN), f"{operation.id}: {said}"
                assert self.forgiven, f"{operation.id}: {said}, and nothing has died; ran: {runs}"
                assert not (runs and said.reason in NEVER_RAN), f"{operation.id}: {said}, but it ran: {runs}"

    def teardown(self) -> None:
        """Once everything is well again every call is answered, once."""
        try:
            self.loop.run_until_complete(self._end())
            self.check()
            unanswered: list[Operation[Any]] = [one for one in self.client.operations if not one.done()]
            assert not unanswered, f"never answered: {unanswered}"
        finally:
            self.loop.run_until_complete(self._close())
            self.loop.close()

    async def _end(self) -> None:
        for number in range(ROUNDS):
            if number == WAITED:  # for engines whose hosts do not come back
                self.controller.end_leases()
            self._connect_all()
            await self._until_still()
            self.client.retry()
            for host in self.hosts:
                if host.kernel.is_busy:
                    host.kernel.finish()
            await self._until_still()
            if all(operation.done() for operation in self.client.operations):
                return

    async def _close(self) -> None:
        self.client.session.close()
        await self.controller.kill()
        for host in self.hosts:
            await host.kill()
        for wire in self._all_wires():
            await wire.break_handler()
        await self._rest()


@pytest.mark.timeout(600)  # of which shrinking takes most, if something is wrong
def test_nothing_runs_twice_or_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks in whatever order, each call runs at most once, in its turn, and is answered once.

    `MACHINES=2000 make test T=tests/machines` tries that many worlds, others each time.
    """
    worlds = os.environ.get("MACHINES")
    monkeypatch.setattr(host_link, "open_channel", open_channel)
    tried = settings(
        max_examples=int(worlds or 60), stateful_step_count=40, deadline=None, derandomize=worlds is None
    )
    run_state_machine_as_test(World, settings=tried)
