"""Modules of the user's own on engines that have no such files, over a real cluster."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import enginery
from enginery import _own_modules
from enginery.errors import KernelDied, SerializationError, ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

HELPERS = """
import functools
import threading
import {other}
LOCK = threading.Lock()  # no pickle holds one
calls = 0
class Point:
    def __init__(self, x):
        self.x = x
class Odd(Exception):
    pass
def count():
    global calls
    with LOCK:
        calls += 1
    return {other}.double(calls)
@functools.cache
def cached(x):
    return x + 1
def fail():
    raise Odd("three")
"""
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit takes effect at once, however fast the test is."""
    monkeypatch.setattr(_own_modules, "LOOK_AGAIN", 0.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[enginery.Cluster]:
    with enginery.Cluster(n=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: enginery.Cluster) -> Iterator[enginery.Client]:
    """A client of each test, which uploads nothing for the next one."""
    with enginery.connect(cluster.state_dir) as client:
        client.wait_for_engines(2, timeout=20)
        yield client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which this process imports, and no engine does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _make(folder: Path, source: str) -> ModuleType:
    """Write a module under a name that was not used before, and import it."""
    name = f"mine_{next(_numbers)}"
    (folder / f"{name}.py").write_text(source)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _edit(module: ModuleType, source: str) -> None:
    assert module.__file__ is not None
    with open(module.__file__, "w") as file:  # noqa: PTH123 - as an editor does
        file.write(source)
    importlib.reload(module)


def test_functions_of_a_module_run_where_there_is_no_such_file(client: enginery.Client, folder: Path) -> None:
    """The module is a real one there: it keeps its state; its classes and errors are those of the caller."""
    other = _make(folder, "def double(x):\n    import importlib\n    return 2 * x\n")
    mine: Any = _make(folder, HELPERS.format(other=other.__name__))
    view = client[0]
    assert [view.apply(mine.count), view.apply(mine.count)] == [2, 4]
    assert view.apply(mine.cached, 1) == 2
    assert view.apply(lambda x: (mine.calls, mine.Point(x).x), 5) == (2, 5)
    view["point"] = mine.Point(7)
    assert view.execute("point.x").value == 7
    assert type(view["point"]) is mine.Point
    with pytest.raises(mine.Odd, match="three") as caught:
        view.apply(mine.fail)
    assert f'{mine.__file__}", line' in str(caught.value.__cause__)
    assert 'raise Odd("three")' in str(caught.value.__cause__)
    assert client.submit(mine.cached, 4).result(10) == 5
    assert list(client.map(mine.cached, range(20))) == list(range(1, 21))


def _of_main(source: str, **variables: object) -> Any:
    """Return the function `f` of a script."""
    namespace = {"__name__": "__main__", **variables}
    exec(source, namespace)
    return namespace["f"]


def test_what_a_function_imports_when_it_runs_goes_along(client: enginery.Client, folder: Path) -> None:
    """And is imported only then; an edit of it takes effect; a part of a script's own package is found."""
    other = _make(folder, "value = 1\n").__name__
    broken = _make(folder, "value = 1\n")
    with open(str(broken.__file__), "w") as file:  # noqa: PTH123 - as an editor does
        file.write("1 / 0")
    f = _of_main(
        f"def f(x=0):\n    if x:\n        import {broken.__name__}\n"
        f"    def inner():\n        from {other} import value\n        return value\n    return inner()"
    )
    view = client[0]
    assert (view.apply(f), client.submit(f).result(10)) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        view.apply(f, 1)
    _edit(sys.modules[other], "value = 'two'\n")
    assert (view.apply(f), client.submit(f).result(10)) == ("two", "two")
    package = folder / f"package_{next(_numbers)}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("value = 3\n")
    importlib.invalidate_caches()
    relative = _of_main("def f():\n    from . import part\n    return part.value", __package__=package.name)
    assert client.submit(relative).result(10) == 3


def test_imports_of_a_block_take_modules_along(client: enginery.Client, folder: Path) -> None:
    """`sync_imports` works for modules of one's own."""
    name = _make(folder, "value = 5\n").__name__
    script = folder / "script.py"
    script.write_text(f"def f(view):\n    with view.sync_imports():\n        import {name} as short\n")
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(script.read_text(), str(script), "exec"), variables)
    variables["f"](client[:])
    assert [answer.value for answer in client[:].execute("short.value")] == [5, 5]


