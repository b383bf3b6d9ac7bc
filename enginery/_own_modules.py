"""Sources of the user's own modules: which they are, what belongs to them, and how they go to engines.

A module is the user's own if it is neither Python's nor Enginery's nor installed: engines cannot be expected
to have it. Small ones ride along with whatever is pickled for an engine; `Client.upload_module` sends any.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

from enginery import _shipped
from enginery._shipped import Source
from enginery.errors import ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FunctionType

RIDING_FILES = 64
RIDING_BYTES = 256 << 10  # of source: beyond either a module does not go by itself
UPLOAD_BYTES = 64 << 20
LOOK_AGAIN = 0.02
"""Seconds for which files that were looked at count as unchanged: a look costs more than all else of a call."""
_OURS = frozenset(
    {"enginery", "engine_service", "controller_service", "cloudpickle", "__main__", "__mp_main__"}
)
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_COMPILED = (".so", ".pyd", ".dylib")
_IMPORT = dis.opmap["IMPORT_NAME"]

_Stamps = tuple[tuple[Path, int, int], ...]

_places: dict[tuple[str, str], Path | None] = {}  # by module and its file
_bundles: dict[str, tuple[_Stamps, bytes, bytes] | None] = {}  # by module; None: too large
_looked_at: dict[str, float] = {}  # by module
_imports: dict[Path, tuple[int, frozenset[str]]] = {}  # by file, with its time of change


def reduction(obj: object) -> tuple[object, ...] | None:
    """Return how a module, or a member of one, is pickled with its source; None if it is pickled as ever."""
    is_module = type(obj) is ModuleType
    name = getattr(obj, "__name__" if is_module else "__module__", None)
    if type(name) is not str:
        return None
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or place(top) is None:
        return None
    bundle = _bundle(top)
    if bundle is None:
        return None
    if is_module:
        return _shipped.module, (name, *bundle)
    return _shipped.member, (name, getattr(obj, "__qualname__"), *bundle)  # noqa: B009 - any object has it here


class Ridden:
    """Stands in a pickle for a module that is to be there when a function imports it."""

    def __init__(self, top: str, bundle: tuple[bytes, bytes]) -> None:
        """Take its name, and digest and bytes of its source."""
        self._top = top
        self._bundle = bundle

    def __reduce__(self) -> tuple[object, ...]:
        """Be nothing where it arrives, and leave the source there."""
        return _shipped.offer, (self._top, *self._bundle)


def imported_within(function: FunctionType) -> list[Ridden]:
    """Return the user's own modules that a function imports when it runs."""
    names = _imported_names(function.__code__)
    package = function.__globals__.get("__package__")
    if names and type(package) is str:
        names.add(package.partition(".")[0])  # it may be what a relative import means
    bundles = {top: _bundle(top) for top in sorted(names) if place(top) is not None}
    return [Ridden(top, bundle) for top, bundle in bundles.items() if bundle is not None]


def _imported_names(code: CodeType) -> set[str]:
    """Return the top-level names of modules that code imports, or a function within it."""
    found = set()
    if _IMPORT in code.co_code[::2]:
        for step in dis.get_instructions(code):
            if step.opcode == _IMPORT:
                found.add(step.argval.partition(".")[0])
    for constant in code.co_consts:
        if type(constant) is CodeType:
            found |= _imported_names(constant)
    return found


