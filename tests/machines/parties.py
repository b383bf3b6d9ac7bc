"""A client, a controller and a host, made of the parts that the programs are made of.

What is not theirs is the network (`wire`), the kernel, which runs a call when it is told to, and the disk of
the journal, which writes when it is told to.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from controller_service.any_engine import AnyEngine
from controller_service.engine_endpoint import ClusterFacts, EngineEndpoint
from controller_service.events import EventKind
from controller_service.journal_records import EngineRow, Result, kept
from controller_service.no_journal import NoJournal
from controller_service.operations import Operations
from controller_service.registry import Registry
from controller_service.session_endpoint import SessionEndpoint
from controller_service.switchboard import Switchboard
from engine_service.engine import Engine, EngineOptions
from engine_service.kernel_process import ExitStatus, KernelExited, Reply
from engine_service.link import Link
from enginery import _answer, _calls, _ids, _options, _status
from enginery._open_streams import OpenStreams
from enginery._session import RETRIED, Session
from enginery.v1 import cluster_pb2, frame_pb2
from tests.host.fakes import FakeKernel
from tests.machines.wire import Channel, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from controller_service.events import EngineEvent, Registration
    from engine_service.kernel_process import Command, KernelListener, KernelOptions
    from enginery.operation import Operation

LEASE = 60.0
QUEUE = 3  # calls that may wait on a host: some are refused, and come again


# ---- the controller


@dataclass
class Disk:
    """What survives a controller."""

    engines: dict[int, EngineRow] = field(default_factory=dict)
    results: dict[bytes, Result] = field(default_factory=dict)


class DiskJournal(NoJournal):
    """A journal that writes when it is told to, and when engines come and go; the rest dies with it."""

    def __init__(self, disk: Disk) -> None:
        """Write to `disk`."""
        self._disk = disk
        self._waiting: list[Callable[[], object]] = []
        self._results: dict[bytes, Result] = {}
        self.appended = 0
        self.committed = 0

    def commit(self) -> None:
        """Write what waits."""
        for write in self._waiting:
            write()
        self._waiting.clear()
        self.committed = self.appended

    def _add(self, write: Callable[[], object]) -> None:
        self.appended += 1
        self._waiting.append(write)

    def add_result(
        self,
        operation_id: bytes,
        engine_id: int,
        method: int,
        session_id: bytes,
        outcome: int,
        response: bytes,
        error: bytes,
        attempts: int = 0,
        label: str = "",
    ) -> None:
        """Keep the first result of an operation."""
        result = Result(
            operation_id, engine_id, method, session_id, outcome, 0, response, error, attempts, label
        )
        kept_result = self._results.setdefault(operation_id, result)
        self._add(lambda: self._disk.results.setdefault(operation_id, kept_result))

    def put_engine(self, engine: Registration, *, at_once: bool = True) -> None:
        """Keep who is registered."""
        row = EngineRow.of(engine, time.monotonic())
        self._add(lambda: self._disk.engines.__setitem__(engine.engine_id, row))
        if at_once:
            self.commit()

    def drop_engine(self, engine: Registration, *, retired: bool) -> None:
        """Note who is not any more."""
        row = EngineRow.gone(engine, retired=retired)
        self._add(lambda: self._disk.engines.__setitem__(engine.engine_id, row))
        self.commit()

    def forget(self, operation_ids: Collection[bytes]) -> None:
        """Nobody releases anything here."""
        raise NotImplementedError

    async def find(self, operation_id: bytes) -> Result | None:
        """Return what is written, or waits to be."""
        return self._disk.results.get(operation_id) or self._results.get(operation_id)


class Controller:
    """One life of the controller."""

    def __init__(self, disk: Disk, epoch: int) -> None:
        """Begin, with what an earlier life left on disk."""
        self.registry = Registry(lease=LEASE)
        self.registry.begin(epoch)
        self.journal = DiskJournal(disk)
        self.registry.restore(kept(disk.engines.values()), now=time.monotonic())
        self.registry.observers.subscribe(self._keep)
        self.switchboard = Switchboard(self.registry, controller_epoch=epoch, journal=self.journal)
        self.switchboard.answers.start()
        streams = OpenStreams()
        facts = ClusterFacts("c", epoch, b"", None)
        self.engines = EngineEndpoint(self.switchboard, facts, streams)
        any_engine = AnyEngine(self.switchboard, Operations(self.switchboard))
        self.sessions = SessionEndpoint(
            self.switchboard, any_engine, streams, cluster_id="c", controller_epoch=epoch
        )
        self._tick = time.monotonic()

    def _keep(self, event: EngineEvent) -> None:
        match event.kind:
            case EventKind.GONE:
                self.journal.drop_engine(event.engine, retired=False)
            case EventKind.AWAY:
                pass
            case _:
                self.journal.put_engine(event.engine)

    def epochs(self) -> dict[int, int]:
        """Return what a client that watches knows of the engines."""
        return {engine.engine_id: engine.epoch for engine in self.registry}

    def end_leases(self) -> list[int]:
        """Let a whole lease pass; return the engines that were given up."""
        before = set(self.registry.ids())
        self.switchboard._started -= LEASE  # time passes for it, too
        for _ in range(int(LEASE) + 2):
            self._tick += 1.0
            self.registry.tick(self._tick)
        return sorted(before - set(self.registry.ids()))

    async def kill(self) -> None:
        """End at once: nothing is written any more."""
        await self.switchboard.answers.stop()


# ---- the host


@dataclass
class Run:
    """One run of one call in a kernel."""

    operation_id: bytes
    engine_id: int
    nonce: str


class StepKernel(FakeKernel):
    """Runs a call for as long as it is not told to finish."""

    def __init__(self, options: KernelOptions, listener: KernelListener, runs: list[Run]) -> None:
        super().__init__(options, listener)
        self._runs = runs

    @property
    def is_busy(self) -> bool:
        """Whether it runs something."""
        return bool(self.line)

    def begin(self, command: Command, done: Callable[[Reply | KernelExited], None]) -> None:
        if self.exited.done():
            raise KernelExited(self.exited.result())
        self.line.append((command, done))
        if len(self.line) == 1:
            self._run_first()

    def _run_first(self) -> None:
        command, _ = self.line[0]
        self.commands.append(command)
        self._runs.append(Run(command.operation_id, command.engine_id, f"run {len(self._runs)}"))
        self._text = self._runs[-1].nonce

    def finish(self) -> None:
        """Answer what runs, and what was revoked behind it."""
        reply = Reply(text=self._text, started_at=1.0, duration=0.1)
        while True:
            _, done = self.line.popleft()
            done(reply)
            if not self.line:
                return
            if self.line[0][0].operation_id not in self.revoked:
                break
            reply = Reply(was_revoked=True)
        if self.commands[-1] is not self.line[0][0]:
            self._run_first()

    def die(self, status: ExitStatus) -> None:
        self._exit(status)


@dataclass(frozen=True)
class _Address:
    """Where a host connects to, in the place of a connection file."""

    wire: Wire
    metadata: tuple[tuple[str, str], ...] = ()


def open_channel(address: Any) -> Any:
    """Return a channel over the wire of an address: what the host is to call in the place of gRPC."""
    return Channel(address.wire)


def _no_file() -> NoReturn:
    raise AssertionError("a host connects here when it is told to")


class Host:
    """One host with one engine."""

    def __init__(self, name: str, runs: list[Run]) -> None:
        """Not started yet."""
        self._runs = runs
        self.kernels: list[StepKernel] = []
        self.engine = Engine(EngineOptions(queue_calls=QUEUE), start_kernel=self._start_kernel)  # type: ignore[arg-type]
        self.link = Link([self.engine], _no_file, host_id=name, heartbeat=3600.0)
        self.wires: list[Wire] = []
        self._serving: asyncio.Future[Any] | None = None

    async def _start_kernel(self, options: KernelOptions, listener: KernelListener) -> StepKernel:
        self.kernels.append(StepKernel(options, listener, self._runs))
        return self.kernels[-1]

    @property
    def kernel(self) -> StepKernel:
        """Its kernel."""
        return self.kernels[-1]

    @property
    def is_connected(self) -> bool:
        """Whether it believes to have a stream."""
        return bool(self.wires) and self.wires[-1].is_calling

    def connect(self, controller: Controller) -> None:
        """Open a stream, and serve it for as long as it lasts, as `Link.run` does again and again.

        `engine_service.link.open_channel` must be `open_channel` of this module.
        """
        wire = Wire(controller.engines.register_engine)
        self.wires.append(wire)
        self._serving = asyncio.ensure_future(self.link._connect(_Address(wire)))  # type: ignore[arg-type]

    async def kill(self) -> None:
        """End at once: nobody hears of it but by the end of its stream."""
        for wire in self.wires:
            wire.break_caller()
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)
        self.engine.listener = None
        self.engine.stop("killed")
        await self.engine.wait_stopped()


# ---- the client


@dataclass
class Said:
    """What a client heard of a call."""

    nonce: str = ""
    reason: str = ""


class Client:
    """One client: its session, and what it heard of each call."""

    def __init__(self) -> None:
        """Not connected yet."""
        self.epochs: dict[int, int] = {}
        self.session = Session(self.epochs)
        self.operations: list[Operation[Any]] = []
        self.answers: dict[bytes, list[str]] = {}
        self.wire: Wire | None = None
        self.now = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether it believes to have a stream."""
        return self.wire is not None and self.wire.is_calling

    def connect(self, controller: Controller) -> None:
        """Open a stream, with what its watch of the engines says first."""
        self.wire = Wire(controller.sessions.session)
        hello = cluster_pb2.SessionHello(session_id=self.session.session_id)
        self.wire.up.append(cluster_pb2.SessionRequest(hello=hello).SerializeToString())
        self.look(controller)
        self.session.connected(self.now)
        self.send()

    def look(self, controller: Controller) -> None:
        """Hear which engines there are."""
        self.epochs.clear()
        self.epochs.update(controller.epochs())

    def call(self, engine_id: int, *, keep_queue: bool = True) -> None:
        """Submit a call."""
        request = _calls.execute("1")
        request.options = _options.Options(keep_queue=keep_queue)
        entry = self.session.entry(request, engine_id, "raise", self.now)
        self.session.submit([entry], may_wait=False)
        self.operations.append(entry.operation)
        self.session.accept()
        self.send()

    def send(self) -> None:
        """Write what is to be sent, if there is a stream."""
        while self.is_connected and (message := self.session.take()) is not None:
            assert self.wire is not None
            self.wire.up.append(message)

    def retry(self) -> None:
        """Let so much time pass that what was refused is sent again."""
        self.now = max(self.now, self.session.next_retry() or 0.0) + 0.001
        if self.is_connected:
            self.session.retry(self.now)
            self.send()

    def read(self) -> None:
        """Take what has reached it, as `_link` does."""
        assert self.wire is not None
        while not self.wire.to_caller.empty():
            data = self.wire.to_caller.get_nowait()
            if not isinstance(data, bytes):
                self.session.disconnected("the wire broke", self.now)
                continue
            for reply in cluster_pb2.SessionResponse.FromString(data).replies:
                self._reply(reply)

    def _reply(self, reply: frame_pb2.Reply) -> None:
        entry = self.session.replied(reply.call_id)
        if entry is None:
            return
        if reply.error:
            failure = _status.from_bytes(reply.error)
            if failure.reason in RETRIED:
                self.session.refuse(entry, failure, 0.1, self.now)
                return
            self.session.done(entry)
            entry.operation.fail(failure)
            return
        self.session.done(entry)
        message = entry.request.response.FromString(reply.response)
        entry.operation.succeed(
            _answer.Answer(entry.operation.engine_id, reply.outcome, message, {}, lambda _: None, "raise")  # type: ignore[arg-type, return-value]
        )

    def heard(self, operation: Operation[Any]) -> Said | None:
        """Return what it heard of a call; None if nothing yet."""
        if not operation.done():
            return None
        error = operation.exception()
        if error is not None:
            return Said(reason=getattr(error, "reason", "") or repr(error))
        return Said(nonce=operation.result().text)


def name_of(operation_id: bytes) -> str:
    """Return an id as people read it."""
    return _ids.show(operation_id)
