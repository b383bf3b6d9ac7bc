"""Exceptions as data: everything about what was raised, whatever their classes do."""

from __future__ import annotations

import itertools
import linecache
import traceback
from typing import TYPE_CHECKING

from engine_service.kernel.display import cut
from engine_service.kernel_wire import Failure
from enginery import _codec
from enginery._codec import decode, encode
from enginery.errors import RaisedError, RemoteFrame, SerializationError, ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from enginery._encoded import Encoded

_MAX_ERRORS = 50
_MAX_FRAMES = 50  # at each end
_MAX_TEXT = 64 << 10  # characters of a message
_MAX_REPRESENTATION = 4 << 10
_MAX_NOTES = 20
_MAX_LINE = 1000
_MAX_TRACEBACK = 256 << 10  # bytes
_MAX_PICKLE = 64 << 10  # bytes
_OURS = (
    __file__.rpartition("/")[0],
    traceback.__file__.rpartition("/")[0] + "/asyncio",
    _codec.__file__,
)


def describe(error: BaseException, *, interrupted: bool) -> Failure:
    """Return everything about `error`. Calls its methods: may take any time, what they raise ends here."""
    errors = _collect(error)
    for one in errors:
        one.__traceback__ = _strip(one.__traceback__)
    described = tuple(_describe(one, errors) for one in errors)
    if interrupted and isinstance(error, KeyboardInterrupt):
        category = "INTERRUPTED"
    elif isinstance(error, SerializationError):
        category = "SERIALIZATION"
    elif isinstance(error, MemoryError | ValueTooLarge):
        category = "RESOURCE"
    else:
        category = "USER"
    return Failure(described, _render(error, described[0]), category, _pickle(error))


def bare_failure(error: BaseException) -> Failure:
    """Return what stands for an interrupt, or a defect, that struck while an exception was described."""
    kind = type(error)
    raised = RaisedError(
        kind.__module__, kind.__qualname__, (f"{kind.__module__}.{kind.__qualname__}",), "", ""
    )
    category = "INTERRUPTED" if isinstance(error, KeyboardInterrupt) else "USER"
    return Failure((raised,), f"{kind.__qualname__} while an exception was being described\n", category)


def _collect(first: BaseException) -> list[BaseException]:
    """Return `first` and whatever it is linked to, each once: contexts may form a cycle."""
    errors: list[BaseException] = []
    waiting = [first]
    while waiting and len(errors) < _MAX_ERRORS:
        error = waiting.pop(0)
        if any(error is known for known in errors):
            continue
        errors.append(error)
        waiting += [link for link in (error.__cause__, error.__context__) if link is not None]
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
    return errors


def _strip(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the kernel's own frames at the top."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace


def _describe(error: BaseException, errors: list[BaseException]) -> RaisedError:
    def index(link: BaseException | None) -> int | None:
        return next((i for i, one in enumerate(errors) if one is link), None)

    kind = type(error)
    frames, omitted = _frames(error.__traceback__)
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return RaisedError(
        module=str(kind.__module__),
        type_name=kind.__qualname__,
        hierarchy=tuple(
            f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__ if base is not object
        ),
        message=_safely(str, error, _MAX_TEXT),
        representation=_safely(repr, error, _MAX_REPRESENTATION),
        notes=_notes(error),
        frames=frames,
        frames_omitted=omitted,
        cause_index=index(error.__cause__),
        context_index=index(error.__context__),
        suppress_context=error.__suppress_context__,
        member_indexes=tuple(i for member in members if (i := index(member)) is not None),
    )


def _safely(show: Callable[[object], str], obj: object, limit: int) -> str:
    try:
        return cut(str.__str__(show(obj)), limit)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() in __str__ is no reason to lose the rest
        return f"<{show.__name__}() raised {type(error).__qualname__}>"


def _notes(error: BaseException) -> tuple[str, ...]:
    notes = getattr(error, "__notes__", None)
    if not isinstance(notes, list | tuple):
        return ()
    return tuple(_safely(str, note, _MAX_REPRESENTATION) for note in notes[:_MAX_NOTES])


def _frames(trace: TracebackType | None) -> tuple[tuple[RemoteFrame, ...], int]:
    all_frames = []
    while trace is not None:
        all_frames.append((trace.tb_frame.f_code, trace.tb_lasti, trace.tb_lineno))
        trace = trace.tb_next
    omitted = max(0, len(all_frames) - 2 * _MAX_FRAMES)
    if omitted:
        all_frames[_MAX_FRAMES:-_MAX_FRAMES] = []
    frames = []
    for code, instruction, line in all_frames:
        positions = next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)
        source = linecache.getline(code.co_filename, line).strip()[:_MAX_LINE]
        frames.append(
            RemoteFrame(
                code.co_filename,
                line or 0,
                code.co_qualname,
                source,
                positions[1] or 0,
                positions[2],
                positions[3],
            )
        )
    return tuple(frames), omitted


def _render(error: BaseException, described: RaisedError) -> str:
    """Return the traceback as Python prints it; the summary alone if that fails."""
    try:
        text = "".join(traceback.TracebackException.from_exception(error).format())
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        text = f"{described.type_name}: {described.message}\n(no traceback: {type(problem).__qualname__})\n"
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > _MAX_TRACEBACK:
        half = _MAX_TRACEBACK // 2 - 100
        mark = f"\n[... {len(data) - 2 * half} bytes left out ...]\n".encode()
        data = data[:half] + mark + data[-half:]
    return data.decode("utf-8", "ignore")


def _pickle(error: BaseException) -> Encoded | None:
    """Return the exception itself if it survives a round trip and is small."""
    if not isinstance(error, Exception):
        return None
    try:
        pickled = encode(error)
        if pickled.size > _MAX_PICKLE or len(pickled.parts) > 1:
            return None
        copy = decode(pickled)
        return pickled if type(copy) is type(error) and str(copy) == str(error) else None
    except KeyboardInterrupt:
        raise
    except BaseException:  # its own methods ran
        return None
