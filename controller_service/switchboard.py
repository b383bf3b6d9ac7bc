"""The switchboard: keeps registry and references in step, and runs the registry's clock."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller_service.answers import Answer, Answers, reply_of
from controller_service.config import DEFAULT_WAITING_LIMIT
from controller_service.events import EngineEvent, EventKind, HelloReceived, Registration
from controller_service.no_journal import NoJournal
from controller_service.reference import EngineFromReference, call_reply
from controller_service.tasks import Tasks
from enginery._methods import OPERATIONS
from enginery._reasons import DeliveryError
from enginery._replies import undelivered
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from controller_service.journal import AnyJournal
    from controller_service.journal_records import Result
    from controller_service.link import Link
    from controller_service.registry import Registry
    from controller_service.router import Receiver
    from enginery._engine import CallContext, CallReply
    from enginery._function_window import Function
    from enginery.v1 import engine_pb2

logger = logging.getLogger(__name__)

_LONGEST_TICK = 1.0  # seconds
_SETTLING = 60.0  # seconds after its start in which engines of an earlier controller may still be on their way
_IDS_SHOWN = 20
_CALL_ID_BITS = 20  # room for calls between the milliseconds of two starts


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts over all engines as they are now."""

    engines: int
    connected: int
    waiting_calls: int
    waiting_bytes: int
    gated_sessions: int


