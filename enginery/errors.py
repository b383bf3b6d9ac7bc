"""Exceptions that Enginery raises.

    EngineryError
    ├── ConnectError (also ConnectionError)   no usable connection to a controller
    │   ├── ControllerNotRunning              nothing listens there
    │   ├── SeveralClusters                   more than one runs, and none was named
    │   ├── ConnectionFileError               the file is missing, malformed or readable by others
    │   ├── CertificateError                  wrong or expired certificate, or a clock that is off
    │   ├── AuthenticationError               wrong token
    │   └── ControllerLost                    the connection broke while calls waited
    ├── PermissionDenied                      the token's role may not do that
    ├── EngineError                           an engine could not take or finish a call
    │   ├── InvalidEngineID (also LookupError)
    │   ├── NoEnginesRegistered (also LookupError)
    │   ├── EngineRegistered                  only the controller may change its id
    │   ├── EngineAway                        its connection is lost, and the call did not wait for it
    │   ├── EngineLost                        it was unregistered while the call waited
    │   ├── EngineStopped                     it was told to stop
    │   └── KernelDied                        its kernel died; the namespace is gone, the engine is back
    │       └── MemoryLimitExceeded           it was killed at its memory limit
    ├── OperationError                        one operation ended without running to its end
    │   ├── QueueCleared                      an earlier failure, or clear_queue, took it out of the queue
    │   ├── QueueFull                         the engine's queue is at its limit
    │   ├── OperationCancelled                it was stopped by `cancel`
    │   ├── OperationTimedOut (also TimeoutError)  it was stopped at its timeout
    │   ├── OperationNotFound (also LookupError)   no engine that is connected knows it, nor does the journal
    │   └── TaskError                         a task could not be run
    │       ├── DependencyFailed              what it comes after did not succeed
    │       ├── TaskNotPlaced (also TimeoutError)  no engine was there for it in time
    │       └── TaskLost                      it was lost with its kernel or engine as often as it may be run
    ├── SerializationError                    a value does not fit any accepted codec
    │   ├── UnpickleableException             a remote exception that cannot be pickled
    │   ├── InvalidProperty (also ValueError) a property value that cannot be pickled
    │   ├── PythonVersionMismatch             pickled by another minor version of Python
    │   └── DataLoss                          a checksum is wrong
    ├── ValueTooLarge (also ValueError)       over a limit, which the text names
    ├── BlobNotFound (also LookupError)       a large value that was released or expired
    ├── ProtocolError                         one side sent what the contract forbids
    ├── FileTimeoutError (also TimeoutError)  a connection file did not appear in time
    ├── StateDirectoryInUse                   another controller holds it
    ├── RemoteError                           what user code raised on an engine
    └── CompositeError (also ExceptionGroup)  several engines failed

User code raises TaskReject in a task that is to run on another engine; it is no EngineryError.

This module imports nothing of Enginery.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence


class EngineryError(Exception):
    """Root of Enginery's own exceptions.

    `reason` is the machine-readable reason of the contract's error table, empty if there is none; `engine_id`,
    `operation_id` and `metadata` carry what is known of the engine, the operation and the rest.
    """

    reason: str = ""
    engine_id: int | None = None
    operation_id: str = ""

    def __init__(
        self,
        *args: object,
        reason: str = "",
        engine_id: int | None = None,
        operation_id: str = "",
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Take the text and, by keyword, what else is known."""
        super().__init__(*args)
        self.reason = reason or self.reason
        self.engine_id = engine_id
        self.operation_id = operation_id
        self.metadata = dict(metadata or {})


class ConnectError(EngineryError, ConnectionError):
    """There is no usable connection to a controller."""


class ControllerNotRunning(ConnectError):
    """Nothing listens where the connection file points, or there is no connection file."""


class SeveralClusters(ConnectError):
    """More than one cluster runs here and none was named."""


class ConnectionFileError(ConnectError):
    """A connection file is missing, malformed, of the wrong role, or readable by others."""


class CertificateError(ConnectError):
    """A certificate is wrong or expired, or a clock is off."""


class AuthenticationError(ConnectError):
    """The token is wrong."""


class ControllerLost(ConnectError):
    """The connection to the controller broke while calls waited; they may have run."""


class PermissionDenied(EngineryError):
    """The token's role may not do that."""


class EngineError(EngineryError):
    """An engine could not take or finish a call."""


class InvalidEngineID(EngineError, LookupError):
    """There is no engine of that id."""


