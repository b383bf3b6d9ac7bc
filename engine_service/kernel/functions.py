"""Functions that calls bring: what is sent by value, and is sent again, is not loaded again.

They are known by their pickles, or by digests of these: then the pickle came with an earlier call. A task's
function is kept with all that it has captured, as by a process pool: what one task changes of that, the next
task of the same function finds changed. A function that any other call brings is kept only if nothing of it can
change, so that each call finds it as it was sent.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from types import FunctionType
from typing import TYPE_CHECKING, NamedTuple

from enginery import _reference
from enginery._codec import captured_globals, decode, decode_bound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine_service.kernel.namespace import Namespace
    from enginery._encoded import Encoded

MAX_BYTES = 16 << 20
"""Bytes of pickles whose functions are kept."""
_MAX_PICKLE = 1 << 20  # of one
_Key = tuple[bool, str, bytes]  # whether of a task, version of Python, pickle or its digest
_BY_VALUE = b"_make_function"  # what pickles of functions name that are sent by value; others load in no time
_CONSTANT = frozenset({type(None), bool, int, float, complex, str, bytes, range, type(len), types.ModuleType})


class _Kept(NamedTuple):
    function: object
    captured: dict[str, object]
    parts: tuple[FunctionType, ...]
    """Functions that it consists of, which must not have got attributes."""


class Functions:
    """The functions that were used last."""

    def __init__(self, namespace: Namespace, max_bytes: int = MAX_BYTES) -> None:
        """Begin with none. `namespace` is that of the engine, in which functions of calls run."""
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._kept: OrderedDict[_Key, tuple[_Kept, int]] = (
            OrderedDict()
        )  # with bytes; the one used last at the end
        self._bytes = 0
        self._generation = 0
        self._pickles: dict[bytes, Encoded] = {}  # by digest; the host bounds them

    def clear(self) -> None:
        """Forget them all, but not what the host does not send again."""
        self._kept.clear()
        self._bytes = 0

    def take_in(self, digest: bytes, value: Encoded, *, forgets: bool) -> None:
        """Keep a pickle that later calls name by its digest; `forgets`: in the place of all others."""
        if forgets:
            self._pickles.clear()
        self._pickles[digest] = value

    def find(self, digest: bytes, *, is_task: bool) -> object:
        """Return, as `load`, the function whose pickle was taken in."""
        return self.load(self._pickles[digest], is_task=is_task, digest=digest)

    def load(self, value: Encoded, *, is_task: bool, digest: bytes = b"") -> object:
        """Return the function of a call. That of a task has the names that it captured, and no others.

        The function of any other call has those of the engine, which get what it captured if they lack it.
        """
        if not digest and value.size > _MAX_PICKLE:
            return self._load(value, is_task=is_task).function
        self._check_modules()
        key = (is_task, value.python_version, digest or bytes(value.parts[0]))
        found = self._kept.get(key)
        if found is not None:
            kept, _ = found
            if not any(part.__dict__ for part in kept.parts):
                self._kept.move_to_end(key)
                if kept.captured:
                    self._namespace.fill(kept.captured)
                return kept.function
            self._forget(key)
        resolved = _reference.resolved_count()
        kept = self._load(value, is_task=is_task)
        may_be_kept = len(value.parts) == 1 and _BY_VALUE in value.parts[0]
        if may_be_kept and resolved == _reference.resolved_count() and (is_task or kept.parts):
            self._keep(key, kept, value.size)
        return kept.function

    def _check_modules(self) -> None:
        """Forget functions that may use modules which were replaced."""
        shipped = sys.modules.get("enginery._shipped")  # not imported before a module is sent
        generation = 0 if shipped is None else shipped.generation
        if generation != self._generation:
            self.clear()
            self._generation = generation

    def _load(self, value: Encoded, *, is_task: bool) -> _Kept:
        if is_task:
            return _Kept(decode(value), {}, ())
        function, captured = decode_bound(value, self._namespace.variables)
        self._namespace.fill(captured)
        parts: list[FunctionType] = []
        is_constant = _is_constant(function, self._namespace.variables, parts)
        is_constant = is_constant and _are_constant(captured.values(), self._namespace.variables, parts)
        return _Kept(function, captured, tuple(parts) if is_constant else ())

    def _keep(self, key: _Key, kept: _Kept, size: int) -> None:
        self._bytes += size
        self._kept[key] = kept, size
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: _Key) -> None:
        _, size = self._kept.pop(key)
        self._bytes -= size


def _are_constant(values: Iterable[object], namespace: dict[str, object], parts: list[FunctionType]) -> bool:
    return all(_is_constant(value, namespace, parts) for value in values)


def _is_constant(value: object, namespace: dict[str, object], parts: list[FunctionType]) -> bool:
    """Return whether nothing of a value can change, but for attributes of functions, which `parts` gathers."""
    kind = type(value)
    if kind in _CONSTANT:
        return True
    if kind is tuple or kind is frozenset:
        return _are_constant(value, namespace, parts)  # type: ignore[arg-type]
    if kind is not FunctionType:
        return False
    function: FunctionType = value  # type: ignore[assignment]
    if any(function is part for part in parts) or _is_imported(function):
        return True
    parts.append(function)
    own = {} if function.__globals__ is namespace else captured_globals(function)
    held = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    used = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *own.values(), *held)
    return not function.__dict__ and _are_constant(used, namespace, parts)


def _is_imported(function: FunctionType) -> bool:
    """Return whether it is of a module of the engine's own, which is as it is whoever calls."""
    module = sys.modules.get(function.__module__)
    return module is not None and function.__module__ != "__main__" and function.__globals__ is vars(module)
