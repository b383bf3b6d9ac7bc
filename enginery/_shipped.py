"""Modules that clients sent to this engine as source: kept in memory, imported as any other.

What clients pickle names `module` and `member` here, so this is imported where the first of them arrives.
Nothing here imports gRPC or protobuf.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import json
import linecache
import os
import sys
import zlib
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import decode_source
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from importlib.resources.abc import TraversableResources
    from types import ModuleType

generation = 0
"""Counts how often modules were put in place: what was loaded before may mean something else."""


@dataclass(frozen=True, slots=True)
class Source:
    """A module or package: its name, the folder that it lies in, and its files by path within that folder."""

    name: str
    folder: str
    files: Mapping[str, bytes]


def pack(sources: Iterable[Source]) -> bytes:
    """Return sources as bytes that every version of Python reads."""
    plain = [
        (source.name, source.folder, {path: data.decode("latin-1") for path, data in source.files.items()})
        for source in sources
    ]
    return zlib.compress(json.dumps(plain, ensure_ascii=False).encode())


def unpack(data: bytes) -> list[Source]:
    """Return what `pack` was given."""
    plain = json.loads(zlib.decompress(data))
    return [
        Source(name, folder, {path: text.encode("latin-1") for path, text in files.items()})
        for name, folder, files in plain
    ]


# ---- what pickles name


def module(name: str, digest: bytes, bundle: bytes) -> ModuleType:
    """Return the module `name`: the engine's own if it can import one, else that of `bundle`."""
    _consider(name.partition(".")[0], digest, bundle)
    return importlib.import_module(name)


def member(name: str, qualified: str, digest: bytes, bundle: bytes) -> object:
    """Return a function or class of the module `name`."""
    found: object = module(name, digest, bundle)
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


def offer(name: str, digest: bytes, bundle: bytes) -> None:
    """Have the module `name` there for who imports it, if the engine has none."""
    _consider(name, digest, bundle)


def upload(data: bytes) -> None:
    """Put a module in the place of whatever the engine has under its name, and import it.

    `data` holds what it imports as well, which is taken if the engine has not got it. What the import raises is
    raised, and everything is as it was before.
    """
    uploaded, *imported = unpack(data)
    new = [source for source in imported if _is_wanted(source)]
    if _finder.sources.get(uploaded.name) != uploaded:
        new.append(uploaded)
    _install(new, uploaded.name)
    _uploaded.add(uploaded.name)


# ---- how they get there

_considered: dict[str, bytes] = {}  # by module: the bundle that was looked at last
_uploaded: set[str] = set()  # sent on purpose: what rides along with pickles does not replace them


def _consider(top: str, digest: bytes, bundle: bytes) -> None:
    """Install those modules of a bundle that the engine has not, or that an older bundle brought."""
    if _considered.get(top) == digest:
        return
    _install([source for source in unpack(bundle) if _is_wanted(source)])
    _considered[top] = digest


def _is_wanted(source: Source) -> bool:
    known = _finder.sources.get(source.name)
    if known is not None:
        return source.name not in _uploaded and known != source
    return source.name not in sys.modules and importlib.util.find_spec(source.name) is None


def _install(sources: Sequence[Source], wanted: str | None = None) -> None:
    """Put sources in place; import anew what of them was loaded, and what is `wanted`.

    Everything is as before if that raises.
    """
    global generation
    if not sources and wanted is None:
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    names = {source.name for source in sources}
    replaced = _take_out(names)
    before = dict(_finder.sources)
    _finder.sources.update((source.name, source) for source in sources)
    generation += bool(sources)
    try:
        for name in [*([wanted] if wanted else []), *replaced]:
            if importlib.util.find_spec(name) is not None:  # a part of the package may be there no longer
                importlib.import_module(name)
    except BaseException:
        _take_out(names)
        sys.modules.update(replaced)
        _finder.sources = before
        raise
    _bind_anew(replaced)


def _take_out(tops: set[str]) -> dict[str, ModuleType]:
    """Forget modules and what is below them; return them by name."""
    names = [name for name in sys.modules if name.partition(".")[0] in tops]
    return {name: sys.modules.pop(name) for name in names}


def _bind_anew(replaced: Mapping[str, ModuleType]) -> None:
    """Let names of the namespace that meant a module, or a function or class of one, mean the new one."""
    variables = vars(sys.modules["__main__"])
    for name, value in list(variables.items()):
        if type(value) is type(sys):
            old, parts = value.__name__, []
        elif isinstance(value, type) or type(value) is type(_bind_anew):
            old, parts = value.__module__, value.__qualname__.split(".")
        else:
            continue
        if old in replaced and old in sys.modules and _find(replaced[old], parts) is value:
            new = _find(sys.modules[old], parts)
            if new is not None:
                variables[name] = new


def _find(found: object, parts: Sequence[str]) -> object:
    for part in parts:
        found = getattr(found, part, None)
    return found


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules in the sources there are."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a module; None if it is none of these."""
        source = self.sources.get(fullname.partition(".")[0])
        if source is None:
            return None
        place = fullname.replace(".", "/")
        for file, is_package in ((f"{place}/__init__.py", True), (f"{place}.py", False)):
            if file in source.files:
                loader = _Loader(source, file)
                origin = f"{source.folder}/{file}"
                spec = ModuleSpec(fullname, loader, origin=origin, is_package=is_package)
                spec.has_location = True
                break
        else:
            if not any(file.startswith(f"{place}/") for file in source.files):
                return None
            spec = ModuleSpec(fullname, None, is_package=True)  # a folder without an __init__.py
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(f"{source.folder}/{place}")
        return spec


_finder = _Finder()


class _Loader(importlib.abc.SourceLoader):
    """Loads one module. Its `__file__` is that of the client, so that tracebacks name what the user edits."""

    def __init__(self, source: Source, file: str) -> None:
        self._source = source
        self._file = file

    def get_filename(self, fullname: str) -> str:
        """Return the file that the module was read from, where the client is."""
        return f"{self._source.folder}/{self._file}"

    def get_data(self, path: str | bytes) -> bytes:
        """Return a file of the module, data of a package included; FileNotFoundError if it was not sent."""
        file = os.fsdecode(path).removeprefix(f"{self._source.folder}/")
        try:
            return self._source.files[file]
        except KeyError:
            raise FileNotFoundError(f"{file} was not sent with {self._source.name}") from None

    def exec_module(self, module: ModuleType) -> None:
        """Run it, and let tracebacks show its lines."""
        text = decode_source(self._source.files[self._file])
        file = self.get_filename(module.__name__)
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        super().exec_module(module)

    def get_resource_reader(self, fullname: str) -> TraversableResources:
        """Return what `importlib.resources` reads data of the package by."""
        from enginery._shipped_data import Data  # with zip files, which few modules need

        return Data(self._source.files, self._file.rpartition("/")[0])
