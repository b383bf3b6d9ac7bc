"""The router of one engine: which calls wait for its replies, and what its next stream must be told of them.

A synchronous machine without I/O: calls, streams and replies go in, and what is to be sent comes out. A call is
in one of four states, by two facts: whether its request is still here, and whether the engine is connected.

    state      request   stream   connected      accepted        disconnected   answered   lost
    WAITING    here      none     SENT, in full  -               -              -          ENDED
    SENT       here      open     -              TAKEN, or SENT  WAITING        ENDED      ENDED
    TAKEN      dropped   open     -              TAKEN           APART          ENDED      ENDED
    APART      dropped   none     TAKEN, known   -               -              -          ENDED

The request of an operation is dropped once its host has it, for the host joins a call to its operation by id.
Requests of other calls stay: they name no operation that could be joined, and are sent again in full. An
operation that the host names in its hello counts as accepted. docs/machines/router.md tells of the races.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from controller_service import frames
from controller_service.gates import Gates
from enginery._channel import MAX_MESSAGE
from enginery._methods import METHODS, OPERATIONS
from enginery._reasons import DeliveryError
from enginery.v1 import frame_pb2

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from enginery._function_window import Function

CALL_OVERHEAD = 512
"""Bytes that a waiting call costs beside its frame."""
RESERVE = 4 << 20
"""Bytes over the limit that are left to control calls, so that a full router can still be told to cancel."""
MAX_SUBMITTED = 32_768
"""Operations without a call that are known to be on the engine; of more, the oldest are not told to be lost."""
_MAX_FRAME = MAX_MESSAGE - (16 << 10)  # a larger message would end the stream for every engine of the host
SUBMIT = METHODS["Submit"]


class Receiver(Protocol):
    """Whoever waits for replies."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be delivered any more."""

    def deliver(self, reply: frame_pb2.Reply) -> None:
        """Take a reply, whose `call_id` is the one that the receiver gave."""


class Owner(Protocol):
    """Whose call it is: the reference to its engine."""

    def answer(self, call: RoutedCall, reply: frame_pb2.Reply) -> None:
        """Take the reply to `call`."""

    def accepted(self, call: RoutedCall) -> None:
        """The host has `call`."""


