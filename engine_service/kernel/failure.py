"""Exceptions as data: everything about what was raised, whatever their classes do."""

from __future__ import annotations

import itertools
import linecache
import re
import traceback
from typing import TYPE_CHECKING

from engine_service.kernel.display import cut, module_name, type_name
from engine_service.kernel_messages import Failure
from enginery import _codec
from enginery._codec import decode, encode
from enginery.errors import RaisedError, RemoteFrame, SerializationError, TaskReject, ValueTooLarge

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
_MAX_NAME = 1000  # characters of a name or a path
_MAX_BASES = 100
_MAX_TRACEBACK = 256 << 10  # bytes
_MAX_PICKLE = 64 << 10  # bytes
_KERNEL = __file__.rpartition("/")[0]
_ours: tuple[str, ...] = (
    _KERNEL,
    traceback.__file__.rpartition("/")[0] + "/asyncio",
    _codec.__file__,
)


def leave_out(*files: str) -> None:
    """Leave frames of these files, or of all whose names begin so, out of the top of tracebacks."""
    global _ours  # once, as the shell is made
    _ours += files


def describe(
    error: BaseException,
    *,
    interrupted: bool,
    render: Callable[[BaseException], str | None] = lambda _: None,
) -> Failure:
    """Return everything about `error`. Calls its methods: may take any time, what they raise ends here.

    `render` may return its traceback as text; None for Python's own.
    """
    errors = _collect(error)
    for one in errors:
        _set_trace(one, _strip(_trace(one)))
    described = tuple(_describe(one, errors) for one in errors)
    kind = type(error)  # not `isinstance`, which asks the object too
    if interrupted and issubclass(kind, KeyboardInterrupt):
        category = "INTERRUPTED"
    elif issubclass(kind, SerializationError):
        category = "SERIALIZATION"
    elif issubclass(kind, MemoryError | ValueTooLarge):
        category = "RESOURCE"
    elif issubclass(kind, TaskReject):
        category = "REJECTED"
    else:
        category = "USER"
    text = _outline(described) if _is_outsized(described) else _render(error, described, render)
    pickled = None if len(described[0].message) > _MAX_TEXT else _pickle(error)
    return Failure(described, _bounded(text), category, pickled)


def bare_failure(error: BaseException, problem: BaseException | None = None) -> Failure:
    """Return what stands for an interrupt, or for an `error` whose description raised `problem`."""
    raised = RaisedError(module_name(type(error)), type_name(type(error)), _hierarchy(type(error)), "", "")
    category = "INTERRUPTED" if issubclass(type(error), KeyboardInterrupt) else "USER"
    why = "it struck while an exception was described"
    if problem is not None:
        why = f"it cannot be described: that raised {type_name(type(problem))}"
    return Failure((raised,), f"{raised.type_name} ({why})\n", category)


# Classes may put anything in the place of what every exception has: these ask BaseException itself.
_cause = BaseException.__dict__["__cause__"].__get__
_context = BaseException.__dict__["__context__"].__get__
_suppress = BaseException.__dict__["__suppress_context__"].__get__
_trace = BaseException.__dict__["__traceback__"].__get__
_set_trace = BaseException.__dict__["__traceback__"].__set__
_members = BaseExceptionGroup.__dict__["exceptions"].__get__
_mro = type.__dict__["__mro__"].__get__


def _hierarchy(kind: type) -> tuple[str, ...]:
    bases = [base for base in _mro(kind) if base is not object]
    return tuple(f"{module_name(base)}.{type_name(base)}" for base in bases[:_MAX_BASES])


def _collect(first: BaseException) -> list[BaseException]:
    """Return `first` and whatever it is linked to, each once: contexts may form a cycle."""
    errors: list[BaseException] = []
    waiting = [first]
    while waiting and len(errors) < _MAX_ERRORS:
        error = waiting.pop(0)
        if any(error is known for known in errors):
            continue
        errors.append(error)
        waiting += [link for link in (_cause(error), _context(error)) if link is not None]
        if issubclass(type(error), BaseExceptionGroup):
            waiting += _members(error)[:_MAX_ERRORS]
    return errors


def _is_outsized(described: tuple[RaisedError, ...]) -> bool:
    """Return whether Python's own rendering, which knows no bounds, would take long."""
    return len(described) == _MAX_ERRORS or any(
        len(one.message) > _MAX_TEXT or len(one.notes) == _MAX_NOTES or any(map(_was_cut, one.notes))
        for one in described
    )


def _was_cut(note: str) -> bool:
    return len(note) > _MAX_REPRESENTATION