class NoEnginesRegistered(EngineError, LookupError):
    """There is no engine at all."""


class EngineRegistered(EngineError):
    """A registered engine's id is the controller's alone."""


class EngineAway(EngineError):
    """The engine's connection is lost and the call did not wait for it."""


class EngineLost(EngineError):
    """The engine was unregistered while the call waited; the call may have run."""


class EngineStopped(EngineError):
    """The engine was told to stop."""


class KernelDied(EngineError):
    """The engine's kernel died while the call ran: its namespace is gone, the engine is back with a new one."""


class MemoryLimitExceeded(KernelDied):
    """The kernel was killed at its memory limit while it ran the call; the namespace is gone."""


class OperationError(EngineryError):
    """One operation ended without running to its end."""


class QueueCleared(OperationError):
    """An earlier failure, or `clear_queue`, took the operation out of the queue. It did not run."""


class QueueFull(OperationError):
    """The engine's queue is at its limit. The call did not run; try again later."""


class OperationCancelled(OperationError):
    """The operation was stopped by `cancel`. `namespace_lost` says whether its kernel had to be killed for it.

    If its code was interrupted, `__cause__` is the RemoteError that shows where.
    """

    @property
    def namespace_lost(self) -> bool:
        """Whether the namespace went with it: the engine has a new kernel."""
        return self.metadata.get("namespace") == "lost"


class OperationTimedOut(OperationError, TimeoutError):
    """The operation was stopped at the timeout of its call, as by `cancel`."""

    @property
    def namespace_lost(self) -> bool:
        """Whether the namespace went with it: the engine has a new kernel."""
        return self.metadata.get("namespace") == "lost"


class OperationNotFound(OperationError, LookupError):
    """No engine that is connected knows the operation, nor does the journal: it was released, or never was."""


class TaskError(OperationError):
    """A task could not be run, or not to its end."""


class DependencyFailed(TaskError):
    """An operation that the task comes after did not succeed. The task did not run."""


class TaskNotPlaced(TaskError, TimeoutError):
    """There was no engine for the task within its `placement_timeout`. It did not run."""


class TaskLost(TaskError):
    """The task was lost with its kernel or engine as often as it may be run. It may be what kills them."""


class TaskReject(Exception):
    """Raised by user code in a task that cannot run on this engine: it is then run on another.

    If no engine is left for it, the task fails with it.
    """


class SerializationError(EngineryError):
    """A value does not fit any accepted codec, or its bytes cannot be decoded."""


class UnpickleableException(SerializationError):
    """A remote exception that cannot be pickled; its text is the remote one's."""


class InvalidProperty(SerializationError, ValueError):
    """A property's value cannot be pickled."""


class PythonVersionMismatch(SerializationError):
    """The bytes were pickled by a Python whose minor version differs."""


class DataLoss(SerializationError):
    """A checksum is wrong: the bytes were damaged on the way."""


class ValueTooLarge(EngineryError, ValueError):
    """A value is over a limit, which the text names."""


class BlobNotFound(EngineryError, LookupError):
    """A large value was released, expired, or dropped to make room."""


class ProtocolError(EngineryError):
    """One side sent what the contract forbids."""


class FileTimeoutError(EngineryError, TimeoutError):
    """A connection file did not appear in time."""


class StateDirectoryInUse(EngineryError):
    """Another controller holds the state directory or its port."""


@dataclass(frozen=True, slots=True)
class RemoteFrame:
    """One line of a remote traceback. Lines count from 1; columns from 0, None if unknown."""

    file: str
    line: int
    function: str
    source_line: str = ""
    end_line: int = 0
    column: int | None = None
    end_column: int | None = None


@dataclass(frozen=True, slots=True)
class RaisedError:
    """One exception of a RemoteError; indexes point into `RemoteError.errors`."""

    module: str
    type_name: str
    hierarchy: tuple[str, ...]
    message: str
    representation: str
    notes: tuple[str, ...] = ()
    frames: tuple[RemoteFrame, ...] = ()
    frames_omitted: int = 0
    cause_index: int | None = None
    context_index: int | None = None
    suppress_context: bool = False
    member_indexes: tuple[int, ...] = ()