@dataclass(slots=True, eq=False)
class RoutedCall:
    """One call on its way: under `number` to the host, under `given_id` back to its receiver."""

    number: int
    owner: Owner
    receiver: Receiver
    given_id: int
    method: int
    operation_id: bytes
    session_id: bytes
    frame: bytes
    """What is sent; empty once the host has the request."""
    function: Function | None = None
    """The one that the frame names by its digest, if it does; None once the host has the request."""
    position: int = 0
    """The how-manieth call it is on its stream, from 1."""
    is_released: bool = False
    """Whether, when it was answered, somebody had released its operation: then its answer is not kept."""
    is_task: bool = False
    """Whether it is an attempt of a task: what becomes of its answer is its receiver's to say."""

    @property
    def size(self) -> int:
        """Bytes of what is to be sent for it."""
        return len(self.frame) if self.function is None else len(self.frame) + len(self.function.pickle)

    @property
    def is_operation(self) -> bool:
        """Whether the host knows it by its operation."""
        return self.method in OPERATIONS

    @property
    def waits_its_turn(self) -> bool:
        """Whether it must not overtake what its session sent before."""
        return bool(self.session_id) and (self.method in OPERATIONS or self.method == SUBMIT)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of one router."""

    waiting_calls: int
    waiting_bytes: int
    is_connected: bool
    gated_sessions: int
    submitted_operations: int


class Router:
    """The calls of one engine that have no reply yet."""

    def __init__(self, engine_id: int, limit: int) -> None:
        """Hold at most `limit` bytes of calls."""
        self.engine_id = engine_id
        self.is_connected = False
        self._limit = limit
        self._waiting: dict[int, RoutedCall] = {}
        self._operations: dict[bytes, RoutedCall] = {}
        self._bytes = 0
        self._submitted: dict[bytes, bytes] = {}  # the sessions of operations without a call
        self._called = 0  # operations for which calls wait
        self._released: set[bytes] = set()  # operations for which calls wait, and whose answers nobody needs
        self._gates = Gates()

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Router({self.engine_id}, {self.statistics()})"

    def statistics(self) -> Statistics:
        """Return counts."""
        return Statistics(
            len(self._waiting), self._bytes, self.is_connected, len(self._gates), len(self._submitted)
        )

    def operation_count(self) -> int:
        """Return how many operations are known to be on the engine, or on their way there."""
        return self._called + len(self._submitted)

    def find(self, operation_id: bytes) -> RoutedCall | None:
        """Return the call of that operation that waits, the latest of several; None if there is none."""
        return self._operations.get(operation_id)

    def knows(self, operation_id: bytes) -> bool:
        """Return whether an operation is known to be on the engine, or on its way there."""
        return operation_id in self._operations or operation_id in self._submitted

    # Calls

    def submitted(self, operation_id: bytes, session_id: bytes) -> None:
        """The host has an operation for which no call waits: unless it ends, it is lost with the engine."""
        self._submitted[operation_id] = session_id
        if len(self._submitted) > MAX_SUBMITTED:
            del self._submitted[next(iter(self._submitted))]

    def ended(self, operation_id: bytes) -> None:
        """An operation has ended."""
        self._submitted.pop(operation_id, None)

    def released(self, operation_ids: Iterable[bytes]) -> None:
        """Only calls that wait need the answers of these; otherwise the host does not tell of their ends."""
        for operation_id in operation_ids:
            self._submitted.pop(operation_id, None)
            if operation_id in self._operations:
                self._released.add(operation_id)

    def has_room(self, call: RoutedCall) -> bool:
        """Return whether `call` can be added without a further question; if not, `refuse` decides."""
        size = call.size
        return not self._gates and self._bytes + size + CALL_OVERHEAD <= self._limit and size <= _MAX_FRAME

    def refuse(self, call: RoutedCall, now: float) -> DeliveryError | None:
        """Return why `call` cannot be added; None if it can.

        Once an operation of a session was refused, those that the session sent behind it are refused too until
        it comes again: they must not overtake it.
        """
        size = call.size
        if size > _MAX_FRAME:
            option = "the contract for one call: send larger values by Upload"
            return DeliveryError("VALUE_TOO_LARGE", size=size, limit=_MAX_FRAME, option=option)
        total = self._bytes + size + CALL_OVERHEAD
        if not call.waits_its_turn:
            reserve = 0 if call.is_operation else RESERVE
            return None if total <= self._limit + reserve else self._full()
        if self._gates.hold_back(call.session_id, call.operation_id, now):
            return self._full()
        if total <= self._limit:
            self._gates.open(call.session_id)
            return None
        self._gates.close(call.session_id, call.operation_id, now)
        return self._full()

    def add(self, call: RoutedCall) -> None:
        """Hold `call` until its reply comes."""
        self._waiting[call.number] = call
        self._operations[call.operation_id] = call
        self._bytes += call.size + CALL_OVERHEAD
        self._called += call.method in OPERATIONS

    def adopt(self, call: RoutedCall) -> bool:
        """Let `call`, which its client says it sent before, take over from the one that waits.

        Returns whether there is such a one: of the same operation and session, and deserted by its receiver.
        Then nothing needs to be sent.
        """
        waiting = self._operations.get(call.operation_id)
        if waiting is None or not waiting.receiver.is_gone:
            return False
        if (waiting.session_id, waiting.method) != (call.session_id, call.method):
            return False
        waiting.receiver, waiting.given_id = call.receiver, call.given_id
        return True

    # The stream

    def connected(self, inventory: Collection[bytes]) -> list[RoutedCall]:
        """The engine has a stream. Return the calls to send on it, in order; `frame` says how.

        `inventory` holds the operations that the host said it knows.
        """
        self.is_connected = True
        for operation_id in inventory:
            if operation_id not in self._operations and operation_id not in self._submitted:
                self.submitted(operation_id, b"")
        return list(self._waiting.values())

    def frame(self, call: RoutedCall, inventory: Collection[bytes] = ()) -> bytes:
        """Return what is to be sent for a call that waits, to a host that knows the `inventory`."""
        if call.frame and call.is_operation and call.operation_id in inventory:
            self.accepted(call)
        return call.frame or self._known(call)

    def disconnected(self) -> list[RoutedCall]:
        """The stream is lost. Return the calls that were on it; they wait."""
        self.is_connected = False
        return list(self._waiting.values())

    def accepted(self, call: RoutedCall) -> None:
        """The host has `call`: an operation's request need not be kept."""
        if call.is_operation and call.number in self._waiting:
            self._bytes -= call.size
            call.frame, call.function = b"", None

    def answered(self, call: RoutedCall) -> bool:
        """End `call`, and return whether it still waited."""
        if self._waiting.pop(call.number, None) is None:
            return False
        if call.method in OPERATIONS:
            self._called -= 1
            if self._submitted:
                self._submitted.pop(call.operation_id, None)  # its end is told by this reply
        if self._released:
            call.is_released = call.operation_id in self._released
        if self._operations.get(call.operation_id) is call:
            del self._operations[call.operation_id]
            if call.is_released:
                self._released.discard(call.operation_id)
        self._bytes -= call.size + CALL_OVERHEAD
        return True

    def lose(self) -> tuple[list[RoutedCall], dict[bytes, bytes]]:
        """The engine is gone. End and return every call, and the sessions of operations without a call."""
        self.is_connected = False
        calls, self._waiting, self._bytes = list(self._waiting.values()), {}, 0
        submitted, self._submitted = self._submitted, {}
        self._called = 0
        self._operations.clear()
        self._released.clear()
        self._gates.clear()
        return calls, submitted

    def _known(self, call: RoutedCall) -> bytes:
        """Return the frame that asks for the reply of an operation that the host has."""
        frame = frame_pb2.Call(
            call_id=call.number,
            engine_id=self.engine_id,
            method=call.method,  # type: ignore[arg-type]  # a number that this controller may not know
            operation_id=call.operation_id,
            session_id=call.session_id,
            known=True,
        )
        return frames.embed(frames.CALL, frame.SerializeToString())

    def _full(self) -> DeliveryError:
        if not self.is_connected:
            return DeliveryError("ENGINE_AWAY", engine_id=self.engine_id)
        size = f"{len(self._waiting)} calls, {self._bytes} bytes"
        option = "the controller's --waiting-limit"
        return DeliveryError("QUEUE_FULL", engine_id=self.engine_id, size=size, option=option)
