"""Source that is read here to run on engines: files, and the imports of a `with` block."""

from __future__ import annotations

import ast
import importlib.util
import linecache
import tokenize
from types import FunctionType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import os
    from types import FrameType, TracebackType

    from enginery.view import EngineView
    from enginery.views import EnginesView


def read(path: str | os.PathLike[str]) -> str:
    """Return the source in a file of this machine; OSError if it is not there, SyntaxError if it does not
    compile."""
    with tokenize.open(path) as file:  # in the encoding that it declares
        source = file.read()
    compile(source, path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return source


class SyncImports:
    """A `with` block whose import statements are carried out on engines too, once they worked here."""

    def __init__(self, view: EngineView | EnginesView, frame: FrameType) -> None:
        """Take the frame that holds the `with` statement, and which is at it; OSError if it has no source."""
        self._view = view
        self._imports = _imports_below(frame)

    def __enter__(self) -> Self:
        """Let the block run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Import on the engines what the block imported; nothing if it failed."""
        if error is None and self._imports:
            from enginery import _own_modules  # few programs need it so early

            source = "\n".join(self._imports)
            riding = _own_modules.imported_within(FunctionType(compile(source, "<imports>", "exec"), {}))
            if riding:  # the user's own modules, which are there when they have arrived
                self._view.apply(len, riding, block=True)
            self._view.execute(source, block=True)


def _imports_below(frame: FrameType) -> list[str]:
    """Return the import statements of the `with` block that begins where `frame` is."""
    filename, line = frame.f_code.co_filename, frame.f_lineno
    try:
        tree = ast.parse("".join(linecache.getlines(filename, frame.f_globals)))
    except SyntaxError:  # it is not what runs
        tree = ast.Module([], [])
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and node.lineno <= line <= node.body[0].lineno
    ]
    if not blocks:
        raise OSError(
            f"the source of this `with` block cannot be had ({filename}, line {line}): use "
            'view.execute("import ...") instead'
        )
    innermost = max(blocks, key=lambda node: node.lineno)
    package = frame.f_globals.get("__package__") or ""
    return [
        _absolute(node, package)
        for node in ast.walk(innermost)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def _absolute(statement: ast.Import | ast.ImportFrom, package: str) -> str:
    """Return an import statement as it reads where there is no package."""
    if isinstance(statement, ast.ImportFrom) and statement.level:
        module = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
        statement = ast.ImportFrom(module, statement.names, 0)
    return ast.unparse(statement)