class RemoteError(EngineryError):
    """What user code raised on an engine, with everything it was raised from.

    `errors` is flat: the first was raised, the others are its causes, contexts and group members by index.
    `traceback` is the remote text; `method` and `arguments` are the call. By default the client raises
    the original exception *from* this one, so `except ZeroDivisionError` works and the remote traceback shows.
    """

    def __init__(
        self,
        errors: Sequence[RaisedError],
        traceback: str,
        *,
        engine_id: int = -1,
        method: str = "",
        arguments: str = "",
        operation_id: str = "",
        category: str = "USER",
    ) -> None:
        """Take what the engine reported. `errors` holds at least one."""
        first = errors[0]
        super().__init__(
            f"{first.type_name}: {first.message}" if first.message else first.type_name,
            reason=f"REMOTE_{category}",
            engine_id=engine_id,
            operation_id=operation_id,
        )
        self.errors = tuple(errors)
        self.traceback = traceback
        self.method = method
        self.arguments = arguments
        self.category = category

    @property
    def type_name(self) -> str:
        """Qualified name of the type that was raised, without its module."""
        return self.errors[0].type_name

    @property
    def message(self) -> str:
        """`str()` of the exception that was raised."""
        return self.errors[0].message

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the exception that was raised."""
        return self.errors[0].notes

    def __str__(self) -> str:
        """Return the summary and the remote traceback, as Python's own executors do."""
        where = f"[{self.engine_id}:{self.method}] " if self.method else ""
        text = self.traceback.rstrip("\n")
        return f'{where}{self.args[0]}\n"""\n{text}\n"""' if text else f"{where}{self.args[0]}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by what it was made from."""
        arguments = (self.errors, self.traceback, self.engine_id, self.method, self.arguments)
        return (_remake_remote_error, (*arguments, self.operation_id, self.category))


def _remake_remote_error(
    errors: Sequence[RaisedError],
    traceback: str,
    engine_id: int,
    method: str,
    arguments: str,
    operation_id: str,
    category: str,
) -> RemoteError:
    return RemoteError(
        errors,
        traceback,
        engine_id=engine_id,
        method=method,
        arguments=arguments,
        operation_id=operation_id,
        category=category,
    )


class CompositeError(ExceptionGroup[Exception], EngineryError):
    """Several engines failed. Its text lists `[engine:method]: Type: message` for each."""

    def __new__(cls, message: str, exceptions: Sequence[Exception]) -> Self:
        """Make the group; nested composites are flattened into one."""
        return super().__new__(cls, message, _flatten(exceptions))

    def __init__(self, message: str, exceptions: Sequence[Exception]) -> None:
        """Take the text and what each engine raised."""
        EngineryError.__init__(self, message, exceptions, reason="COMPOSITE")

    def derive(self, excs: Sequence[Exception]) -> CompositeError:  # type: ignore[override]
        """Make the part of this group that `except*` selected."""
        return CompositeError(self.message, excs)

    def __str__(self) -> str:
        """Return the text and one line for each engine."""
        return "\n".join([self.message, *(f"  {line(error)}" for error in self.exceptions)])

    def print_tracebacks(self, file: IO[str] | None = None) -> None:
        """Print the remote traceback of each, to stderr by default."""
        out = file or sys.stderr
        for error in self.exceptions:
            remote = remote_of(error)
            print(line(error), file=out)
            if remote is not None:
                print(remote.traceback.rstrip("\n"), file=out)

    def _render_traceback_(self) -> list[str]:
        """Show it in IPython."""
        from enginery._rendered import render  # all that a program without IPython does without

        return render(self)

    def raise_exception(self, index: int = 0) -> None:
        """Raise the exception at `index`; IndexError if there is none."""
        raise self.exceptions[index]


def _flatten(exceptions: Sequence[Exception]) -> list[Exception]:
    flat: list[Exception] = []
    for error in exceptions:
        flat.extend(_flatten(error.exceptions) if isinstance(error, CompositeError) else [error])
    return flat


def remote_of(error: BaseException) -> RemoteError | None:
    """Return the RemoteError behind an exception that a client raised, or None if it is not remote."""
    if isinstance(error, RemoteError):
        return error
    cause = BaseException.__dict__["__cause__"].__get__(error)  # whatever its class makes of that name
    return cause if isinstance(cause, RemoteError) else None


def line(error: BaseException) -> str:
    """Return the one-line form of an error: `[engine:method]: Type: message`."""
    remote = remote_of(error)
    if remote is not None and not isinstance(error, OperationError):
        return f"[{remote.engine_id}:{remote.method}]: {remote.args[0]}"
    engine = getattr(error, "engine_id", None)
    method = getattr(error, "metadata", {}).get("method", "")
    where = "" if engine is None else f"[{engine}:{method}]: " if method else f"[{engine}]: "
    return f"{where}{type(error).__name__}: {error}"