def test_files_are_not_looked_at_for_each_of_many_calls(
    client: enginery.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look costs more than a call; an edit takes effect with the first call after the time for one."""
    mine: Any = _make(folder, "def f():\n    return 'one'\n")
    assert client[0].apply(mine.f) == "one"
    monkeypatch.setattr(_own_modules, "LOOK_AGAIN", 1e9)
    client[0].apply(mine.f)
    _edit(mine, "def f():\n    return 'two'\n")
    assert client[0].apply(mine.f) == "one"
    monkeypatch.setattr(_own_modules, "LOOK_AGAIN", 0.0)
    assert client[0].apply(mine.f) == "two"


def test_an_edited_module_takes_effect(client: enginery.Client, folder: Path) -> None:
    """What rides along is what the file says now; so does a package's part."""
    mine: Any = _make(folder, "def f():\n    return 1\n")
    view = client[:]
    assert view.apply(mine.f) == [1, 1]
    _edit(mine, "def f():\n    return 'two'\n")
    assert view.apply(mine.f) == ["two", "two"]
    assert view.apply(lambda: mine.f()) == ["two", "two"]


def test_an_engine_that_has_the_module_uses_its_own(client: enginery.Client, folder: Path) -> None:
    """Only an upload takes the place of what an engine has."""
    mine: Any = _make(folder, "where = 'here'\ndef f():\n    return where\n")
    name = mine.__name__
    view = client[0]
    view.execute(f"import sys, types; sys.modules['{name}'] = types.ModuleType('{name}')")
    view.execute(f"exec('where = 1\\ndef f(): return where', vars(sys.modules['{name}'])); import {name}")
    assert view.apply(mine.f) == 1
    assert client.upload_module(mine) == name
    assert view.apply(mine.f) == "here"
    assert view.execute(f"{name}.f()").value == "here"


def test_an_uploaded_package(client: enginery.Client, folder: Path) -> None:
    """Its parts, its data and its relative imports are there; nothing but its name is needed."""
    package = folder / f"package_{next(_numbers)}"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import deep\nvalue = deep.value\n")
    (package / "inner" / "deep.py").write_text("from .. import near\nvalue = near.value + 1\n")
    (package / "near.py").write_text("value = 41\n")
    (package / "data.txt").write_text("data")
    (package / "__pycache__").mkdir()
    name = client.upload_module(package)
    assert name == package.name
    view = client[:]
    view.execute(f"import {name}, pkgutil, importlib.resources\nfrom {name} import value")
    assert view.execute(f"{name}.value, pkgutil.get_data('{name}', 'data.txt')")[1].value == (42, b"data")
    assert (
        view.execute(f"importlib.resources.files('{name}').joinpath('data.txt').read_text()")[0].value == "data"
    )
    view.execute(f"from {name}.near import value as before\ndef ask(): return {name}.value")
    (package / "near.py").write_text("value = 'forty-'\n")
    (package / "inner" / "deep.py").write_text("from .. import near\nvalue = near.value + 'one'\n")
    client.upload_module(package)
    assert view.apply("ask") == ["forty-one"] * 2


def test_names_in_the_namespace_mean_the_new_module(client: enginery.Client, folder: Path) -> None:
    """After another upload: names of the module, and of functions and classes that came from it."""
    mine = _make(folder, "def f():\n    return 1\nclass C:\n    pass\n")
    name = client.upload_module(str(mine.__file__))
    view = client[0]
    view.execute(f"import {name} as short\nfrom {name} import f, C as Other\ng = 'mine'")
    _edit(mine, "def f():\n    return 2\nclass C:\n    new = True\n")
    client.upload_module(mine)
    assert view.execute("short.f(), f(), Other.new, g").value == (2, 2, True, "mine")


def test_an_upload_that_fails_changes_nothing(client: enginery.Client, folder: Path) -> None:
    """What the import raises is raised here, and the engine still has what it had."""
    mine = _make(folder, "def f():\n    return 1\n")
    name = client.upload_module(mine)
    view = client[0]
    view.execute(f"import {name}")
    for wrong, kind in (("def f(:\n", SyntaxError), ("raise LookupError('no')", LookupError)):
        with open(str(mine.__file__), "w") as file:  # noqa: PTH123 - as an editor does
            file.write(wrong)
        with pytest.raises(enginery.CompositeError) as caught:
            client.upload_module(mine)
        assert {type(error) for error in caught.value.exceptions} == {kind}
    assert view.execute(f"{name}.f()").value == 1


def test_new_kernels_and_new_engines_get_it(
    client: enginery.Client, cluster: enginery.Cluster, folder: Path
) -> None:
    """Whatever comes while the client that uploaded is open."""
    name = client.upload_module(_make(folder, "value = 3\n"))
    with pytest.raises(KernelDied):
        client[0].execute("import os; os._exit(3)")
    _wait_for(lambda: client[0].execute(f"import {name}; {name}.value").value == 3)
    more = subprocess.Popen(
        [sys.executable, "-m", "engine_service", "--state-dir", str(cluster.state_dir)],
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    try:
        _wait_for(lambda: len(client) == 3)
        assert client[2].execute(f"import {name}; {name}.value").value == 3
    finally:
        more.terminate()
        more.wait(20)
    _wait_for(lambda: len(client) == 2)


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            if condition():
                return
        except (ImportError, enginery.EngineryError):  # not yet
            pass
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_goes_by_itself_is_bounded(
    client: enginery.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large module goes only where it is told to, and the error says how."""
    monkeypatch.setattr(_own_modules, "RIDING_BYTES", 100)
    mine: Any = _make(folder, f"def f():\n    return 1\n{'#' * 100}\n")
    with pytest.raises(SerializationError, match=rf"No module named '{mine.__name__}'.*upload_module"):
        client[0].apply(mine.f)
    client.upload_module(mine)
    assert client[0].apply(mine.f) == 1


def test_what_cannot_be_uploaded(
    client: enginery.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is refused before anything is sent, each for its own reason."""
    (folder / "text.txt").touch()
    (folder / "empty").mkdir()
    (folder / "json.py").touch()
    (folder / "with-dash.py").touch()
    package = folder / "fine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").touch()
    calls = client.statistics()["calls"]
    for place, reason in (
        ("none.py", "no such file"),
        ("text.txt", "no Python source"),
        ("empty", "no __init__"),
        ("json.py", "every engine has"),
        ("with-dash.py", "no name"),
        ("fine/part.py", "upload the package"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=reason):
            client.upload_module(folder / place)
    with pytest.raises(ValueError, match="not read from a file"):
        client.upload_module(sys)
    (package / "fast.so").touch()
    with pytest.raises(ValueError, match="compiled"):
        client.upload_module(package)
    (package / "fast.so").unlink()
    monkeypatch.setattr(_own_modules, "UPLOAD_BYTES", 10)
    (package / "data").write_text("much too large")
    with pytest.raises(ValueTooLarge, match="install it"):
        client.upload_module(package)
    assert client.statistics()["calls"] == calls
