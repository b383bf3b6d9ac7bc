"""RemoteError messages to exceptions."""

from __future__ import annotations

import contextlib
from typing import Literal

from enginery import _codec, _own_lines, _values
from enginery.errors import RaisedError, RemoteError, RemoteFrame, UnpickleableException
from enginery.v1 import error_pb2, value_pb2

Errors = Literal["raise", "wrap"]
"""How errors of user code are raised: as the original type from a RemoteError, or always as RemoteError."""

_PREFIX = "ERROR_CATEGORY_"


def to_exception(message: error_pb2.RemoteError, errors: Errors = "raise") -> Exception:
    """Return the exception to raise for what user code raised on an engine.

    With "raise" it is the original one, its cause a RemoteError with the remote traceback;
    UnpickleableException in its place if it did not survive pickling. What is no `Exception`, such as
    SystemExit, is a RemoteError, so that it does not end the caller. With "wrap" it is always a RemoteError and
    nothing is unpickled.
    """
    remote = to_remote_error(message)
    if errors == "wrap" or not _is_exception(remote):
        return remote
    original = _original(message) if message.HasField("pickled") else None
    if original is None:
        first = remote.errors[0]
        original = UnpickleableException(
            f"{first.module}.{first.type_name}: {first.message}",
            reason="UNPICKLEABLE",
            engine_id=remote.engine_id,
            operation_id=remote.operation_id,
        )
    with contextlib.suppress(Exception):  # its class may refuse notes; the RemoteError has them
        if not getattr(original, "__notes__", None):
            for note in remote.notes:
                original.add_note(note)
    BaseException.__dict__["__cause__"].__set__(original, remote)  # whatever its class makes of that name
    return original


def _is_exception(remote: RemoteError) -> bool:
    return "builtins.Exception" in remote.errors[0].hierarchy


def _original(message: error_pb2.RemoteError) -> Exception | None:
    try:
        original = _codec.decode(_values.from_value(value_pb2.Value(pickle=message.pickled)))
    except Exception:
        # Unpickling runs code of any kind, here without the engine's modules: the text arrives all the same.
        return None
    return original if isinstance(original, Exception) else None


def to_remote_error(message: error_pb2.RemoteError) -> RemoteError:
    """Return the RemoteError that says what `message` says. Nothing is unpickled."""
    raised = [_raised(error) for error in message.errors]
    if not raised:
        raised = [
            RaisedError("builtins", "Exception", ("builtins.Exception",), "the engine did not say what", "")
        ]
    return RemoteError(
        raised,
        _own_lines.fill_in(message.traceback),
        engine_id=message.engine_id,
        method=message.method,
        arguments=message.arguments,
        operation_id=message.operation_id,
        category=_category(message.category),
    )


def _category(number: int) -> str:
    if number in error_pb2.ErrorCategory.values() and number:
        return error_pb2.ErrorCategory.Name(error_pb2.ErrorCategory.ValueType(number)).removeprefix(_PREFIX)
    return "USER"


def _raised(error: error_pb2.RaisedError) -> RaisedError:
    return RaisedError(
        module=error.module,
        type_name=error.type_name,
        hierarchy=tuple(error.hierarchy),
        message=error.message,
        representation=error.representation,
        notes=tuple(error.notes),
        frames=tuple(_frame(frame) for frame in error.frames),
        frames_omitted=error.frames_omitted,
        cause_index=error.cause_index if error.HasField("cause_index") else None,
        context_index=error.context_index if error.HasField("context_index") else None,
        suppress_context=error.suppress_context,
        member_indexes=tuple(error.member_indexes),
    )


def _frame(frame: error_pb2.StackFrame) -> RemoteFrame:
    return RemoteFrame(
        file=frame.file,
        line=frame.line,
        function=frame.function,
        source_line=frame.source_line or _own_lines.line_of(frame.file, frame.line),
        end_line=frame.end_line,
        column=frame.column if frame.HasField("column") else None,
        end_column=frame.end_column if frame.HasField("end_column") else None,
    )
