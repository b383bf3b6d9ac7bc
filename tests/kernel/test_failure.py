"""Exceptions arrive whole: chains, notes, groups, source lines; and whatever their classes do, they arrive."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from enginery._codec import decode

if TYPE_CHECKING:
    from engine_service.kernel_process import Failure
    from tests.kernel.conftest import Driver

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _failure(kernel: Driver, code: str) -> Failure:
    reply = await kernel.execute(code, number=3)
    assert reply.failure is not None
    return reply.failure


async def test_traceback_with_source_lines(kernel: Driver) -> None:
    """Lines of code typed in show, those of earlier commands too, and nothing of the kernel's own."""
    await kernel.execute("def f(x):\n    return x / 0\n", number=2)
    failure = await _failure(kernel, "y = 1\nf(y)")
    marks = "    ~^^^\n" if sys.version_info >= (3, 13) else ""
    assert failure.traceback == (
        "Traceback (most recent call last):\n"
        '  File "<execute 3>", line 2, in <module>\n'
        f"    f(y)\n{marks}"
        '  File "<execute 2>", line 2, in f\n'
        "    return x / 0\n"
        "           ~~^~~\n"
        "ZeroDivisionError: division by zero\n"
    )
    outer, inner = failure.errors[0].frames
    assert (outer.file, outer.line, outer.function, outer.source_line) == ("<execute 3>", 2, "<module>", "f(y)")
    assert (inner.line, inner.end_line, inner.column, inner.end_column) == (2, 2, 11, 16)
    assert failure.errors[0].hierarchy[-1] == "builtins.BaseException"


async def test_source_is_kept_while_it_can_run_and_no_longer(kernel: Driver) -> None:
    """The lines of a command go when nothing of it is left."""
    await kernel.execute("import linecache\ndef f(): pass", number=7)
    assert (await kernel.ok("'<execute 7>' in linecache.cache")).text == "True"
    await kernel.ok("del f; In = Out = None")
    assert (await kernel.ok("'<execute 7>' in linecache.cache")).text == "False"


async def test_syntax_error(kernel: Driver) -> None:
    """A syntax error shows where it is, and has no frames."""
    failure = await _failure(kernel, "a = (1,\nb ! 2")
    assert failure.errors[0].frames == ()
    assert 'File "<execute 3>", line' in failure.traceback
    assert "SyntaxError" in failure.traceback


async def test_errors_in_awaits_and_imports(kernel: Driver) -> None:
    """Frames of the loop that runs awaits are left out."""
    failure = await _failure(kernel, "async def f():\n    1/0\nawait f()")
    assert [frame.function for frame in failure.errors[0].frames] == ["<module>", "f"]
    assert "asyncio" not in failure.traceback


async def test_chains_notes_and_groups(kernel: Driver) -> None:
    """Causes, contexts, notes and members are linked by index, each exception once."""
    code = """
try:
    try:
        raise ValueError("first")
    except ValueError as e:
        e.add_note("a note")
        raise KeyError("second") from e
except KeyError as e:
    second = e
try:
    1/0
except ZeroDivisionError:
    raise ExceptionGroup("both", [second, TypeError("third"), ExceptionGroup("inner", [OSError(2, "gone")])])
"""
    failure = await _failure(kernel, code)
    by_name = {error.type_name: (index, error) for index, error in enumerate(failure.errors)}
    assert len(failure.errors) == len(by_name) + 1 == 7
    group = failure.errors[0]
    assert group.type_name == "ExceptionGroup"
    assert failure.errors[group.context_index or 0].type_name == "ZeroDivisionError"
    assert [failure.errors[i].type_name for i in group.member_indexes] == [
        "KeyError",
        "TypeError",
        "ExceptionGroup",
    ]
    second = by_name["KeyError"][1]
    assert second.cause_index == by_name["ValueError"][0] == second.context_index
    assert second.suppress_context
    assert by_name["ValueError"][1].notes == ("a note",)
    for text in ("a note", "second", "third", "gone", "The above exception was the direct cause"):
        assert text in failure.traceback