def place(top: str) -> Path | None:
    """Return the file or folder of one of the user's own top-level modules; None if it is none."""
    if not top or top in sys.stdlib_module_names or top in _OURS:
        return None
    module = sys.modules.get(top)
    if module is not None:
        file = getattr(module, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        file = None if spec is None else spec.origin
    if type(file) is not str or not file.endswith(".py"):
        return None
    if (top, file) not in _places:
        _places[top, file] = None if _is_installed(top, file) else _owned(top, Path(file).absolute())
    return _places[top, file]


def _owned(top: str, file: Path) -> Path | None:
    found = file.parent if file.name == "__init__.py" else file
    return found if found.stem == top and found.exists() else None


def _is_installed(top: str, file: str) -> bool:
    if not _INSTALLED.isdisjoint(Path(file).parts):
        return True
    try:
        importlib.metadata.distribution(top)  # in place, for its developers: engines have it too
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# ---- what rides along


def _bundle(top: str) -> tuple[bytes, bytes] | None:
    """Return digest and bytes of a module with the user's own modules that it imports, as its files now are."""
    known = _bundles.get(top, ())
    if known is None:
        return None
    if known and not _has_changed(top, known[0]):
        return known[1:]
    sources = _closure([top], {top})
    if sources is None:
        _bundles[top] = None
        return None
    files = [Path(source.folder, path) for source in sources for path in source.files]
    # A folder's time changes when a file is added to it.
    stamps = _stamps({*files, *(path.parent for path in files if path.name == "__init__.py")})
    data = _shipped.pack(sources)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    _bundles[top] = stamps, digest, data
    return digest, data


def _has_changed(top: str, stamps: _Stamps) -> bool:
    """Return whether files of a bundle are others now. They are looked at so often that no person is faster."""
    now = time.monotonic()
    if now - _looked_at.get(top, -1.0) < LOOK_AGAIN:
        return False
    if _stamps(path for path, _, _ in stamps) != stamps:
        return True
    _looked_at[top] = now
    return False


def _stamps(paths: Iterator[Path] | set[Path]) -> _Stamps:
    found = []
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, before every pickle
        except OSError:
            continue
        found.append((path, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _closure(waiting: list[str], seen: set[str]) -> list[Source] | None:
    """Return those modules that are the user's own, with what they import; None if that is too much.

    Those that were `seen` are not looked at.
    """
    sources: list[Source] = []
    room, files = RIDING_BYTES, RIDING_FILES
    while waiting:
        name = waiting.pop()
        where = place(name)
        if where is None:
            continue
        paths = list(_python_files(where, files + 1))
        files -= len(paths)
        room -= sum(path.stat().st_size for path in paths)
        if files < 0 or room < 0:
            return None
        sources.append(
            Source(name, str(where.parent), {_within(where, path): path.read_bytes() for path in paths})
        )
        found = _imported_by(paths) - seen
        seen |= found
        waiting += sorted(found)
    return sources


def _imported_by(paths: Iterable[Path]) -> set[str]:
    return {imported for path in paths for imported in _imported(path)}


def _python_files(where: Path, limit: int) -> Iterator[Path]:
    for path in _files(where):
        if path.suffix == ".py":
            yield path
            limit -= 1
            if limit == 0:
                return


def _files(where: Path) -> Iterator[Path]:
    """Go over the files of a module or package, sorted; what is hidden or was compiled is left out."""
    if where.is_file():
        yield where
        return
    for path in sorted(where.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.suffix not in (".pyc", ".pyo"):
            yield path


def _within(where: Path, path: Path) -> str:
    return path.relative_to(where.parent).as_posix()


def _imported(path: Path) -> frozenset[str]:
    """Return the top-level modules that a file imports."""
    changed = path.stat().st_mtime_ns
    known = _imports.get(path)
    if known is not None and known[0] == changed:
        return known[1]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # the engine will say so, if it imports it
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    _imports[path] = changed, frozenset(found)
    return frozenset(found)


# ---- what is uploaded


def read(module: str | os.PathLike[str] | ModuleType) -> list[Source]:
    """Return a module's source: of a file, of a package's folder with all that is in it, or of a module; then
    those of the user's own modules that it imports, unless that is too much.

    FileNotFoundError if there is none; ValueError if it is no module that can be sent, ValueTooLarge over
    64 MiB.
    """
    where = _file_of(module) if isinstance(module, ModuleType) else Path(module).absolute()
    if not where.exists():
        raise FileNotFoundError(f"{where}: no such file or folder; give a path, or the imported module")
    if where.is_dir() and not (where / "__init__.py").is_file():
        raise ValueError(f"{where} is no package: it has no __init__.py")
    if where.is_file() and where.suffix != ".py":
        raise ValueError(f"{where} is no Python source: engines get a .py file or a package's folder")
    if (where.parent / "__init__.py").is_file():
        raise ValueError(f"{where} is a part of a package: upload the package, {where.parent}")
    name = where.stem if where.is_file() else where.name
    _check_name(name, where)
    files, size = {}, 0
    for path in _files(where):
        if path.suffix in _COMPILED:
            raise ValueError(f"{path} is compiled for one system: install {name} where the engines are instead")
        size += path.stat().st_size
        if size > UPLOAD_BYTES:
            raise ValueTooLarge(f"{where} is over {UPLOAD_BYTES >> 20} MiB: install it where the engines are")
        files[_within(where, path)] = path.read_bytes()
    imported = _imported_by(path for path in _files(where) if path.suffix == ".py") - {name}
    return [Source(name, str(where.parent), files), *(_closure(sorted(imported), imported | {name}) or ())]


def _file_of(module: ModuleType) -> Path:
    top = module.__name__.partition(".")[0]
    file = getattr(sys.modules.get(top, module), "__file__", None)
    if not file:
        raise ValueError(f"{module!r} was not read from a file")
    path = Path(file).absolute()
    return path.parent if path.name == "__init__.py" else path


def _check_name(name: str, where: Path) -> None:
    if not name.isidentifier():
        raise ValueError(f"{where}: {name!r} is no name of a module")
    if name in sys.stdlib_module_names or name in _OURS:
        raise ValueError(f"{where}: {name!r} is the name of a module that every engine has: give it another")
