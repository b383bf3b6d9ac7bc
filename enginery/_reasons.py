"""The error table: every reason for which a call is not delivered, in both directions.

A reason travels as `google.rpc.ErrorInfo.reason` of domain `enginery`. The table says which gRPC status it has,
which exception a Python client raises, what the text is, and what the caller should do. Nothing here calls grpc.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from enginery import errors

DOMAIN = "enginery"


class Code(enum.IntEnum):
    """The canonical status codes that Enginery uses, with gRPC's numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Retry(enum.Enum):
    """What a caller should do about it."""

    SAME_CALL = "call again, the same operation id"
    LATER = "call again after the hint"
    REBUILD = "rebuild what the call needs, then call again"
    NEVER = "correct the call or the set-up"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table. `text` is a template over the error's metadata."""

    code: Code
    exception: type[errors.EngineryError]
    text: str
    retry: Retry


TABLE: dict[str, Entry] = {
    # Who calls
    "MISSING_TOKEN": Entry(Code.UNAUTHENTICATED, errors.AuthenticationError, "no token: send metadata `authorization: Bearer TOKEN` from a connection file", Retry.NEVER),
    "WRONG_TOKEN": Entry(Code.UNAUTHENTICATED, errors.AuthenticationError, "the token is not this cluster's: use its current connection file", Retry.NEVER),
    "WRONG_ROLE": Entry(Code.PERMISSION_DENIED, errors.PermissionDenied, "the role {role} may not call {method}", Retry.NEVER),
    # Which engine
    "INVALID_ENGINE_ID": Entry(Code.NOT_FOUND, errors.InvalidEngineID, "no engine {engine_id}; there are: {engine_ids}", Retry.NEVER),
    "MISSING_ENGINE_ID": Entry(Code.INVALID_ARGUMENT, errors.InvalidEngineID, "name an engine by metadata `enginery-engine-id`; there are: {engine_ids}", Retry.NEVER),
    "NO_ENGINES_REGISTERED": Entry(Code.FAILED_PRECONDITION, errors.NoEnginesRegistered, "no engine is registered: start one with `enginery engine`", Retry.REBUILD),
    "ENGINE_REGISTERED": Entry(Code.FAILED_PRECONDITION, errors.EngineRegistered, "engine {engine_id} is registered: its id is the controller's alone", Retry.NEVER),
    "ENGINE_AWAY": Entry(Code.UNAVAILABLE, errors.EngineAway, "engine {engine_id} is not connected", Retry.SAME_CALL),
    "ENGINE_LOST": Entry(Code.ABORTED, errors.EngineLost, "engine {engine_id} was lost while the call waited ({cause}); it may have run", Retry.REBUILD),
    "ENGINE_STOPPED": Entry(Code.ABORTED, errors.EngineStopped, "engine {engine_id} was stopped ({cause})", Retry.REBUILD),
    "KERNEL_DIED": Entry(Code.ABORTED, errors.KernelDied, "the kernel of engine {engine_id} died ({cause}) while it ran {method}, operation {operation_id}; its namespace is lost, {after}", Retry.REBUILD),
    "MEMORY_LIMIT_EXCEEDED": Entry(Code.ABORTED, errors.MemoryLimitExceeded, "the kernel of engine {engine_id} was killed at {size} bytes of resident memory, over its limit of {limit} (--memory-limit), while it ran {method}, operation {operation_id}; its namespace is lost, {after}", Retry.REBUILD),
    "KERNEL_NOT_STARTING": Entry(Code.FAILED_PRECONDITION, errors.EngineError, "the kernel of engine {engine_id} does not start ({cause}): see `enginery logs`", Retry.NEVER),
    # The operation
    "QUEUE_CLEARED": Entry(Code.ABORTED, errors.QueueCleared, "taken out of the queue of engine {engine_id} before it ran: {cause}", Retry.REBUILD),
    "QUEUE_FULL": Entry(Code.RESOURCE_EXHAUSTED, errors.QueueFull, "the queue of engine {engine_id} is full ({size}): wait for replies, or raise {option}", Retry.LATER),
    "OPERATION_CANCELLED": Entry(Code.CANCELLED, errors.OperationCancelled, "operation {operation_id} on engine {engine_id} was cancelled: {cause}", Retry.NEVER),
    "OPERATION_TIMED_OUT": Entry(Code.DEADLINE_EXCEEDED, errors.OperationTimedOut, "operation {operation_id} on engine {engine_id} ran for {timeout} s, its timeout, and was stopped: {cause}", Retry.NEVER),
    "OPERATION_EXISTS": Entry(Code.ALREADY_EXISTS, errors.ProtocolError, "operation {operation_id} is another call: use a new id", Retry.NEVER),
    "OPERATION_NOT_FOUND": Entry(Code.NOT_FOUND, errors.OperationNotFound, "no operation {operation_id}: no engine that is connected knows it, nor does the journal", Retry.NEVER),
    "JOURNAL_UNAVAILABLE": Entry(Code.UNAVAILABLE, errors.OperationError, "the journal cannot be read now ({cause}): call again", Retry.SAME_CALL),
    "OPERATION_RELEASED": Entry(Code.FAILED_PRECONDITION, errors.OperationError, "operation {operation_id} has run, and its answer was released: it is not run again", Retry.NEVER),
    # The task
    "DEPENDENCY_FAILED": Entry(Code.FAILED_PRECONDITION, errors.DependencyFailed, "task {operation_id} was not run, since operation {dependency}, after which it comes, {state}", Retry.REBUILD),
    "TASK_NOT_PLACED": Entry(Code.DEADLINE_EXCEEDED, errors.TaskNotPlaced, "task {operation_id} was not run: within {timeout} s there was no engine for it ({cause})", Retry.SAME_CALL),
    "TASK_REJECTED": Entry(Code.FAILED_PRECONDITION, errors.TaskNotPlaced, "task {operation_id} was not run: every engine that may run it has rejected it", Retry.NEVER),
    "TASK_LOST": Entry(Code.ABORTED, errors.TaskLost, "task {operation_id} was lost {attempts} times, so it is not run again; the last time on engine {engine_id}: {cause}", Retry.NEVER),
    # The value
    "VALUE_TOO_LARGE": Entry(Code.RESOURCE_EXHAUSTED, errors.ValueTooLarge, "{size} bytes are over the limit of {limit} bytes, set by {option}", Retry.NEVER),
    "REPLY_TOO_LARGE": Entry(Code.RESOURCE_EXHAUSTED, errors.ValueTooLarge, "the reply is {size} bytes, over the limit of {limit}: ask for less, or accept CODEC_PICKLE", Retry.NEVER),
    "BLOB_NOT_FOUND": Entry(Code.NOT_FOUND, errors.BlobNotFound, "no blob {blob_id} on engine {engine_id}: it was used, released, or expired", Retry.REBUILD),
    "BLOB_EXISTS": Entry(Code.ALREADY_EXISTS, errors.ProtocolError, "there is a blob {blob_id} already: use another id", Retry.NEVER),
    "UPLOAD_INCOMPLETE": Entry(Code.ABORTED, errors.ControllerLost, "{offset} of the {size} bytes of blob {blob_id} are there: upload it again from that offset", Retry.REBUILD),
    "CHECKSUM_MISMATCH": Entry(Code.DATA_LOSS, errors.DataLoss, "the chunk at {offset} of blob {blob_id} is damaged: send it again", Retry.REBUILD),
    "UNKNOWN_CODEC": Entry(Code.INVALID_ARGUMENT, errors.SerializationError, "codec {codec} is not known here; known are: {codecs}", Retry.NEVER),
    "BAD_VALUE": Entry(Code.INVALID_ARGUMENT, errors.SerializationError, "{field} is not a valid value: {cause}", Retry.NEVER),
    # The contract
    "BAD_REQUEST": Entry(Code.INVALID_ARGUMENT, errors.ProtocolError, "{field}: {cause}", Retry.NEVER),
    "MALFORMED_MESSAGE": Entry(Code.INVALID_ARGUMENT, errors.ProtocolError, "the bytes are not a {message}", Retry.NEVER),
    "UNKNOWN_METHOD": Entry(Code.UNIMPLEMENTED, errors.ProtocolError, "there is no method {method} here", Retry.NEVER),
    "PROTOCOL_ERROR": Entry(Code.INVALID_ARGUMENT, errors.ProtocolError, "{cause}", Retry.NEVER),
    "BAD_PAGE_TOKEN": Entry(Code.INVALID_ARGUMENT, errors.ProtocolError, "the page token is not one of ours: start again without", Retry.NEVER),
    "TRANSFER_NOT_FOUND": Entry(Code.NOT_FOUND, errors.ProtocolError, "no transfer of that id: its caller has gone", Retry.NEVER),
    "SLOW_READER": Entry(Code.RESOURCE_EXHAUSTED, errors.ControllerLost, "{size} bytes of replies were not read: open the stream again and read", Retry.REBUILD),
    # Registration
    "FENCED": Entry(Code.ABORTED, errors.EngineLost, "id {engine_id} has another holder now (epoch {epoch}): stop", Retry.NEVER),
    "SUPERSEDED": Entry(Code.ABORTED, errors.EngineLost, "a newer stream of the same host or session took over", Retry.NEVER),
    "WRONG_CLUSTER": Entry(Code.FAILED_PRECONDITION, errors.ConnectionFileError, "that is cluster {cluster_id}, not the one of the connection file", Retry.NEVER),
    # The process
    "SHUTTING_DOWN": Entry(Code.UNAVAILABLE, errors.ControllerLost, "the {process} is shutting down", Retry.LATER),
    "NOT_SENT": Entry(Code.UNAVAILABLE, errors.ControllerLost, "the call was not sent, and so has not run: {cause}", Retry.SAME_CALL),
    "CONTROLLER_LOST": Entry(Code.UNAVAILABLE, errors.ControllerLost, "the connection to the controller broke ({cause}); the call may have run", Retry.SAME_CALL),
    "INTERNAL": Entry(Code.INTERNAL, errors.EngineryError, "a defect in Enginery ({cause}): see the log of the {process}, and report it", Retry.NEVER),
}  # fmt: skip