async def test_a_cycle_of_contexts(kernel: Driver) -> None:
    """Exceptions that refer to each other are listed once each."""
    failure = await _failure(
        kernel, "a, b = ValueError(1), ValueError(2)\na.__context__ = b\nb.__context__ = a\nraise a"
    )
    assert [(e.message, e.context_index) for e in failure.errors] == [("1", 1), ("2", 0)]


@pytest.mark.parametrize(
    "body",
    [
        "def __str__(self): raise ValueError",
        "def __str__(self): raise SystemExit",
        "def __str__(self): return 5",
        "def __str__(self): return self.__str__()",
        "def __repr__(self): raise ValueError",
        "def __reduce__(self): raise ValueError",
        "def __reduce__(self): return 5",
        "__module__ = 5",
        "__notes__ = 7",
        "__notes__ = [object(), type('X', (), {'__str__': None})()]",
        "def __getattribute__(self, name): raise ValueError",
        "@property\n    def __cause__(self): raise ValueError",
        "def __eq__(self, other): raise ValueError\n    __hash__ = None",
    ],
)
async def test_hostile_exceptions(kernel: Driver, body: str) -> None:
    """Whatever an exception's class does, the failure arrives with its name and the kernel goes on."""
    failure = await _failure(kernel, f"class Bad(Exception):\n    {body}\nraise Bad('x')")
    assert failure.errors[0].type_name in ("Bad", "ValueError")
    assert failure.traceback
    assert (await kernel.ok("1+1")).text == "2"


async def test_the_original_travels_if_it_survives(kernel: Driver) -> None:
    """Small exceptions that pickle come along; others arrive as data alone."""
    failure = await _failure(kernel, "class Mine(Exception):\n    pass\nraise Mine('a', 1)")
    assert failure.pickled is not None
    original = decode(failure.pickled)
    assert isinstance(original, Exception)
    assert (type(original).__name__, original.args) == ("Mine", ("a", 1))
    assert (await _failure(kernel, "raise ValueError(open('/dev/null'))")).pickled is None
    assert (await _failure(kernel, "raise ValueError('x' * 100_000)")).pickled is None
    code = "class Two(Exception):\n    def __init__(self, a, b): super().__init__(a)\nraise Two(1, 2)"
    assert (await _failure(kernel, code)).pickled is not None
    code = "import threading\nerror = ValueError(1)\nerror.lock = threading.Lock()\nraise error"
    assert (await _failure(kernel, code)).pickled is None
    assert (await _failure(kernel, "raise SystemExit(3)")).pickled is None


async def test_sizes_are_bounded(kernel: Driver) -> None:
    """Endless recursion, huge messages and long chains arrive cut, and say so."""
    failure = await _failure(kernel, "def f(n): return f(n + 1)\nf(0)")
    assert len(failure.errors[0].frames) == 100
    assert failure.errors[0].frames_omitted > 500
    failure = await _failure(kernel, "raise ValueError('x' * (10 << 20))")
    assert len(failure.errors[0].message) < 70_000
    assert "left out" in failure.errors[0].message
    assert len(failure.traceback.encode()) <= 256 << 10
    code = "e = ValueError(0)\nfor n in range(1000):\n    f = ValueError(n); f.__cause__ = e; e = f\nraise e"
    assert len((await _failure(kernel, code)).errors) == 50


async def test_memory_error_is_a_resource(kernel: Driver) -> None:
    """A MemoryError is of category RESOURCE."""
    assert (await _failure(kernel, "raise MemoryError")).category == "RESOURCE"


async def test_user_code_may_refuse_to_run_here(kernel: Driver) -> None:
    """TaskReject and what is derived from it is a category of its own."""
    for raised in ("TaskReject('no gpu')", "type('NoGpu', (TaskReject,), {})('no gpu')"):
        failure = await _failure(kernel, f"from enginery.errors import TaskReject; raise {raised}")
        assert (failure.category, failure.errors[0].message) == ("REJECTED", "no gpu")