def _outline(described: tuple[RaisedError, ...]) -> str:
    """Return the traceback of the first exception, and a line for each of the others."""
    first = described[0]
    lines = [(frame.file, frame.line, frame.function, frame.source_line) for frame in first.frames]
    omitted = f"  [... {first.frames_omitted} frames left out ...]\n" if first.frames_omitted else ""
    linked = "".join(f"  {one.type_name}: {one.message[:_MAX_LINE]}\n" for one in described[1:])
    more = f"with these linked to it, and perhaps more:\n{linked}" if linked else ""
    notes = "".join(f"{note}\n" for note in first.notes)
    head = "Traceback (most recent call last):\n" + "".join(traceback.format_list(lines)) if lines else ""
    return f"{head}{omitted}{first.type_name}: {first.message}\n{notes}{more}"


def _strip(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the kernel's own frames, and at the top those of what it ran user code by."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_ours):
        trace = trace.tb_next
    step = trace
    while step is not None:
        following = step.tb_next
        while following is not None and following.tb_frame.f_code.co_filename.startswith(_KERNEL):
            following = following.tb_next
        if following is not step.tb_next:  # which goes over all that follow
            step.tb_next = following
        step = following
    return trace


def _describe(error: BaseException, errors: list[BaseException]) -> RaisedError:
    def index(link: BaseException | None) -> int | None:
        return next((i for i, one in enumerate(errors) if one is link), None)

    kind = type(error)
    frames, omitted = _frames(_trace(error))
    members = _members(error)[:_MAX_ERRORS] if issubclass(kind, BaseExceptionGroup) else ()
    return RaisedError(
        module=module_name(kind),
        type_name=type_name(kind),
        hierarchy=_hierarchy(kind),
        message=_safely(str, error, _MAX_TEXT),
        representation=_safely(repr, error, _MAX_REPRESENTATION),
        notes=_notes(error),
        frames=frames,
        frames_omitted=omitted,
        cause_index=index(_cause(error)),
        context_index=index(_context(error)),
        suppress_context=_suppress(error),
        member_indexes=tuple(i for member in members if (i := index(member)) is not None),
    )


def _safely(show: Callable[[object], str], obj: object, limit: int) -> str:
    try:
        return cut(str.__str__(show(obj)), limit)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() in __str__ is no reason to lose the rest
        return f"<{show.__name__}() raised {type_name(type(error))}>"


def _notes(error: BaseException) -> tuple[str, ...]:
    try:
        notes = getattr(error, "__notes__", None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a class may compute them
        return ()
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
        frames.append(
            RemoteFrame(
                cut(str.__str__(code.co_filename), _MAX_NAME),
                line or 0,
                cut(code.co_qualname, _MAX_NAME),
                _source_line(code.co_filename, line),
                positions[1] or 0,
                positions[2],
                positions[3],
            )
        )
    return tuple(frames), omitted


def _source_line(file: str, line: int | None) -> str:
    try:
        return linecache.getline(file, line or 0).strip()[:_MAX_LINE]
    except Exception:  # user code may compile with a name that is none, or have replaced linecache
        return ""


def _render(
    error: BaseException,
    described: tuple[RaisedError, ...],
    render: Callable[[BaseException], str | None],
) -> str:
    """Return the traceback as the shell or Python prints it; the outline if that fails."""
    try:
        return render(error) or "".join(traceback.TracebackException.from_exception(error).format())
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        return f"{_outline(described)}(outlined: Python's own traceback raised {type_name(type(problem))})\n"


def _bounded(text: str) -> str:
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > _MAX_TRACEBACK:
        half = _MAX_TRACEBACK // 2 - 100
        mark = f"\n[... {len(data) - 2 * half} bytes left out ...]\n".encode()
        data = data[:half] + mark + data[-half:]
    return data.decode("utf-8", "ignore")


def _pickle(error: BaseException) -> Encoded | None:
    """Return the exception itself if it survives a round trip and is small."""
    if not issubclass(type(error), Exception):
        return None
    try:
        if type(error) is SyntaxError and len(error.args) == 1 and error.filename is not None:
            # Where it is lies in `args` only if the parser found it, and only `args` are pickled.
            place = (error.filename, error.lineno, error.offset, error.text, error.end_lineno, error.end_offset)
            error.args = (error.msg, place)
        pickled = encode(error)
        if pickled.size > _MAX_PICKLE or len(pickled.parts) > 1:
            return None
        copy = decode(pickled)
        same = type(copy) is type(error) and _without_addresses(copy) == _without_addresses(error)
        return pickled if same else None
    except KeyboardInterrupt:
        raise
    except BaseException:  # its own methods ran
        return None


def _without_addresses(error: object) -> str:
    """Return its text but for the addresses of objects, which no copy shares."""
    return re.sub(r"\b0x[0-9a-f]+", "0x", str(error))