class _Default(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"({key} unknown)"


def text(reason: str, metadata: dict[str, str]) -> str:
    """Return the public text of `reason`, filled from `metadata`; what is missing is named."""
    return TABLE[reason].text.format_map(_Default(metadata))


class DeliveryError(Exception):
    """A call was not delivered. Carried inside Enginery; the edges turn it into a status or a public exception."""

    def __init__(self, reason: str, **metadata: object) -> None:
        """Take a reason of the table and what its text speaks of."""
        self.reason = reason
        self.metadata = {key: str(value)[:500] for key, value in metadata.items()}
        super().__init__(f"{reason}: {self.text}")

    def forget_frames(self) -> None:
        """Let go of where it was raised and from what: frames hold whatever was in them, while it is kept."""
        self.__traceback__ = self.__cause__ = self.__context__ = None

    def again(self) -> DeliveryError:
        """Return the same error, to be raised: what is raised holds the frames of who hears of it."""
        return DeliveryError(self.reason, **self.metadata)

    @property
    def code(self) -> Code:
        """Its status code."""
        return TABLE[self.reason].code

    @property
    def text(self) -> str:
        """Its public text."""
        return text(self.reason, self.metadata)


def public(error: DeliveryError) -> errors.EngineryError:
    """Return the exception that a Python client raises for `error`."""
    engine = error.metadata.get("engine_id", "")
    return TABLE[error.reason].exception(
        error.text,
        reason=error.reason,
        engine_id=int(engine) if engine.lstrip("-").isdigit() else None,
        operation_id=error.metadata.get("operation_id", ""),
        metadata=error.metadata,
    )
