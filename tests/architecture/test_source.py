"""Rules about the source: who may pickle, who may import what, what it depends on, how long a file gets."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.architecture import source

if TYPE_CHECKING:
    from pathlib import Path

PICKLING = ("pickle", "_pickle", "cloudpickle", "marshal", "dill", "shelve", "enginery._codec")
MAY_PICKLE = ("enginery._codec", "enginery._pickler", "engine_service.kernel")
"""The codec, whose half that takes objects apart is a module of its own, and the kernel unpickle; nobody else
imports a pickler."""
WITHOUT_WIRE = (
    "enginery._codec",
    "enginery._pickler",
    "enginery._by_value",
    "enginery._encoded",
    "engine_service.kernel_messages",
    "engine_service.kernel_wire",
    "engine_service.kernel_frames",
    "engine_service.kernel",
)
LONGEST = 600  # lines; the house's measure is about 500
DISTRIBUTIONS = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
}
"""Where a distribution has another name than what is imported of it."""
OF_THE_USER = {"matplotlib"}
"""Imported only where the user's code has imported it before."""


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _hits(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return sorted(name for name in source.imports(path) if _within(name, forbidden))


def _ids(path: Path) -> str:
    return source.module_name(path)


@pytest.mark.parametrize("path", source.files(), ids=_ids)
def test_only_kernel_and_codec_import_a_pickler(path: Path) -> None:
    """Unpickling runs code, so exactly two places can do it; the client's side reaches it through the codec."""
    if not _within(source.module_name(path), MAY_PICKLE):
        assert not [name for name in _hits(path, PICKLING) if not _within(name, ("enginery._codec",))]


@pytest.mark.parametrize("path", source.files("controller_service", "engine_service"), ids=_ids)
def test_services_do_not_use_the_codec(path: Path) -> None:
    """Controller and host pass values on unread: neither imports the codec, nor the kernel that does."""
    if not _within(source.module_name(path), ("engine_service.kernel",)):
        assert not _hits(path, ("enginery._codec", "engine_service.kernel"))


@pytest.mark.parametrize("path", source.files(), ids=_ids)
def test_kernel_side_has_no_wire(path: Path) -> None:
    """User code may fork, use signals or bring its own gRPC: what runs in the kernel imports none.

    asyncio is the kernel's only once user code awaits, so it may be imported inside a function; the test of
    fresh processes sees that it is not there at start.
    """
    if _within(source.module_name(path), WITHOUT_WIRE):
        assert not _hits(path, ("grpc", "google"))


@pytest.mark.parametrize("path", source.files(), ids=_ids)
def test_a_file_holds_one_noun(path: Path) -> None:
    """A file past about 500 lines holds two nouns."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{lines} lines: find the second noun"


@pytest.mark.parametrize("path", source.files(), ids=_ids)
def test_every_module_says_what_it_is(path: Path) -> None:
    """Every module begins with a docstring that says what it is for."""
    assert ast.get_docstring(source.tree(path)), f"{path.name} has no docstring"


def _imported() -> set[str]:
    found = set()
    for path in source.files():
        for name in source.imports(path):
            top, _, rest = name.partition(".")
            if top in source.PACKAGES or top in sys.stdlib_module_names or name in {"__main__", "google"}:
                continue
            module = f"{top}.{rest.partition('.')[0]}" if top == "google" else top
            found.add(DISTRIBUTIONS.get(module, module).lower())
    return found


def _declared() -> set[str]:
    done = subprocess.run(
        [sys.executable, "tools/lowest_versions.py"],
        cwd=source.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.partition("==")[0] for line in done.stdout.splitlines()}


def test_every_import_is_declared_and_every_dependency_imported() -> None:
    """What is imported comes with the package or one of its extras, not with what those happen to bring."""
    assert _imported() - OF_THE_USER == _declared()


def test_dependencies_of_tests_do_not_narrow_those_of_the_package() -> None:
    """The tests bring nothing that the package depends on, so that it is had at the lowest and at the highest
    version that is allowed."""
    groups = tomllib.loads((source.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    named = {
        re.split(r"[<>=]", one)[0] for group in ("test", "dev") for one in groups[group] if isinstance(one, str)
    }
    assert not named & _declared()
