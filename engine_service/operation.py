"""One operation as its host knows it: a machine without I/O. Time is an argument, in nanoseconds since 1970.

    from       to
    QUEUED     RUNNING, FAILED, CANCELLED, LOST
    RUNNING    SUCCEEDED, FAILED, CANCELLED, TIMED_OUT, LOST

It also carries what is to be done: a call is one object from the queue to the table of what has ended.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from engine_service.requests import LARGE, apply_known, name_of
from enginery import _outcomes
from enginery._engine import CallReply
from enginery._function_window import MAX_PICKLE, Function, whole_request
from enginery._function_window import digest as digest_of
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from engine_service.event_log import EventLog
    from engine_service.kernel_messages import Failure
    from engine_service.known_functions import KnownFunction
    from engine_service.ladder import Ladder
    from engine_service.requests import Row
    from enginery._encoded import Stored
    from enginery._engine import CallContext

Answer = CallReply | DeliveryError
Done = Callable[[Answer], None]
State: TypeAlias = "operation_pb2.OperationState.ValueType"

QUEUED = operation_pb2.OPERATION_STATE_QUEUED
RUNNING = operation_pb2.OPERATION_STATE_RUNNING
SUCCEEDED = operation_pb2.OPERATION_STATE_SUCCEEDED
FAILED = operation_pb2.OPERATION_STATE_FAILED
CANCELLED = operation_pb2.OPERATION_STATE_CANCELLED
TIMED_OUT = operation_pb2.OPERATION_STATE_TIMED_OUT
LOST = operation_pb2.OPERATION_STATE_LOST

TRANSITIONS: dict[State, frozenset[State]] = {
    QUEUED: frozenset({RUNNING, FAILED, CANCELLED, LOST}),
    RUNNING: frozenset({SUCCEEDED, FAILED, CANCELLED, TIMED_OUT, LOST}),
}
"""Where an operation may go from each state; from any other there is no way on."""

SMALL_REQUEST = 1 << 10
"""Bytes up to which the request of an operation that has ended is kept, for people to read its arguments."""
_KEPT_COST = 2 << 10  # bytes of memory of one that has ended, beside its answer and output, about


class StopCause(enum.Enum):
    """Why a running operation is to stop: the outcome of one that raises then, and its error's category."""

    CANCEL = (frame_pb2.OUTCOME_CANCELLED, "CANCELLED")
    TIMEOUT = (frame_pb2.OUTCOME_TIMED_OUT, "TIMED_OUT")

    @property
    def outcome(self) -> int:
        """The outcome of an operation that raised after it was asked to stop."""
        return self.value[0]

    @property
    def category(self) -> str:
        """The category of what it raised, and the last word of the reason if its kernel was killed for it."""
        return self.value[1]


