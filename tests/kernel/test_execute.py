"""What `execute` runs, displays and remembers."""

from __future__ import annotations

import sys

import pytest

from enginery._encoded import Codec
from tests.kernel.conftest import Driver, value

pytestmark = pytest.mark.asyncio(loop_scope="module")

_RUN = [
    ("a=5", {"a": 5}),
    ("b=10", {"b": 10}),
    ("a=5; b=10; c=a+b", {"c": 15}),
    ("def f(x):\n    return x*2\n\na = f(4)\n", {"a": 8}),
    ("if 1<2:\n    a=5", {"a": 5}),
    ("if 1<2: a=5", {"a": 5}),
    ("import time; time.sleep(0.01)", {}),
    ("from math import cos;", {}),
    ("from math import cos; x=1.0", {"x": 1.0}),
    ("a = 1   \n  ", {"a": 1}),
    ("len([1, 2])\na = 2", {"a": 2}),
    ("a=1; b=2;", {"a": 1, "b": 2}),
    ("a=1;b=2;\n", {"a": 1, "b": 2}),
    ("", {}),
    ("\n\n# nothing\n", {}),
    ("a = '\u00e4\u4e16'", {"a": "\u00e4\u4e16"}),
]


@pytest.mark.parametrize(("code", "expected"), _RUN)
async def test_sources_that_run(kernel: Driver, code: str, expected: dict[str, object]) -> None:
    """Every form of source that the original's tests ran, runs."""
    await kernel.ok(code)
    assert await kernel.pull(*expected) == expected


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("1/0", "ZeroDivisionError"),
        ("no_such_name", "NameError"),
        ("[][0]", "IndexError"),
        ("{}['a']", "KeyError"),
        ("assert 1==0", "AssertionError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise Exception()", "Exception"),
        ("a = ", "SyntaxError"),
        ("  a = 1", "IndentationError"),
        ("a\0b", "SyntaxError"),
        ("import sys; sys.exit()", "SystemExit"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("input()", "EOFError"),
        ("(" * 10_000 + ")" * 10_000, "SyntaxError|MemoryError|RecursionError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("'\ud800'.x\ud800", "UnicodeEncodeError"),
    ],
)
async def test_sources_that_raise(kernel: Driver, code: str, name: str) -> None:
    """What raises is a failure of that type, and the kernel goes on."""
    assert await kernel.raises(code) in name.split("|")
    assert (await kernel.ok("1+1")).text == "2"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import math; 2.0*math.pi", "6.283185307179586"),
        ("1", "1"),
        ("1 # x;", "1"),
        ("1;", None),
        ("1 ; # x", None),
        ("(1);", None),
        ("a = 1", None),
        ("None", None),
        ("'a;'", "'a;'"),
        ("'''a\nb;''';", None),
        ("'\u00e4\u4e16' ;", None),
        ("x = 1\nx + 1\n\n", "2"),
        ("await __import__('asyncio').sleep(0, 7)", "7"),
        ("import asyncio\nx = await asyncio.sleep(0, 8)\nx", "8"),
        ("async def f():\n    return 9\nawait f()", "9"),
        ("async with __import__('contextlib').nullcontext(5) as y:\n    pass\ny", "5"),
        ("from __future__ import annotations\n'doc'", "'doc'"),
        ("id", "3"),
        ("id([]) > 0, mpi", "(True, None)"),
    ],
)
async def test_last_expression(kernel: Driver, code: str, text: str | None) -> None:
    """The last expression's value is shown, unless it is None or a semicolon follows it."""
    assert (await kernel.ok(code)).text == text


async def test_future_imports_last(kernel: Driver) -> None:
    """A `__future__` import holds for its own last expression and for later commands, until reset."""
    await kernel.ok("from __future__ import annotations")
    await kernel.ok("def f(x: no_such_name): pass")
    await kernel.run("reset")
    assert await kernel.raises("def f(x: no_such_name): pass") == "NameError"


async def test_a_statement_that_raises_ends_the_block(kernel: Driver) -> None:
    """What came before it stays, what comes after it does not run, output so far arrives."""
    reply = await kernel.execute("a = 1\nprint('before')\n1/0\na = 2")
    assert reply.failure is not None
    assert kernel.stdout == b"before\n"
    assert await kernel.pull("a") == {"a": 1}


async def test_value_travels_in_the_first_codec_that_fits(kernel: Driver) -> None:
    """Text and pretty text are always there; the value, or why it is not."""
    reply = await kernel.execute("{'b': 1, 'a': [1.5, None]}", accept=(Codec.JSON,))
    assert value(reply) == {"b": 1, "a": [1.5, None]}
    assert reply.text == "{'b': 1, 'a': [1.5, None]}"
    assert reply.pretty == "{'a': [1.5, None], 'b': 1}"
    reply = await kernel.execute("2**60", accept=(Codec.JSON,))
    assert reply.text == str(2**60)
    assert "2^53" in (reply.value_error or "")
    assert value(await kernel.execute("{1: 2}", accept=(Codec.JSON, Codec.PICKLE))) == {1: 2}
    reply = await kernel.execute("lambda: 1", accept=(Codec.JSON, Codec.TEXT))
    assert "function" in (reply.value_error or "")
    assert not reply.values


