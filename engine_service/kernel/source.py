"""Source as people type it: compiled, split before the last expression, and kept for tracebacks."""

from __future__ import annotations
import __future__ as future

import ast
import inspect
import linecache
import types
import weakref
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from engine_service.kernel.awaiting import Awaiting

_FUTURE_FLAGS = 0
for _name in future.all_feature_names:
    _FUTURE_FLAGS |= getattr(future, _name).compiler_flag


class Interpreter:
    """Runs blocks of source; `from __future__ import` lasts from one to the next."""

    def __init__(self, awaiting: Awaiting) -> None:
        """Begin without flags."""
        self._awaiting = awaiting
        self._flags = 0

    def reset(self) -> None:
        """Forget what was imported from `__future__`."""
        self._flags = 0

    def run(self, source: str, filename: str, namespace: dict[str, object]) -> object:
        """Run `source`, and return the value of its last expression; None if it has none, or ends in `;`."""
        flags = self._flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = compile(source, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
        lines = _split_lines(source)
        last = tree.body[-1] if tree.body else None
        expression: ast.Expression | None = None
        if isinstance(last, ast.Expr) and not _is_silenced(lines, last):
            expression = ast.Expression(last.value)
            tree.body.pop()
        codes = []
        if tree.body:
            codes.append(compile(tree, filename, "exec", flags, dont_inherit=True))
            self._flags |= codes[0].co_flags & _FUTURE_FLAGS
        if expression is not None:
            codes.append(compile(expression, filename, "eval", flags | self._flags, dont_inherit=True))
        _keep_source(source, lines, filename, codes)
        value: object = None
        if any(code.co_flags & inspect.CO_COROUTINE for code in codes):
            value = self._awaiting.run(_run_awaiting(codes, namespace))
        else:
            for code in codes:
                value = eval(code, namespace)  # noqa: S307  # running what is sent is what an engine is for
        return value if expression is not None else None


async def _run_awaiting(codes: list[types.CodeType], namespace: dict[str, object]) -> object:
    """Run a block that awaits somewhere: all of it sees a running loop."""
    value: object = None
    for code in codes:
        value = eval(code, namespace)  # noqa: S307  # see above
        if code.co_flags & inspect.CO_COROUTINE:
            value = await cast("Coroutine[object, object, object]", value)
    return value


def _split_lines(source: str) -> list[str]:
    """Return the lines as the parser counts them: `str.splitlines` knows more separators."""
    return source.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _is_silenced(lines: list[str], last: ast.stmt) -> bool:
    """Return whether the last statement is followed by a semicolon, comments apart."""
    assert last.end_lineno is not None
    assert last.end_col_offset is not None
    line = lines[last.end_lineno - 1].encode()[last.end_col_offset :].decode()
    return "\n".join([line, *lines[last.end_lineno :]]).lstrip(" \t\f\n\\").startswith(";")


def _keep_source(source: str, lines: list[str], filename: str, codes: list[types.CodeType]) -> None:
    """Let tracebacks find the lines for as long as a function of them may run."""
    kept_lines = [line + "\n" for line in lines]
    linecache.cache[filename] = (len(source), None, kept_lines, filename)
    alive: set[weakref.ref[types.CodeType]] = set()

    def forget(code: weakref.ref[types.CodeType]) -> None:
        alive.discard(code)
        kept = linecache.cache.get(filename)
        if not alive and kept is not None and len(kept) == 4 and kept[2] is kept_lines:
            del linecache.cache[filename]

    alive.update(weakref.ref(code, forget) for top in codes for code in _all_codes(top))


def _all_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_codes(constant)
