"""Execute, as SEED and the contract describe it, over every way to reach an engine."""

from __future__ import annotations

import pytest

from enginery.v1 import engine_pb2, value_pb2

from .under_test import EngineUnderTest, decode

RUNS = [
    "a=5",
    "b=10",
    "a=5; b=10; c=a+b",
    "import math; 2.0*math.pi",
    "def f():\n    result = 0.0\n    for i in range(10):\n        result += i\n    return result\n",
    "if 1<2: a=5",
    "import time\ntime.sleep(0.01)",
    "from math import cos;",
    "x = 1  \n",
    "cos(1.0)",
    "a = 1;",
    "a = 1; b = 2;",
]
RAISES = [
    ("1/0", "ZeroDivisionError"),
    ("undefined_name", "NameError"),
    ("[][0]", "IndexError"),
    ("{}['a']", "KeyError"),
    ("assert 1==0", "AssertionError"),
    ("import no_such_module_anywhere", "ModuleNotFoundError"),
    ("raise Exception()", "Exception"),
    ("def broken(:", "SyntaxError"),
]


@pytest.mark.parametrize("source", RUNS)
async def test_sources_that_must_run(engine: EngineUnderTest, source: str) -> None:
    """Every source that the original's own tests ran, runs."""
    await engine.execute("from math import cos")
    result = await engine.execute(source)
    assert not result.HasField("error"), result.error.traceback
    assert result.input.raw == source


@pytest.mark.parametrize(("source", "name"), RAISES)
async def test_sources_that_must_raise(engine: EngineUnderTest, source: str, name: str) -> None:
    """Every source that must raise comes back as that exception, as data, with the remote traceback."""
    result = await engine.execute(source)
    assert result.error.errors[0].type_name == name
    assert name in result.error.traceback
    assert result.error.method == "execute"
    assert result.error.engine_id == result.engine_id


async def test_a_number_is_taken_by_failures_too(engine: EngineUnderTest) -> None:
    """Numbers count up from 1; a failed command takes one and leaves a record."""
    first = await engine.execute("1")
    failed = await engine.execute("1/0")
    third = await engine.execute("3")
    assert [first.number, failed.number, third.number] == [1, 2, 3]
    record = (await engine.call(engine_pb2.GetResultRequest(number=2), engine_pb2.GetResultResponse)).result
    assert record.error.errors[0].type_name == "ZeroDivisionError"
    assert record.input.raw == "1/0"


async def test_the_last_expression_is_the_value(engine: EngineUnderTest) -> None:
    """Its repr, its pprint form and its value in the first accepted codec arrive."""
    result = await engine.execute("a = 20\na + 1", value_pb2.CODEC_JSON)
    assert (result.text, result.pretty) == ("21", "21")
    assert decode(result.value) == 21
    nothing = await engine.execute("None")
    assert not nothing.HasField("text")
    assert not nothing.HasField("value")


async def test_a_value_without_an_accepted_form_says_why(engine: EngineUnderTest) -> None:
    """No codec fits: the text is there, the value is not, and the reason names the type."""
    result = await engine.execute("lambda: 1", value_pb2.CODEC_JSON)
    assert "lambda" in result.text
    assert not result.HasField("value")
    assert "function" in result.value_error


async def test_integers_that_json_would_round_are_refused_by_name(engine: EngineUnderTest) -> None:
    """Integers beyond 2^53 do not fit CODEC_JSON; 2^53 itself does."""
    assert decode((await engine.execute("2**53", value_pb2.CODEC_JSON)).value) == 2**53
    assert "2^53" in (await engine.execute("2**53 + 1", value_pb2.CODEC_JSON)).value_error


async def test_a_statement_that_raises_ends_the_block(engine: EngineUnderTest) -> None:
    """What stands before it has happened, what stands after it has not."""
    await engine.execute("before = after = 0")
    await engine.execute("before = 1\n1/0\nafter = 1")
    assert await engine.pull("before", "after") == {"before": 1, "after": 0}


async def test_in_out_and_underscores(engine: EngineUnderTest) -> None:
    """In, Out, _, __ and ___ are maintained."""
    for source in ("10", "20", "30"):
        await engine.execute(source)
    assert await engine.evaluate("(_, __, ___)") == (30, 20, 10)
    assert await engine.evaluate("(Out[1], Out[3], In[2])") == (10, 30, "20")


async def test_top_level_await(engine: EngineUnderTest) -> None:
    """`await` works at the top level, also in the last expression."""
    code = "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 7\nawait f()"
    assert await engine.evaluate(code) == 7