class Switchboard:
    """Engines by id, as the endpoints use them."""

    def __init__(
        self,
        registry: Registry,
        *,
        controller_epoch: int = 0,
        waiting_limit: int = DEFAULT_WAITING_LIMIT,
        journal: AnyJournal | None = None,
    ) -> None:
        """Serve the engines of `registry`. Call ids begin at the epoch: no two controllers share any.

        Results go to `journal`, and are answered from it; None keeps none.
        """
        self.registry = registry
        self.journal = journal or NoJournal()
        self.answers = Answers(self.journal)
        self._controller_epoch = controller_epoch
        self._started = time.monotonic()
        self._waiting_limit = waiting_limit
        self._call_ids = itertools.count(max(controller_epoch, 1) << _CALL_ID_BITS)
        self._stream_numbers = itertools.count(1)
        self.references: dict[int, EngineFromReference] = {}
        """By id; read only."""
        self._links: dict[int, Link] = {}
        self.tasks = Tasks(
            self.references,
            self.answers,
            controller_epoch=controller_epoch,
            settling=min(_SETTLING, registry.lease),
        )
        self._closed: DeliveryError | None = None
        self._ticker: asyncio.Task[None] | None = None
        for engine in registry:  # those that the journal brought back
            self._add(engine)
        self.tasks.expect(registry.ids())
        for engine in registry:
            self.tasks.engine_is(engine)
        registry.observers.subscribe(self._observe)

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Switchboard({self.statistics()}, {self.answers}, {self.tasks}, {list(self._links.values())})"

    def statistics(self) -> Statistics:
        """Return counts."""
        routers = [reference.statistics() for reference in self.references.values()]
        return Statistics(
            engines=len(routers),
            connected=sum(one.is_connected for one in routers),
            waiting_calls=sum(one.waiting_calls for one in routers),
            waiting_bytes=sum(one.waiting_bytes for one in routers),
            gated_sessions=sum(one.gated_sessions for one in routers),
        )

    def start(self) -> None:
        """Begin to run the registry's clock, and to answer from the journal."""
        self.answers.start()
        self._ticker = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Stop the clock, and answering."""
        await self.answers.stop()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    def close(self, error: DeliveryError) -> None:
        """Fail every call that waits, and every later one, with `error`."""
        self._closed = error
        self.tasks.close(error)
        for reference in self.references.values():
            reference.lose(error)

    # As callers see it

    def engine(self, engine_id: int | None) -> EngineFromReference:
        """Return the engine of that id.

        Raises DeliveryError: INVALID_ENGINE_ID or MISSING_ENGINE_ID, listing the ids there are, or
        NO_ENGINES_REGISTERED.
        """
        reference = None if engine_id is None else self.references.get(engine_id)
        if self._closed is not None:
            raise self._closed
        if reference is not None:
            return reference
        if not self.references:
            raise DeliveryError("NO_ENGINES_REGISTERED")
        if engine_id is None:
            raise DeliveryError("MISSING_ENGINE_ID", engine_ids=self._show_ids())
        raise DeliveryError("INVALID_ENGINE_ID", engine_id=engine_id, engine_ids=self._show_ids())

    def engines(self, engine_id: int | None) -> list[EngineFromReference]:
        """Return all engines, or the one of that id if there is one; SHUTTING_DOWN if the controller stops."""
        if self._closed is not None:
            raise self._closed
        if engine_id is None:
            return list(self.references.values())
        return [self.references[engine_id]] if engine_id in self.references else []

    async def call(self, engine_id: int | None, method: int, request: bytes, context: CallContext) -> CallReply:
        """Call a method of an engine; DeliveryError if it is not delivered.

        An engine that cannot be asked is answered for, if the operation has ended and its answer is kept. So is
        one whose id another may have had before: a call that comes again may be that one's, and has run.
        """
        if engine_id is not None and self._closed is None and not (context.is_new and not context.epoch):
            reference = self.references.get(engine_id)
            if not context.epoch and (method in OPERATIONS or method == frame_pb2.METHOD_SUBMIT):
                epoch = 0 if reference is None else reference.epoch
                context = context._replace(epoch=self.journal.note_call(context.operation_id, engine_id, epoch))
            is_meant = reference is not None and context.epoch in (0, reference.epoch)
            if reference is None or not (is_meant and reference.is_first and reference.is_connected):
                may_wait = reference is not None and is_meant and reference.is_first
                result = await self._kept(context.operation_id, may_wait=may_wait)
                if result is not None:
                    return call_reply(reply_of(result, method))
            if context.epoch and not is_meant:
                raise self._gone(engine_id, context.epoch)
        return await self.engine(engine_id).call(method, request, context)

    async def _kept(self, operation_id: bytes, *, may_wait: bool) -> Result | None:
        """Return how an operation ended; if that cannot be read, a call that `may_wait` for its engine does."""
        try:
            return await self.answers.find(operation_id)
        except DeliveryError:
            if may_wait:
                return None
            raise

    def cancel(self, engine_id: int, operation_id: bytes) -> None:
        """Ask an engine for the end of an operation; nothing happens if it is gone."""
        reference = self.references.get(engine_id)
        if reference is not None:
            reference.cancel(operation_id)

    def submit(self, call: frame_pb2.Call, receiver: Receiver, function: Function | None = None) -> None:
        """Send `call`, which is changed, to its engine, and have its reply, or an error as such, delivered.

        `function` is the one that it names, if it does.
        """
        try:
            engine = self.engine(call.engine_id)
        except DeliveryError as error:
            if not call.sent_epoch or self._closed is not None:
                receiver.deliver(undelivered(call.call_id, error))
            else:
                self._answer_for(call, receiver)
            return
        epoch = call.sent_epoch
        if not epoch:
            engine.submit(call, receiver, function)
        elif epoch == engine.epoch:
            engine.submit_again(call, receiver, function)
        else:
            self._answer_for(call, receiver)

    def _answer_for(self, call: frame_pb2.Call, receiver: Receiver) -> None:
        """Answer a call that was sent to an engine which is gone."""
        call_id, method = call.call_id, call.method
        gone = self._gone(call.engine_id, call.sent_epoch)

        def deliver(answer: Answer) -> None:
            if isinstance(answer, DeliveryError):
                reply = undelivered(call_id, answer)
            else:
                reply = undelivered(call_id, gone) if answer is None else reply_of(answer, method)
            reply.call_id = call_id
            receiver.deliver(reply)

        self.answers.ask(call.operation_id, deliver)

    def _gone(self, engine_id: int, epoch: int) -> DeliveryError:
        """Return what is to be said of an engine that is not registered under that epoch.

        It was registered by an earlier controller and may not have found this one yet: then the call can wait,
        unless the journal knows that its registration has ended.
        """
        settling = min(_SETTLING, self.registry.lease)
        is_settling = time.monotonic() < self._started + settling
        is_known = engine_id in self.references or epoch <= self.registry.highest_epoch(engine_id)
        if is_settling and not is_known and epoch < self._controller_epoch:
            return DeliveryError("ENGINE_AWAY", engine_id=engine_id)
        return DeliveryError("ENGINE_LOST", engine_id=engine_id, cause="its registration has ended")

    def dismiss_all(self, reason: str, grace: float = 0.0) -> None:
        """Ask every connected engine to stop, within `grace` seconds."""
        for reference in self.references.values():
            reference.dismiss(reason, grace)

    def _show_ids(self) -> str:
        ids = sorted(self.references)
        shown = ", ".join(map(str, ids[:_IDS_SHOWN]))
        return shown if len(ids) <= _IDS_SHOWN else f"{shown} and {len(ids) - _IDS_SHOWN} more"

    # As registration streams see it

    def next_stream_number(self) -> int:
        """Return the number of a new registration stream."""
        return next(self._stream_numbers)

    def hello(self, link: Link, hello: HelloReceived) -> Registration:
        """Register an engine of `link`, or take it back; DeliveryError as `Registry.hello` says.

        Its calls do not flow before `connect`.
        """
        self._links[link.number] = link
        admission = self.registry.hello(
            hello, stream=link.number, now=time.monotonic(), unix_ms=time.time_ns() // 1_000_000
        )
        older = self._links.get(admission.superseded or 0)
        if older is not None:
            logger.info("stream %d is superseded by stream %d of the same host", older.number, link.number)
            older.end(DeliveryError("SUPERSEDED"))
        return admission.engine

    def connect(self, engine: Registration, link: Link, inventory: Collection[bytes] = frozenset()) -> None:
        """Let calls flow; the engine has been told that it is welcome. Its host knows the `inventory`."""
        self.references[engine.engine_id].attach(link, inventory)
        self.tasks.connected(engine, inventory)

    def ended(self, link: Link, ended: engine_pb2.OperationEnded) -> None:
        """Keep how an operation ended; what `link` says of engines that it does not connect is ignored."""
        reference = self.references.get(ended.engine_id)
        if reference is not None and reference.is_on(link):
            reference.ended(ended, is_task=self.tasks.scheduler.find(ended.operation_id) is not None)

    def acknowledge(self, link: Link) -> None:
        """Tell the host which of its answers are safe."""
        link.acknowledge(appended=self.journal.appended, committed=self.journal.committed)

    def heartbeat(self, link: Link, statuses: Iterable[engine_pb2.EngineStatus]) -> None:
        """Note how the engines of `link` are."""
        statuses = list(statuses)
        self.registry.heartbeat(link.number, statuses, now=time.monotonic())
        for status in statuses:
            reference = self.references.get(status.engine_id)
            if reference is not None and reference.is_on(link):
                reference.runs(status.operation_id)

    def close_link(self, link: Link) -> None:
        """Note that the stream has ended."""
        self._links.pop(link.number, None)
        self.registry.stream_ended(link.number, now=time.monotonic())

    def _observe(self, event: EngineEvent) -> None:
        engine_id = event.engine.engine_id
        match event.kind:
            case EventKind.REGISTERED:
                self._add(event.engine)
            case EventKind.AWAY:
                self.references[engine_id].detach()
                self.tasks.engine_is(event.engine)
            case EventKind.GONE:
                reference = self.references.pop(engine_id)
                assert event.cause is not None
                self.tasks.engine_gone(engine_id, event.cause)  # what is lost next must not be placed there
                if event.fenced:
                    reference.dismiss(event.reason)
                reference.lose(event.cause)
            case EventKind.BACK:
                pass  # its calls do not flow yet
            case _:
                self.tasks.engine_is(event.engine)

    def _add(self, engine: Registration) -> None:
        self.references[engine.engine_id] = EngineFromReference(
            engine,
            call_ids=self._call_ids,
            waiting_limit=self._waiting_limit,
            answers=self.answers,
            goes_on=self.tasks.engine_goes_on,
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(_LONGEST_TICK, self.registry.lease / 4))
            self.registry.tick(time.monotonic())
            self.tasks.tick()
            for link in list(self._links.values()):
                self.acknowledge(link)
