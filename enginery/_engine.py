"""What an engine is to whoever calls it: bytes in, bytes out, on either side of the wire.

The host's own engine and the controller's reference to a remote one both satisfy `EngineBase`; that symmetry is
IPython.kernel's `IEngineBase`, and one suite of behaviour runs over both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from enginery._reasons import DeliveryError
from enginery.v1.frame_pb2 import CallOptions

if TYPE_CHECKING:
    from enginery._function_window import Function

DEFAULT_INLINE_LIMIT = 1 << 20
"""Bytes up to which a value rides in the reply, if the caller said nothing."""
MAX_INLINE_LIMIT = 3 << 20
"""Bytes up to which a caller may ask values to ride in the reply; keeps messages below 4 MiB."""
MAX_CHUNK = 1 << 20
"""Largest chunk of a blob, in bytes."""
DEFAULT_VALUE_LIMIT = 4 << 30
"""Largest value that may be uploaded or returned, in bytes, unless set otherwise."""
DEFAULT_GRACE = 5.0
"""Seconds that a running operation gets after each of two interrupts before its kernel is killed."""
MAX_SEQUENCE = (1 << 64) - 1
"""Largest sequence of an event that a message carries."""
MAX_SECONDS = 1e9
"""Longest timeout and grace: 31 years."""


class CallContext(NamedTuple):  # a frozen dataclass takes a microsecond more for each call
    """Who calls and how: the operation (16 bytes), the session (8 bytes, or empty for none) and options.

    `timeout` (None for ever) and `grace` are in seconds; see CallOptions in frame.proto. `known` says that the
    request is empty, since the engine knows the operation; `is_new` that its caller did not name it, so that it
    cannot have been called before. `epoch` is that of the registration that alone is meant, 0 for any.
    `is_task` says that the controller chose the engine: see Call.task in frame.proto. `function` is the one
    that the request of an Apply lacks, since the call names it by its digest. `label` is that of a task.
    """

    operation_id: bytes
    session_id: bytes = b""
    keep_queue: bool = False
    inline_limit: int = DEFAULT_INLINE_LIMIT
    timeout: float | None = None
    grace: float = DEFAULT_GRACE
    interrupt_only: bool = False
    any_incarnation: bool = False
    known: bool = False
    is_new: bool = False
    epoch: int = 0
    is_task: bool = False
    function: Function | None = None
    label: str = ""


@dataclass(slots=True, unsafe_hash=True)  # nobody changes one; a frozen one takes a microsecond more
class CallReply:
    """A delivered answer: the contract's `Outcome`, and the serialized response."""

    outcome: int
    response: bytes
    run_time: float = field(default=0.0, compare=False)
    """Seconds for which a kernel was at work on it; 0 if none was, or nobody knows."""


class EngineBase(Protocol):
    """An engine that can be called."""

    @property
    def engine_id(self) -> int:
        """Its id; -1 while it is not registered."""

    async def call(self, method: int, request: bytes, context: CallContext) -> CallReply:
        """Call a unary `Method` with a serialized request; DeliveryError if it could not be delivered."""


def context_options(context: CallContext) -> CallOptions | None:
    """Return the options of `context` as a frame carries them, None if all are defaults."""
    options = CallOptions(
        keep_queue=context.keep_queue,
        interrupt_only=context.interrupt_only,
        any_incarnation=context.any_incarnation,
    )
    if context.inline_limit != DEFAULT_INLINE_LIMIT:
        options.inline_limit = context.inline_limit
    if context.timeout is not None:
        options.timeout.FromNanoseconds(round(context.timeout * 1e9))
    if context.grace != DEFAULT_GRACE:
        options.grace.FromNanoseconds(round(context.grace * 1e9))
    return options if options.ByteSize() else None


def read_context(
    operation_id: bytes,
    session_id: bytes,
    options: CallOptions,
    *,
    known: bool,
    is_task: bool = False,
    function: Function | None = None,
    label: str = "",
) -> CallContext:
    """Return the context of a call frame that has options; BAD_REQUEST if one of them makes no sense.

    A task belongs to no session, and needs no namespace of one: whatever it says, it may run on a new kernel.
    """
    timeout = options.timeout.ToNanoseconds() / 1e9 if options.HasField("timeout") else None
    grace = options.grace.ToNanoseconds() / 1e9 if options.HasField("grace") else DEFAULT_GRACE
    for name, seconds in (("timeout", timeout), ("grace", grace)):
        if seconds is not None and not 0 <= seconds <= MAX_SECONDS:
            raise DeliveryError(
                "BAD_REQUEST", field=name, cause=f"{seconds:g} s is not within 0 and {MAX_SECONDS:g}"
            )
    return CallContext(
        operation_id,
        b"" if is_task else session_id,
        keep_queue=options.keep_queue,
        inline_limit=min(options.inline_limit or DEFAULT_INLINE_LIMIT, MAX_INLINE_LIMIT),
        timeout=timeout,
        grace=grace,
        interrupt_only=options.interrupt_only,
        any_incarnation=options.any_incarnation or is_task,
        known=known,
        is_task=is_task,
        function=function,
        label=label,
    )