async def test_history(kernel: Driver) -> None:
    """`In`, `Out`, `_`, `__` and `___` hold what was entered and shown, and keys() does not list them."""
    for number, code in enumerate(("1", "2", "x = 5", "3"), start=1):
        await kernel.execute(code, number=number)
    reply = await kernel.execute("_, __, ___, Out[2], In[3], In[-1], len(In), 3 in Out", number=5)
    expected = (3, 2, 1, 2, "x = 5", "_, __, ___, Out[2], In[3], In[-1], len(In), 3 in Out", 5, False)
    assert value(reply) == expected
    assert (await kernel.run("keys")).keys == ("id", "mpi", "x")
    assert await kernel.raises("Out[99]") == "IndexError"


async def test_displays(kernel: Driver) -> None:
    """What code displays comes in order, then the last expression if it offers more than text."""
    code = """
class Rich:
    def __repr__(self): return "rich"
    def _repr_html_(self): return "<b>rich</b>"
    def _repr_png_(self): return b"\\x89PNG", {"width": 3}
    def _repr_svg_(self): raise ValueError
    def _repr_json_(self): return {"a": 1}
class Bundle:
    def _repr_mimebundle_(self, include=None, exclude=None): return {"text/x": "x"}
get_engine().display(Bundle())
get_engine().display(5, {"hint": [1]})
Rich()
"""
    (rich,) = (await kernel.ok(code)).displays
    bundle, five = kernel.heard.log.displays()
    assert bundle.data["text/x"] == "x"
    assert "Bundle object" in str(bundle.data["text/plain"])
    assert (five.data, five.metadata) == ({"text/plain": "5"}, {"hint": [1]})
    assert rich.data.pop("application/json") == '{"a":1}'  # type: ignore[attr-defined]
    assert rich.data == {"text/plain": "rich", "text/html": "<b>rich</b>", "image/png": b"\x89PNG"}
    assert rich.metadata == {"image/png": {"width": 3}}
    assert (await kernel.ok("1")).displays == []


async def test_too_much_displayed_is_refused(kernel: Driver) -> None:
    """What fits no frame is refused where it is displayed; the log of its operation bounds the sum."""
    big = "class Big:\n    def _repr_html_(self): return 'x' * (17 << 20)\n"
    await kernel.ok(big)
    assert await kernel.raises("get_engine().display(Big())") == "ValueTooLarge"
    await kernel.ok("get_engine().display(1)")
    assert len(kernel.heard.log.displays()) == 1


@pytest.mark.parametrize("what", ["__repr__", "__str__"])
async def test_a_repr_that_raises(kernel: Driver, what: str) -> None:
    """A value whose repr raises is shown as that; the command succeeds."""
    reply = await kernel.ok(
        f"class Bad:\n    def {what}(self): raise ValueError('no')\n    __repr__ = {what}\nBad()"
    )
    assert reply.text == "<Bad object whose repr() raised ValueError: no>"


async def test_long_texts_are_cut(kernel: Driver) -> None:
    """A huge repr arrives with a mark in its middle, and the value whole."""
    reply = await kernel.ok("'x' * (3 << 20)")
    assert len(reply.text or "") < (1 << 20) + 100
    assert "characters left out" in (reply.text or "")
    await kernel.ok("big = list(range(300_000))")
    assert (await kernel.ok("big")).text is not None


async def test_the_namespace_is_main(kernel: Driver) -> None:
    """User code lives in the real `__main__`: classes defined there pickle, and tools find it."""
    await kernel.ok("import sys, pickle\nclass C: pass\nc = pickle.loads(pickle.dumps(C()))")
    assert (await kernel.ok("sys.modules['__main__'].C is C and __name__ == '__main__'")).text == "True"
    assert (
        await kernel.ok("from enginery import get_engine as g; g() is get_engine(), g().id")
    ).text == "(True, 3)"
    assert (await kernel.ok("import sys; sys.argv, sys.stdin.read()")).text == "([''], '')"


async def test_no_grpc_in_the_kernel(kernel: Driver) -> None:
    """The kernel imports neither gRPC nor protobuf nor numpy, so user code may do with them what it likes."""
    modules = ("grpc", "google.protobuf", "numpy", "psutil", "engine_service.kernel_process")
    code = f"import sys; [m for m in {modules} if m in sys.modules]"
    assert (await kernel.ok(code)).text == "[]"


async def test_multiprocessing_and_subprocesses(kernel: Driver) -> None:
    """User code may fork and spawn: children neither answer for the kernel nor hold its socket."""
    code = """
import multiprocessing, subprocess, sys
with multiprocessing.get_context("fork").Pool(2) as pool:
    squares = pool.map(abs, [-1, -2])
code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
squares, len(eval(out)) <= 4
"""
    if sys.platform == "linux":
        assert (await kernel.ok(code)).text == "([1, 2], True)"


async def test_times(kernel: Driver) -> None:
    """A reply says when it began, and how long it took."""
    reply = await kernel.ok("import time; time.sleep(0.05)")
    assert 0.05 <= reply.duration < 5
    assert reply.started_at > 1e9