async def test_output_of_every_kind_arrives_in_order(engine: EngineUnderTest) -> None:
    """print, os.write, C and a subprocess, in the order in which they wrote, and none after the result."""
    code = (
        "import os, ctypes, subprocess, sys\n"
        "print('print')\n"
        "os.write(1, b'os.write\\n')\n"
        "ctypes.CDLL(None).puts(b'puts')\n"
        "subprocess.run(['echo', 'echo'], check=True)\n"
        "print('last', end='')\n"
        "print('error', file=sys.stderr)\n"
    )
    result = await engine.execute(code)
    assert result.stdout == "print\nos.write\nputs\necho\nlast"
    assert result.stderr == "error\n"


async def test_output_that_is_not_utf_8_is_shown(engine: EngineUnderTest) -> None:
    """Invalid bytes become an escape, and nothing is lost."""
    result = await engine.execute("import os; n = os.write(1, b'a\\xffb')")
    assert result.stdout == "a\\xffb"


async def test_much_output_is_cut_in_the_reply_and_says_so(engine: EngineUnderTest) -> None:
    """A reply holds at most 1 MiB of a stream, its beginning and its end; the rest can be downloaded."""
    result = await engine.execute("for n in range(300_000): print('line', n)")
    assert len(result.stdout) < 1.1 * (1 << 20)
    assert result.stdout.startswith("line 0\n")
    assert result.stdout.endswith("line 299999\n")
    assert result.stdout_blob.size == sum(len(f"line {n}\n") for n in range(300_000))
    whole = b""
    async for data in engine.transport.download(
        engine_pb2.DownloadRequest(blob_id=result.stdout_blob.blob_id, release=True).SerializeToString()
    ):
        whole += engine_pb2.DownloadResponse.FromString(data).chunk.data
    assert whole.decode().splitlines()[150_000] == "line 150000"


async def test_rich_display(engine: EngineUnderTest) -> None:
    """An object with `_repr_html_` comes back as a MIME bundle beside its text."""
    code = "class Page:\n    def _repr_html_(self): return '<b>hi</b>'\nPage()"
    (display,) = (await engine.execute(code)).displays
    forms = {data.mime_type: data.text for data in display.data}
    assert forms["text/html"] == "<b>hi</b>"
    assert "Page object" in forms["text/plain"]


async def test_the_traceback_shows_the_source_that_was_typed(engine: EngineUnderTest) -> None:
    """Frames of typed code carry their source line."""
    result = await engine.execute("def divide(a):\n    return a / 0\n\ndivide(1)")
    frames = result.error.errors[0].frames
    assert [frame.source_line for frame in frames] == ["divide(1)", "return a / 0"]
    assert "return a / 0" in result.error.traceback


async def test_chained_noted_and_grouped_exceptions_arrive_whole(engine: EngineUnderTest) -> None:
    """Cause, context, notes and group members are linked by index."""
    code = (
        "try:\n    1/0\nexcept ZeroDivisionError as e:\n"
        "    error = ExceptionGroup('two', [ValueError('a'), KeyError('b')])\n"
        "    error.add_note('a note')\n    raise error from e"
    )
    errors = (await engine.execute(code)).error.errors
    first = errors[0]
    assert first.type_name == "ExceptionGroup"
    assert list(first.notes) == ["a note"]
    assert errors[first.cause_index].type_name == "ZeroDivisionError"
    assert [errors[index].type_name for index in first.member_indexes] == ["ValueError", "KeyError"]


async def test_input_raises_at_once(engine: EngineUnderTest) -> None:
    """There is nobody to type: input() raises, naming the reason."""
    result = await engine.execute("input('name? ')")
    assert "input" in result.error.errors[0].message
    assert await engine.evaluate("__import__('os').read(0, 10)") == b""


async def test_sys_exit_is_an_error_and_the_kernel_lives(engine: EngineUnderTest) -> None:
    """SystemExit is data; the namespace is intact."""
    await engine.push(kept=1)
    result = await engine.execute("import sys; sys.exit(3)")
    assert result.error.errors[0].type_name == "SystemExit"
    assert await engine.pull("kept") == {"kept": 1}


async def test_empty_code_takes_a_number_and_does_nothing(engine: EngineUnderTest) -> None:
    """Empty source is allowed."""
    result = await engine.execute("")
    assert result.number == 1
    assert not result.HasField("error")