@dataclass(slots=True, eq=False)
class Operation:
    """One operation. `size` counts the bytes of its request and function; times are 0 until then.

    `waiting` are called with the answer. `blobs` are uploaded values that it consumes; `fields` is its request
    as the kernel takes it, None while it is not translated. `progress` is what running code reported last.
    """

    operation_id: bytes
    session_id: bytes
    method: int
    row: Row
    message: Any
    """Its request, parsed; None once it has ended."""
    context: CallContext
    size: int
    fingerprint: int
    """Hash of the request as it came."""
    request: bytes | None
    """As it came if it is small, else None. It stays in place of the message, which takes more memory."""
    log: EventLog
    submitted_at: int
    function: KnownFunction | None = None
    """What it calls, if the call names that by its digest; None once it has ended."""
    blobs: dict[str, Stored] = field(default_factory=dict)
    fields: dict[str, Any] | None = None
    waiting: list[Done] = field(default_factory=list)
    state: State = QUEUED
    number: int = 0
    incarnation: str = ""
    started_at: int = 0
    ended_at: int = 0
    progress: tuple[float, str] | None = None
    stop_cause: StopCause | None = None
    ladder: Ladder | None = None
    answer: Answer | None = None
    is_unwanted: bool = False
    """Its answer was released before it had ended."""
    kept_bytes: int = 0
    """Bytes for which it is kept once it has ended, about."""
    _arguments: str = ""
    _digest: bytes = b""
    _canonical: int = 0

    def __repr__(self) -> str:
        """Show id and state."""
        return f"<Operation {self.operation_id.hex()} {operation_pb2.OperationState.Name(self.state)}>"

    @property
    def may_go_ahead(self) -> bool:
        """Whether the kernel may have it before it has answered the task before it."""
        return self.context.is_task and self.fields is not None

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.state not in TRANSITIONS

    @property
    def is_unbegun_task(self) -> bool:
        """Whether it is a task that has ended here before it began, so that it may be placed here again."""
        answer = self.answer
        return self.context.is_task and isinstance(answer, DeliveryError) and _outcomes.has_not_run(answer)

    @property
    def is_rejected_task(self) -> bool:
        """Whether it is a task that is to run elsewhere: it has not run, and may be placed here again."""
        return self.context.is_task and self.answer is not None and self.outcome == frame_pb2.OUTCOME_REJECTED

    @property
    def arguments(self) -> str:
        """Its arguments, shortened for people to read."""
        if self.function is not None:
            return name_of(self.function.name)
        message = None if self._arguments else self._message()
        return self._arguments if message is None else self.row.summary(message)

    @property
    def outcome(self) -> int:
        """How it ended, as replies say it; only for one that has an answer."""
        return outcome_of(self.answer)

    @property
    def digest(self) -> bytes:
        """Digest of its function if the call named that by it, else empty."""
        return self._digest if self.function is None else self.function.digest

    def translate(self) -> None:
        """Make its request what the kernel takes; DeliveryError if it makes no sense."""
        if self.function is not None:
            self.fields = apply_known(self.function, self.message, self.blobs)
        else:
            self.fields = self.row.fields(self.message, self.blobs)

    def is_same(self, method: int, message: Message, request: bytes, function: Function | None = None) -> bool:
        """Return whether a call under its id is the one that it was made for; `function` if it names one.

        Maps have no order on the wire, and may be in another each time that a call is serialized: so requests
        that differ are compared in their canonical form, but for those that are large. There a function that is
        in the request is the same as one that is named by its digest.
        """
        if method != self.method:
            return False
        digest = b"" if function is None else function.digest
        if hash(request) == self.fingerprint and digest == self.digest:
            return True
        if self._is_whole(message, request, function):
            return True
        canonical = _canonical(message, digest)
        return canonical != _UNKNOWN and canonical == (
            self._canonical or _canonical(self._message(), self.digest)
        )

    def _is_whole(self, message: Message, request: bytes, function: Function | None) -> bool:
        """Return whether one of the two is the other with the function behind it, byte by byte.

        So a controller sends what its journal kept; however large it is, this can be told.
        """
        if function is not None:
            return not self.digest and hash(whole_request(request, function)) == self.fingerprint
        if not self.digest or not isinstance(message, engine_pb2.ApplyRequest):
            return False
        pickle = message.pickled_function.SerializeToString()
        own = Function(digest_of(pickle), pickle)
        bare = request[: len(request) - len(whole_request(b"", own))]
        is_own = own.digest == self.digest and whole_request(bare, own) == request
        return is_own and hash(bare) == self.fingerprint

    def begin(self, now: int, incarnation: str) -> None:
        """It begins to run, in that kernel."""
        self._enter(RUNNING)
        self.started_at = now
        self.incarnation = incarnation
        self.log.started(now / 1e9, incarnation)

    def stop(self, cause: StopCause, ladder: Ladder) -> None:
        """It is asked to stop, for the first time: the cause stays, whatever is asked later."""
        assert self.state == RUNNING
        assert self.stop_cause is None
        self.stop_cause = cause
        self.ladder = ladder

    def outcome_of_reply(self, failure: Failure | None) -> int:
        """Return the outcome of a reply of the kernel: what raises after it was asked to stop has stopped."""
        if failure is None:
            return frame_pb2.OUTCOME_OK
        if self.stop_cause is not None:
            return self.stop_cause.outcome
        return frame_pb2.OUTCOME_REJECTED if failure.category == "REJECTED" else frame_pb2.OUTCOME_USER_ERROR

    def end(self, answer: Answer, now: int) -> list[Done]:
        """It ends; return who waits for its answer."""
        self._enter(_outcomes.STATES[outcome_of(answer)])
        self.ended_at = now
        self.answer = answer
        self.ladder = None
        self.log.ended(now / 1e9)
        self.fields = None
        if self.function is not None or self.request is None:
            self._arguments = self.arguments
            self._digest = self.digest
            self.function = None
        if self.request is None:
            self._canonical = _canonical(self.message, self._digest)
        self.message = None
        response = len(answer.response) if isinstance(answer, CallReply) else 0
        self.kept_bytes = response + self.log.size + _KEPT_COST
        self.close()
        waiting, self.waiting = self.waiting, []
        return waiting

    def close(self) -> None:
        """Give back the blobs that it consumed."""
        for stored in self.blobs.values():
            stored.close()
        self.blobs.clear()

    def _message(self) -> Message | None:
        if self.message is None and self.request is not None:
            return self.row.request.FromString(self.request)
        message: Message | None = self.message
        return message

    def _enter(self, state: State) -> None:
        if state not in TRANSITIONS.get(self.state, ()):
            raise AssertionError(f"{self!r} cannot become {operation_pb2.OperationState.Name(state)}")
        self.state = state


_UNKNOWN = -1  # no hash is


def _canonical(message: Message | None, digest: bytes) -> int:
    """Return a hash of what a call says, whatever the form; `_UNKNOWN` if it is too large for that."""
    size = 0 if message is None else message.ByteSize()
    if isinstance(message, engine_pb2.ApplyRequest) and message.HasField("pickled_function"):
        function_size = message.pickled_function.ByteSize()
        size -= function_size
        if size <= LARGE and function_size <= MAX_PICKLE:
            digest = digest_of(message.pickled_function.SerializeToString())
            message = engine_pb2.ApplyRequest.FromString(message.SerializeToString())
            message.ClearField("pickled_function")
    if message is None or size > LARGE:
        return _UNKNOWN
    return hash((message.SerializeToString(deterministic=True), digest))


def outcome_of(answer: Answer | None) -> int:
    """Return how an operation ended whose answer this is, as replies say it."""
    if isinstance(answer, CallReply):
        return answer.outcome
    assert answer is not None, "it has not ended, or was released"
    return _outcomes.outcome_of(answer)
