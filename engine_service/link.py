"""The host's link to its controller: opens the registration stream, again and again, and runs what comes down.

One stream carries all engines of the host. Decisions about one engine's registration are `session`'s, the bytes
are `stream`'s; here the two meet the engines.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import socket
import time
import uuid
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from engine_service.session import Fence, SayGoodbye, SayHello, Session, State, Stop, TakeId
from engine_service.stream import RegistrationStream
from engine_service.transfers import Transfers
from enginery import _logs, _status, _values
from enginery._channel import open_channel
from enginery._engine import MAX_SECONDS, CallContext, read_context
from enginery._function_window import FunctionWindow
from enginery._methods import OPERATIONS
from enginery._reasons import DeliveryError
from enginery.errors import ConnectionFileError
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from engine_service.direct import DirectPort
    from engine_service.engine import Engine
    from engine_service.operation import Operation
    from engine_service.session import Action
    from enginery._connection_file import ConnectionInfo
    from enginery.v1 import frame_pb2

    ReadConnection = Callable[[], ConnectionInfo]

logger = logging.getLogger(__name__)

HEARTBEAT = 5.0
"""Seconds between heartbeats."""
LASTING = 0.01
"""Seconds after which the controller is told of an operation that was called directly: tasks go elsewhere."""
_NEXT_LOOK = 0.25  # seconds after which it is looked whether another runs by now
WELCOME_PATIENCE = 30.0
"""Seconds in which the controller must answer the hellos of a stream."""
FAREWELL_PATIENCE = 2.0
"""Seconds for the last messages when all engines have left."""
_FIRST_DELAY, _DELAY_FACTOR, _MAX_DELAY = 0.1, 1.5, 5.0
_PROPERTIES_LIMIT = 1 << 20
_OPERATION_BYTES = 16


@dataclass(slots=True, eq=False)
class _Member:
    """One engine and its registration, with what the controller was last told of it."""

    engine: Engine
    session: Session
    told_incarnation: str = ""
    told_properties: object = None


class Link:
    """Keeps the engines of one host registered. `run` ends when all of them have left."""

    def __init__(
        self,
        engines: Sequence[Engine],
        read_connection: ReadConnection,
        *,
        direct: DirectPort | None = None,
        host_id: str | None = None,
        heartbeat: float = HEARTBEAT,
        first_delay: float = _FIRST_DELAY,
        orphan_timeout: float | None = None,
    ) -> None:
        """Serve `engines`, which must be started. `read_connection` is called before each attempt to connect.

        `direct` is the host's own port, opened once the controller has signed for it. Times in seconds; after
        `orphan_timeout` without a controller all engines stop, by default never.
        """
        fence = Fence()
        self._members = {engine.slot: _Member(engine, Session(_wanted(engine), fence)) for engine in engines}
        self._by_id: dict[int, Engine] = {}
        self._read_connection = read_connection
        self._direct = direct
        self._direct_addresses: list[str] = []
        self._host_id = host_id or str(uuid.uuid4())
        self._version = version("enginery")  # read from a file: once, not for each hello
        self._heartbeat = heartbeat
        self._first_delay = first_delay
        self._orphan_timeout = orphan_timeout
        self._orphan_timer: asyncio.TimerHandle | None = None
        self._sequence = 0
        self._stream: RegistrationStream | None = None
        self._functions = FunctionWindow()  # which came on the stream
        self._transfers: Transfers | None = None
        self._welcomes = 0
        self._opening: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # an engine has left
        self._is_heard = False
        self._looking: asyncio.TimerHandle | None = None
        self._told_running: set[bytes] = set()
        if direct is not None:
            direct.on_call = self._called_directly
        for engine in engines:
            engine.listener = self

    @property
    def registered(self) -> list[int]:
        """Ids of the engines that are registered now."""
        return sorted(self._by_id)

    def statistics(self) -> dict[str, int]:
        """Return how many engines are here and registered, and what waits on the stream, if one is open."""
        own = {"engines": len(self._present()), "registered": len(self._by_id)}
        return own if self._stream is None else {**own, **self._stream.statistics()}

    def _present(self) -> list[_Member]:
        return [member for member in self._members.values() if member.session.state is not State.GONE]

    @property
    def has_left_unheard(self) -> bool:
        """Whether no controller heard the last engine leave: then the next one may wait for its engines."""
        return self._welcomes > 0 and not self._is_heard

    # ---- connecting

    async def run(self) -> None:
        """Connect, serve, and connect again, until no engine is left."""
        self._begin_orphanhood()
        try:
            await self._keep_connected()
        finally:
            self._end_orphanhood()

    async def _keep_connected(self) -> None:
        delay = self._first_delay
        complaint = ""
        while self._present():
            welcomes, superseded = self._welcomes, False
            try:
                info = await asyncio.to_thread(self._read_connection)
            except ConnectionFileError as error:
                text = str(error)
            else:
                failure = await self._connect(info)
                superseded = failure.reason == "SUPERSEDED"  # by a process that was cloned from this one
                # its whole text is for callers: "the call may have run"
                cause = failure.metadata["cause"] if failure.reason == "CONTROLLER_LOST" else failure.text
                text = f"controller {info.address}: {cause}"
            if self._welcomes > welcomes:
                delay, complaint = self._first_delay, ""
            if superseded:
                delay = _MAX_DELAY  # or the two would push each other out without end
            if not self._present():
                return
            if text != complaint:  # once is enough while nothing changes
                logger.warning("not connected, trying again: %s", text)
                complaint = text
            await self._pause(delay * random.uniform(0.8, 1.2))  # noqa: S311 - spreads reconnects, no secret
            delay = min(delay * _DELAY_FACTOR, _MAX_DELAY)

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._present() and (left := deadline - loop.time()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    async def _connect(self, info: ConnectionInfo) -> DeliveryError:
        """Serve one stream to its end, and return why it ended."""
        if self._direct is not None:
            self._direct_addresses = await self._direct.addresses(info.address)
        channel = open_channel(info)
        stream = self._stream = RegistrationStream(
            channel, info.metadata, self._receive, engine_count=len(self._members)
        )
        self._functions = FunctionWindow()
        self._transfers = Transfers(info, self._by_id)
        timers = _Timers(self, stream, self._heartbeat)
        try:
            for member in self._present():
                self._act(member, member.session.opened())
            failure = await stream.run()
            self._is_heard = stream.is_heard
            return failure
        finally:
            timers.cancel()
            self._stream = None
            self._by_id.clear()
            self._begin_orphanhood()
            for member in self._present():
                member.session.closed()
            await self._transfers.close()
            self._transfers = None
            if self._opening is not None:
                await self._opening
                self._opening = None
            await channel.close()

    def beat(self) -> None:
        """Send a heartbeat, and ask again for engines that were refused for now."""
        if self._stream is None:
            return
        for member in self._present():
            self._act(member, member.session.opened())
        self._report()
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("statistics: %s", self.statistics())

    def _report(self) -> None:
        """Say how the engines are, in the place of what was not sent yet."""
        if self._stream is not None:
            self._sequence += 1
            engines = [engine.status() for engine in self._by_id.values()]
            heartbeat = engine_pb2.Heartbeat(sequence=self._sequence, engines=engines)
            self._stream.next_message.heartbeat.CopyFrom(heartbeat)

    def _called_directly(self) -> None:
        """Have a look soon whether what was called lasts."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LASTING, self._look)

    def _look(self) -> None:
        """Tell the controller what runs that it may not know, once it has run for a while."""
        self._looking = None
        running = [engine.queue.running for engine in self._by_id.values()]
        going = {one.operation_id: one.started_at for one in running if one is not None}
        young = time.time_ns() - round(LASTING * 1e9)
        lasting = {one for one, started_at in going.items() if started_at <= young}
        if not lasting <= self._told_running:
            self._report()
        self._told_running = lasting
        if going:  # what waits behind it may be told of later
            delay = _NEXT_LOOK if len(lasting) == len(going) else LASTING
            self._looking = asyncio.get_running_loop().call_later(delay, self._look)

    @property
    def _is_asking(self) -> bool:
        return any(member.session.state is State.ASKING for member in self._present())

    def check_welcome(self) -> None:
        """Give up a stream on which no engine was answered in time."""
        if self._stream is not None and self._is_asking:
            logger.error("the controller did not answer within %.0f s", WELCOME_PATIENCE)
            self._stream.cancel()

    def drain(self, reason: str, grace: float) -> None:
        """Let all engines finish what they run within `grace` seconds, take no more, and leave."""
        for member in self._present():
            member.engine.drain(reason, grace)
        self._tell_draining()

    def _tell_draining(self) -> None:
        leaving = (member.engine.is_draining for member in self._present())
        if self._direct is not None and all(leaving):
            self._direct.drain()
        self._report()

    def _begin_orphanhood(self) -> None:
        if self._orphan_timeout is not None and self._orphan_timer is None:
            loop = asyncio.get_running_loop()
            self._orphan_timer = loop.call_later(self._orphan_timeout, self._leave_as_orphans)

    def _end_orphanhood(self) -> None:
        if self._orphan_timer is not None:
            self._orphan_timer.cancel()
            self._orphan_timer = None

    def _leave_as_orphans(self) -> None:
        reason = f"no controller for {self._orphan_timeout:g} s, its --orphan-timeout"
        logger.warning("leaving: %s", reason)
        for member in self._present():
            member.engine.stop(reason)

    # ---- what comes down

    def _receive(self, message: engine_pb2.ControllerMessage) -> None:
        for welcome in message.welcomes:
            member = self._member(welcome.slot)
            actions = member.session.welcomed(
                welcome.engine_id, welcome.epoch, welcome.cluster_id, welcome.controller_epoch
            )
            self._act(member, actions)
            self._open_direct(welcome)
            if self._transfers is not None:
                self._transfers.connect()
        if message.welcomes and not self._is_asking:
            self._report()  # a controller that has restarted knows nothing of what runs
        for refusal in message.refusals:
            member = self._member(refusal.slot)
            self._act(member, member.session.refused(_status.from_bytes(refusal.error)))
        for function in message.functions:
            self._functions.take_in(function.digest, function.pickle)
        if message.calls:
            self._dispatch(message.calls)
        self._functions.trim()
        for offer in message.transfers:
            assert self._transfers is not None
            self._transfers.start(offer)
        for recall in message.recalls:
            if recall.engine_id in self._by_id:
                self._by_id[recall.engine_id].recall(recall.operation_ids)
        for dismissal in message.dismissals:
            self._dismiss(dismissal)
        if message.journaled_count and self._stream is not None:
            self._stream.acknowledge(message.journaled_count)

    def _member(self, slot: int) -> _Member:
        if slot not in self._members:
            raise DeliveryError(
                "PROTOCOL_ERROR", cause=f"the controller answered slot {slot}, which is not here"
            )
        return self._members[slot]

    def _dispatch(self, calls: Sequence[frame_pb2.Call]) -> None:
        stream = self._stream
        assert stream is not None
        size = 0
        for call in calls:
            method, request, operation_id = call.method, call.request, call.operation_id
            size += len(request)
            engine = self._by_id.get(call.engine_id)
            # The call of a Submit bears the operation's id, but its reply is not the operation's answer.
            answered_id = operation_id if method in OPERATIONS else b""
            done = functools.partial(stream.reply, call.call_id, engine, answered_id)
            try:
                if engine is None:
                    ids = ", ".join(map(str, self.registered))
                    raise DeliveryError("INVALID_ENGINE_ID", engine_id=call.engine_id, engine_ids=ids)
                if len(operation_id) != _OPERATION_BYTES:
                    raise DeliveryError("BAD_REQUEST", field="operation_id", cause="it has 16 bytes")
                function = None if call.known else self._functions.named_by(call)
                if function is not None:
                    size += len(function.pickle)
                is_task = call.HasField("task")
                if is_task or call.known or call.HasField("options"):
                    context = read_context(
                        operation_id,
                        call.session_id,
                        call.options,
                        known=call.known,
                        is_task=is_task,
                        function=function,
                        label=call.task.label if is_task else "",
                    )
                else:
                    context = CallContext(operation_id, call.session_id, function=function)
            except DeliveryError as error:
                done(error)
            else:
                engine.submit(method, request, context, done)
        stream.accept(len(calls), size)

    def _dismiss(self, dismissal: engine_pb2.Dismissal) -> None:
        engine = self._by_id.get(dismissal.engine_id)
        if engine is None:
            return
        grace = min(dismissal.grace.ToNanoseconds() / 1e9, MAX_SECONDS)
        reason = dismissal.reason or "dismissed by the controller"
        about = _logs.about(engine=dismissal.engine_id)
        logger.info("dismissed, with %g s to finish what runs: %s", grace, reason, extra=about)
        if grace > 0:
            engine.drain(reason, grace)
        else:
            engine.stop(reason)
        self._tell_draining()

    def _open_direct(self, welcome: engine_pb2.Welcome) -> None:
        if self._direct is not None and welcome.client_token_digest and self._opening is None:
            opening = self._direct.open(
                welcome.cluster_id,
                welcome.certificate,
                welcome.client_token_digest,
                tuple(welcome.direct_token_digests),
            )
            self._opening = asyncio.create_task(opening, name="opening of the host's own port")

    # ---- what goes up

    def _act(self, member: _Member, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case SayHello():
                    self._say_hello(member, action)
                case TakeId(engine_id):
                    self._take_id(member, engine_id)
                case Stop(reason):
                    member.engine.stop(reason)
                case SayGoodbye(engine_id):
                    if self._stream is not None:
                        reason = member.engine.stop_reason
                        self._stream.goodbye(engine_pb2.Goodbye(engine_id=engine_id, reason=reason))

    def _say_hello(self, member: _Member, hello: SayHello) -> None:
        engine, kernel = member.engine, member.engine.kernel
        assert self._stream is not None
        message = self._stream.next_message.hellos.add(
            slot=engine.slot,
            host_id=self._host_id,
            incarnation=kernel.incarnation,
            engine_id=hello.engine_id,
            epoch=hello.epoch,
            pid=kernel.pid,
            hostname=socket.gethostname(),
            python_version=kernel.python_version,
            enginery_version=self._version,
            operation_ids=engine.inventory(),
            memory_limit=engine.options.memory_limit or 0,
        )
        for key, value in engine.properties.items():
            message.properties[key].CopyFrom(_values.to_value(value))
        if self._direct is not None:
            message.certificate_request = self._direct.certificate_request
            message.direct_addresses.extend(self._direct_addresses)
        member.told_incarnation = kernel.incarnation
        member.told_properties = engine.properties

    def _take_id(self, member: _Member, engine_id: int) -> None:
        engine = member.engine
        self._welcomes += 1
        was, epoch = engine.epoch, member.session.epoch or 0
        engine.set_id(engine_id, registered=True, epoch=epoch)
        if self._direct is not None and was not in (0, epoch):
            self._direct.engine_changed()
        self._by_id[engine_id] = engine
        self._end_orphanhood()
        logger.info("registered: kernel pid %d", engine.kernel.pid, extra=_logs.about(engine=engine_id))
        # What changed between hello and welcome had no id to be told under.
        if member.told_incarnation != engine.kernel.incarnation:
            self.kernel_changed(engine, engine.last_failure)
        if member.told_properties is not engine.properties:
            self.properties_changed(engine)
        assert self._stream is not None
        self._stream.operations_ended(engine, engine.unsettled())

    def properties_changed(self, engine: Engine) -> None:
        """Tell the controller; the message that carries this goes out before, or with, any later reply."""
        stream = self._stream_of(engine)
        if stream is None:
            return
        message = engine_pb2.PropertiesChanged(engine_id=engine.engine_id)
        for key, value in engine.properties.items():
            message.properties[key].CopyFrom(_values.to_value(value))
        if message.ByteSize() > _PROPERTIES_LIMIT:
            about = _logs.about(engine=engine.engine_id)
            logger.error("properties over 1 MiB are not shown to the controller", extra=about)
            return
        stream.change_properties(message)

    def kernel_changed(self, engine: Engine, reason: str) -> None:
        """Tell the controller that an engine has a new kernel."""
        stream = self._stream_of(engine)
        if stream is not None:
            stream.next_message.kernels_changed.add(
                engine_id=engine.engine_id,
                incarnation=engine.kernel.incarnation,
                pid=engine.kernel.pid,
                reason=reason,
            )
            self.properties_changed(engine)

    def operation_ended(self, engine: Engine, operation: Operation) -> None:
        """Tell the controller, unless a reply does. What ends while it is away is told after the welcome."""
        if self._stream is not None and engine.engine_id in self._by_id:
            self._stream.operation_ended(engine, operation)

    def engine_stopped(self, engine: Engine, reason: str) -> None:
        """Say goodbye for an engine that has stopped; the link ends with the last."""
        logger.info("stopped: %s", reason, extra=_logs.about(engine=engine.engine_id))
        member = self._members[engine.slot]
        self._by_id.pop(engine.engine_id, None)
        self._act(member, member.session.left())
        self._changed.set()
        if not self._present() and self._stream is not None:
            self._stream.finish()
            asyncio.get_running_loop().call_later(FAREWELL_PATIENCE, self._stream.cancel)

    def _stream_of(self, engine: Engine) -> RegistrationStream | None:
        return self._stream if engine.engine_id in self._by_id else None


class _Timers:
    """Heartbeats and the wait for a welcome, without a task."""

    def __init__(self, link: Link, stream: RegistrationStream, heartbeat: float) -> None:
        self._link = link
        self._heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._beat = self._loop.call_later(heartbeat, self._on_beat)
        self._welcome = self._loop.call_later(WELCOME_PATIENCE, link.check_welcome)

    def _on_beat(self) -> None:
        self._beat = self._loop.call_later(self._heartbeat, self._on_beat)
        self._link.beat()

    def cancel(self) -> None:
        self._beat.cancel()
        self._welcome.cancel()


def _wanted(engine: Engine) -> int | None:
    return engine.engine_id if engine.engine_id >= 0 else None
