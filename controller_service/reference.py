"""EngineFromReference: makes a remote engine look like an engine, over the stream that its host opened.

A call waits here until its reply comes. When the stream is lost and the engine comes back within its lease,
what has no reply yet is told again, in order and with the same operation ids; the host runs none twice, and
answers with the reply that it kept. A call whose caller has gone waits all the same: the end of the waiting is
not the end of the operation. What is sent when is decided by the router; this carries it out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from controller_service import frames
from controller_service.answers import FINAL, Answer, Answers, reply_of
from controller_service.router import SUBMIT, Receiver, RoutedCall, Router, Statistics
from enginery import _ids, _logs
from enginery._engine import CallContext, CallReply, EngineBase, context_options
from enginery._methods import OPERATIONS
from enginery._reasons import DeliveryError
from enginery._replies import undelivered
from enginery._status import from_bytes
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from controller_service.events import Registration
    from controller_service.link import Link
    from controller_service.task_call import TaskCall
    from enginery._function_window import Function

logger = logging.getLogger(__name__)

_OPERATION_BYTES = 16
_AT_ONCE = 256  # calls that are told again, or lost, before the loop does something else: 2 ms
_control_ids = _ids.OperationIds()  # of calls that this controller makes itself


class EngineFromReference(EngineBase):
    """The engine of `engine_id`, wherever it runs. Lives as long as its registration."""

    def __init__(
        self,
        engine: Registration,
        *,
        call_ids: Iterator[int],
        waiting_limit: int,
        answers: Answers,
        goes_on: Callable[[int], None],
    ) -> None:
        """Take where call ids come from, which all references of a controller share, and the bound in bytes.

        `goes_on` is told the engine's id when an operation of it has ended that is no task.
        """
        self._engine_id = engine.engine_id
        self.epoch = engine.epoch
        """Of its registration."""
        self.is_first = engine.is_first
        """Whether it is known that nobody held its id before."""
        self._call_ids = call_ids
        self._answers = answers
        self._journal = answers.journal
        self._goes_on = goes_on
        self._router = Router(engine.engine_id, waiting_limit)
        self.operation_count = self._router.operation_count
        """Returns how many operations are known to be on the engine, or on their way there."""
        self._link: Link | None = None
        self._again: deque[RoutedCall] = deque()  # which the stream is still to be told
        self._lost: DeliveryError | None = None
        self._changed = asyncio.Event()
        self._called_directly = b""  # what it runs, if that was not called here

    def __repr__(self) -> str:
        """Show the counts."""
        return f"EngineFromReference({self.engine_id}, {self.statistics()})"

    @property
    def engine_id(self) -> int:
        """Its id."""
        return self._engine_id

    @property
    def is_connected(self) -> bool:
        """Whether its host has a stream open."""
        return self._link is not None

    def statistics(self) -> Statistics:
        """Return counts."""
        return self._router.statistics()

    def has_waiting(self, operation_id: bytes) -> bool:
        """Return whether a call of that operation waits for its reply."""
        return self._router.find(operation_id) is not None

    # As callers see it

    async def call(self, method: int, request: bytes, context: CallContext) -> CallReply:
        """Call a method; see EngineBase. While the engine is away the call waits."""
        receiver = Future(hash(request))
        call = frame_pb2.Call(
            engine_id=self.engine_id,
            method=method,  # type: ignore[arg-type]  # a number that this controller may not know
            operation_id=context.operation_id,
            session_id=context.session_id,
            options=context_options(context),
            request=request,
        )
        routed = self._route(call, receiver)
        waiting = self._router.find(context.operation_id)
        is_retry = waiting is not None and receiver.asks_the_same_as(waiting.receiver)
        if not (is_retry and self._router.adopt(routed)):  # else retries would pile up here and on the host
            self._submit(routed)
        return call_reply(await receiver.future)

    def submit(self, call: frame_pb2.Call, receiver: Receiver, function: Function | None = None) -> None:
        """Send `call`, which is changed, and have its reply delivered. An error is delivered as a reply too.

        `function` is the one that it names, if it does.
        """
        self._submit(self._route(call, receiver, function))

    def submit_task(self, call: TaskCall, operation_id: bytes, receiver: Receiver) -> None:
        """Send an attempt of a task; its answer is delivered as it comes, and not kept."""
        number = next(self._call_ids)
        frame = call.frame(number, self._engine_id, operation_id)
        self._submit(
            RoutedCall(
                number, self, receiver, 0, call.method, operation_id, b"", frame, call.function, is_task=True
            )
        )

    def submit_again(self, call: frame_pb2.Call, receiver: Receiver, function: Function | None = None) -> None:
        """Take a call that its client sent before on a stream that broke; one that still waits goes on."""
        call.ClearField("sent_epoch")
        routed = self._route(call, receiver, function)
        if not self._router.adopt(routed):
            self._submit(routed)

    def cancel(self, operation_id: bytes, how: bytes = b"") -> None:
        """Ask for the end of an operation, whatever becomes of that; `how` is a serialized CancelRequest."""
        request = operation_pb2.CancelRequest.FromString(how)
        request.operation_id = _ids.show(operation_id)
        call = frame_pb2.Call(
            engine_id=self.engine_id,
            method=frame_pb2.METHOD_CANCEL,
            operation_id=_control_ids.mint(),
            request=request.SerializeToString(),
        )
        self.submit(call, Nobody())

    def forget(self, operation_id: bytes) -> None:
        """Have the host release what it knows of an operation."""
        request = operation_pb2.ReleaseRequest(operation_ids=[_ids.show(operation_id)])
        call = frame_pb2.Call(
            engine_id=self.engine_id,
            method=frame_pb2.METHOD_RELEASE,
            operation_id=_control_ids.mint(),
            request=request.SerializeToString(),
        )
        self.submit(call, Nobody())

    def release(self, operation_ids: Iterable[bytes]) -> None:
        """Keep no answers of these: they are only given to the calls that wait for them."""
        self._router.released(operation_ids)

    def shares_host_with(self, other: EngineFromReference) -> bool:
        """Return whether both engines are connected, by the same stream."""
        return self._link is not None and self._link is other._link

    async def offer(self, transfer_id: str, method: int, other_engine_ids: Sequence[int] = ()) -> None:
        """Ask the host to open a transfer, as soon as the engine is connected; DeliveryError if it is lost.

        `other_engine_ids` are those of the same host that an upload is for as well.
        """
        while self._link is None:
            if self._lost is not None:
                raise self._lost
            self._changed.clear()
            await self._changed.wait()
        transfer = engine_pb2.TransferOffer(
            transfer_id=transfer_id,
            engine_id=self.engine_id,
            method=method,  # type: ignore[arg-type]
            other_engine_ids=other_engine_ids,
        )
        self._link.send(engine_pb2.ControllerMessage(transfers=(transfer,)).SerializeToString())

    def recall(self, operation_ids: Iterable[bytes]) -> None:
        """Ask the engine to give back tasks that it has not begun; nothing happens while it is away."""
        if self._link is not None:
            recall = engine_pb2.Recall(engine_id=self.engine_id, operation_ids=operation_ids)
            self._link.send(engine_pb2.ControllerMessage(recalls=(recall,)).SerializeToString())

    def dismiss(self, reason: str, grace: float = 0.0) -> None:
        """Ask the engine to stop, within `grace` seconds; nothing happens while it is away."""
        if self._link is not None:
            dismissal = engine_pb2.Dismissal(engine_id=self.engine_id, reason=reason)
            if grace > 0:
                dismissal.grace.FromNanoseconds(round(grace * 1e9))
            self._link.send(engine_pb2.ControllerMessage(dismissals=(dismissal,)).SerializeToString())

    # As the registration stream sees it

    def is_on(self, link: Link) -> bool:
        """Return whether `link` is its stream."""
        return self._link is link

    def attach(self, link: Link, inventory: Collection[bytes] = frozenset()) -> None:
        """Use `link` from now on, and tell again what has no reply yet; the host knows the `inventory`."""
        self._link = link
        self._again.extend(self._router.connected(inventory))
        if self._again:
            count = len(self._again)
            logger.info("goes on with calls that wait: %d", count, extra=_logs.about(engine=self.engine_id))
            self._tell_again(link, inventory)
        self._changed.set()

    def _tell_again(self, link: Link, inventory: Collection[bytes]) -> None:
        """Tell a few of the calls that wait, and the rest soon: there may be too many for one go."""
        if self._link is not link:
            return  # it is lost by now
        for _ in range(min(_AT_ONCE, len(self._again))):
            call = self._again.popleft()
            link.post(call, self._router.frame(call, inventory))
        if self._again:
            asyncio.get_running_loop().call_soon(self._tell_again, link, inventory)

    def detach(self) -> None:
        """The stream is lost; calls wait."""
        self._again.clear()
        calls = self._router.disconnected()
        if self._link is not None:
            self._link.withdraw(calls)
            self._link = None

    def accepted(self, call: RoutedCall) -> None:
        """The host has `call`."""
        self._router.accepted(call)

    def answer(self, call: RoutedCall, reply: frame_pb2.Reply) -> None:
        """Take the reply to `call`."""
        if not self._router.answered(call):
            return
        outcome = reply.outcome
        if call.is_task:
            call.receiver.deliver(reply)
            return
        if outcome == frame_pb2.OUTCOME_RELEASED:
            self._answers.ask(call.operation_id, partial(_replace, call, reply))
            return
        reply.call_id = call.given_id
        call.receiver.deliver(reply)
        if call.is_operation and outcome in FINAL and not call.is_released:
            self._journal.add_result(
                call.operation_id,
                self._engine_id,
                call.method,
                call.session_id,
                outcome,
                reply.response,
                reply.error,
            )
            self._goes_on(self._engine_id)
        elif call.method == SUBMIT and outcome == frame_pb2.OUTCOME_OK:
            self._router.submitted(call.operation_id, call.session_id)
        if logger.isEnabledFor(logging.DEBUG):
            self._log("ended", call)

    def runs(self, shown: str) -> None:
        """It says what it runs, as a UUID; empty if nothing. What was called past this controller is counted
        with the other operations: tasks are not placed behind it."""
        try:
            operation_id = _ids.parse(shown) if shown else b""
        except ValueError:
            operation_id = b""
        if self._called_directly and self._called_directly != operation_id:
            self._router.ended(self._called_directly)
            self._called_directly = b""
            self._goes_on(self._engine_id)
        if operation_id and not self._router.knows(operation_id):
            self._router.submitted(operation_id, b"")
            self._called_directly = operation_id

    def ended(self, ended: engine_pb2.OperationEnded, *, is_task: bool) -> None:
        """Keep how an operation of this engine ended that was not called on its present stream.

        `is_task`: it is an attempt of a task, and what becomes of that is told otherwise.
        """
        self._router.ended(ended.operation_id)
        self._goes_on(self._engine_id)
        waiting = self._router.find(ended.operation_id)
        if (
            not is_task
            and not (waiting is not None and waiting.is_task)
            and ended.method in OPERATIONS
            and ended.outcome in FINAL
            and len(ended.operation_id) == _OPERATION_BYTES
        ):
            self._journal.add_result(
                ended.operation_id,
                self._engine_id,
                ended.method,
                ended.session_id,
                ended.outcome,
                ended.response,
                ended.error,
            )

    def lose(self, error: DeliveryError) -> None:
        """The engine is gone: every call that waits, and every later one, fails with `error`."""
        self.detach()
        self._lost = error
        failure = undelivered(0, error)
        calls, submitted = self._router.lose()
        is_final = failure.outcome in FINAL
        if is_final:
            # Those that an earlier controller was called for, and nobody since: of them no more is known.
            lost = {one: (one, SUBMIT, b"") for one in self._journal.calls_to(self._engine_id)}
            lost |= {one: (one, SUBMIT, session_id) for one, session_id in submitted.items()}
            lost |= {
                one.operation_id: (one.operation_id, one.method, one.session_id)
                for one in calls
                if one.is_operation
            }
            for one in calls:
                if one.is_task:  # which may run again
                    lost.pop(one.operation_id, None)
            self._answers.lost(lost.values(), self._engine_id, failure)
        self._tell_lost(deque(calls), failure, is_final=is_final)
        self._changed.set()

    def _tell_lost(self, calls: deque[RoutedCall], failure: frame_pb2.Reply, *, is_final: bool) -> None:
        """Tell a few callers that their engine is gone, and the rest soon."""
        for _ in range(min(_AT_ONCE, len(calls))):
            call = calls.popleft()
            if is_final and call.is_operation and not call.is_task:
                # It may have ended before, when another call waited for it: then that is what this one is told.
                self._answers.ask(call.operation_id, partial(_replace, call, failure))
            else:
                _deliver(call, failure)
        if calls:
            tell = partial(self._tell_lost, calls, failure, is_final=is_final)
            asyncio.get_running_loop().call_soon(tell)

    def _route(self, call: frame_pb2.Call, receiver: Receiver, function: Function | None = None) -> RoutedCall:
        given = call.call_id
        call.call_id = number = next(self._call_ids)
        frame = frames.embed(frames.CALL, call.SerializeToString())
        return RoutedCall(
            number, self, receiver, given, call.method, call.operation_id, call.session_id, frame, function
        )

    def _submit(self, routed: RoutedCall) -> None:
        error = self._lost
        if error is None and not self._router.has_room(routed):
            error = self._router.refuse(routed, time.monotonic())
        if error is not None:
            routed.receiver.deliver(undelivered(routed.given_id, error))
            return
        self._router.add(routed)
        if self._again:
            self._again.append(routed)  # behind those that are told again
        elif self._link is not None:
            self._link.post(routed, routed.frame)
        if logger.isEnabledFor(logging.DEBUG):
            self._log("sent" if self._link is not None else "waits for the engine", routed)

    def _log(self, what: str, call: RoutedCall) -> None:
        about = _logs.about(engine=self._engine_id, operation=call.operation_id, client=call.session_id)
        logger.debug("%s", what, extra=about)


def call_reply(reply: frame_pb2.Reply) -> CallReply:
    """Return what a reply carries; DeliveryError if that is an error."""
    if reply.error or reply.outcome == frame_pb2.OUTCOME_NOT_DELIVERED:
        raise from_bytes(reply.error)
    return CallReply(reply.outcome, reply.response)


def _replace(call: RoutedCall, reply: frame_pb2.Reply, answer: Answer) -> None:
    """Deliver what is known of an operation in the place of `reply`, which is that it is gone."""
    if isinstance(answer, DeliveryError):
        _deliver(call, undelivered(0, answer))
    else:
        _deliver(call, reply if answer is None else reply_of(answer, call.method))


def _deliver(call: RoutedCall, reply: frame_pb2.Reply) -> None:
    """Give `call` a reply that may be meant for others too."""
    own = frame_pb2.Reply(
        call_id=call.given_id, outcome=reply.outcome, response=reply.response, error=reply.error
    )
    call.receiver.deliver(own)


class Future:
    """The receiver of one reply, for a caller that waits. `fingerprint` is of its request."""

    def __init__(self, fingerprint: int) -> None:
        """Wait in the running loop."""
        self.fingerprint = fingerprint
        self.future: asyncio.Future[frame_pb2.Reply] = asyncio.get_running_loop().create_future()

    @property
    def is_gone(self) -> bool:
        """Whether its caller has stopped waiting."""
        return self.future.done()

    def asks_the_same_as(self, other: Receiver) -> bool:
        """Return whether that is the receiver of the same request."""
        return isinstance(other, Future) and other.fingerprint == self.fingerprint

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Take it."""
        if not self.future.done():  # its caller may have stopped waiting
            self.future.set_result(reply)


class Nobody:
    """The receiver of a reply that nobody waits for."""

    is_gone = True

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Drop it."""
