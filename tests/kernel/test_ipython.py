"""`--shell ipython`: commands run as cells of IPython's shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from engine_service.kernel_process import KernelOptions
from tests.kernel.conftest import Driver, running, value

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Driver]:
    async with running(KernelOptions(engine_id=3, shell="ipython")) as driver:
        yield driver


def shown(kernel: Driver) -> list[Mapping[str, str | bytes]]:
    """Return what the last command displayed."""
    return [display.data for display in kernel.heard.log.displays()]


async def test_magics(kernel: Driver) -> None:
    """Line magics, cell magics and `!` run, and give their values."""
    assert "Wall time" in await kernel.output("%time sum(range(10))") + kernel.stdout.decode()
    assert await kernel.output("%%capture out\nprint('x')") == ""
    assert await kernel.output("print(out.stdout, end='')") == "x\n"
    assert await kernel.output("!echo $((6 * 7))") == "42\n"
    assert (await kernel.ok("lines = !printf 'a\\nb\\n'\nlist(lines)")).text == "['a', 'b']"
    assert (await kernel.ok("!exit 3\n_exit_code")).text == "3"
    assert (await kernel.run("keys")).keys == ("id", "lines", "mpi", "out")
    assert await kernel.raises("%no_such_magic") == "UsageError"


async def test_questions(kernel: Driver) -> None:
    """`?` displays what is known of an object."""
    await kernel.ok("def f(a):\n    'Doc of f.'\n")
    await kernel.ok("f?")
    assert "Doc of f." in str(shown(kernel)[0]["text/plain"])
    await kernel.ok("f??")
    assert "def f(a):" in str(shown(kernel)[0]["text/plain"])


async def test_history(kernel: Driver) -> None:
    """`In`, `Out`, `_` and their like are IPython's, by the engine's numbers; no such name is the user's."""
    number = kernel.number + 1
    await kernel.ok("6 * 7")
    assert (await kernel.ok("_ + 1")).text == "43"
    assert (await kernel.ok(f"Out[{number}], In[{number}], _{number}, _i{number}")).text == (
        "(42, '6 * 7', 42, '6 * 7')"
    )
    await kernel.ok("a = 1")
    assert (await kernel.run("keys")).keys == ("a", "id", "mpi")
    await kernel.run("reset")
    assert (await kernel.run("keys")).keys == ("id", "mpi")
    assert (await kernel.ok("In[:-1] == [''] * len(In[:-1])")).text == "True"
    assert (await kernel.ok("len(Out) - 1, get_ipython().__class__.__mro__[1].__name__")).text == (
        "(0, 'InteractiveShell')"
    )


async def test_last_expression(kernel: Driver) -> None:
    """The last expression is the value unless a semicolon ends it; `pretty` is IPython's."""
    assert value(await kernel.ok("[1]\n[2]")) == [2]
    assert (await kernel.ok("1;")).text is None
    reply = await kernel.ok("list(range(1200))")
    assert reply.text == repr(list(range(1200)))
    assert reply.pretty is not None
    assert reply.pretty.endswith("...]")
    await kernel.ok("get_ipython().ast_node_interactivity = 'all'")
    assert value(await kernel.ok("1\n2")) == 2
    assert shown(kernel) == [{"text/plain": "1"}]
    await kernel.ok("get_ipython().ast_node_interactivity = 'last_expr'")


async def test_formatters(kernel: Driver) -> None:
    """What IPython's formatters know of a type holds for the answer, `display` and `get_engine()`."""
    await kernel.ok(
        "html = get_ipython().display_formatter.formatters['text/html']\n"
        "class C:\n    pass\n"
        "html.for_type(C, lambda c: '<c>')\n;"
    )
    reply = await kernel.ok("C()")
    assert reply.displays[0].data["text/html"] == "<c>"
    await kernel.ok("display(C()); get_engine().display(C())")
    assert [forms["text/html"] for forms in shown(kernel)] == ["<c>", "<c>"]
    await kernel.ok("from IPython.display import Image\nh = display(Image(b'\\x89PNG'), display_id='x')")
    assert shown(kernel)[0]["image/png"] == b"\x89PNG"


async def test_figures(kernel: Driver) -> None:
    """Figures of commands and of functions are displayed as PNG, with `%matplotlib inline` and without."""
    for how in ("", "%matplotlib inline"):
        await kernel.ok(f"{how}\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);")
        assert [bytes(forms["image/png"])[:4] for forms in shown(kernel)] == [b"\x89PNG"]  # type: ignore[arg-type]
        await kernel.ok("def plot():\n    plt.plot([1])\n")
        await kernel.run("apply", function_name="plot")
        assert len(shown(kernel)) == 1


async def test_what_is_raised(kernel: Driver) -> None:
    """It is the failure, with IPython's traceback and without its frames, and nothing is printed."""
    reply = await kernel.execute("def f():\n    1 / 0\nf()")
    assert reply.failure is not None
    error = reply.failure.errors[0]
    assert (error.type_name, [frame.function for frame in error.frames]) == (
        "ZeroDivisionError",
        ["<module>", "f"],
    )
    assert "----> 2     1 / 0" in reply.failure.traceback
    assert "interactiveshell" not in reply.failure.traceback
    assert "\x1b" not in reply.failure.traceback
    assert (kernel.stdout, kernel.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("a = ", "SyntaxError"),
        ("  a = 1\n b", "IndentationError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("input()", "EOFError"),
        ("%%timeit\n1/0", "ZeroDivisionError"),
        ("raise ExceptionGroup('g', [KeyError()])", "ExceptionGroup"),
        ("import asyncio\nawait asyncio.sleep(0)\n1/0", "ZeroDivisionError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("return 5", "SyntaxError"),
        ("%%capture out\n1/0", "ZeroDivisionError"),
        ("%%script no-such-program\nx", "FileNotFoundError"),
        ("get_ipython().hooks.editor('file')", "UsageError"),
    ],
)
async def test_all_that_is_raised_is_the_failure(kernel: Driver, code: str, name: str) -> None:
    """Of whatever kind, it is not printed beside, and the shell goes on."""
    assert await kernel.raises(code) == name
    assert (kernel.stdout, kernel.stderr) == (b"", b"")
    assert (await kernel.ok("1+1")).text == "2"


async def test_tracebacks_show_no_frames_of_ours(kernel: Driver, tmp_path: Path) -> None:
    """Nor does a wrong magic show more than what is wrong; exceptions that render themselves do so."""
    script = tmp_path / "script.py"
    script.write_text("1 / 0")
    for code in (f"%run {script}", "%%bash\nexit 3", "%%capture out\n1/0", "input()"):
        reply = await kernel.execute(code)
        assert reply.failure is not None
        assert "engine_service" not in reply.failure.traceback
        assert not [one for one in reply.failure.errors[0].frames if "engine_service" in one.file]
    reply = await kernel.execute("%no_such_magic")
    assert reply.failure is not None
    assert reply.failure.traceback == "UsageError: Line magic function `%no_such_magic` not found.\n"
    reply = await kernel.execute(
        "class E(Exception):\n    def _render_traceback_(self): return ['own']\nraise E"
    )
    assert reply.failure is not None
    assert reply.failure.traceback == "own\n"


async def test_what_a_formatter_raises(kernel: Driver) -> None:
    """It is printed, once and with its own cell, and the value is there nevertheless."""
    await kernel.ok("class C:\n    def _repr_pretty_(self, p, cycle): 1 / 0")
    reply = await kernel.ok("C()")
    assert kernel.stdout.count(b"ZeroDivisionError: ") == 1
    assert reply.text is not None
    await kernel.ok("C();")
    assert kernel.stdout == b""


async def test_commands_of_other_languages(kernel: Driver) -> None:
    """A script's output is the cell's, a variable's, or that of `%%capture`, as is that of `!`."""
    await kernel.ok("%%bash\necho out; echo err >&2")
    assert (kernel.stdout, kernel.stderr) == (b"out\n", b"err\n")
    assert await kernel.output("%%bash --out a --err b --no-raise-error\necho out; echo err >&2; exit 1") == ""
    assert value(await kernel.ok("a, b")) == ("out\n", "err\n")
    assert await kernel.output("%%capture out\n!echo hidden; echo error >&2") == ""
    assert value(await kernel.ok("out.stdout, out.stderr")) == ("hidden\n", "error\n")
    assert await kernel.output("import sys; sys.stdout.write('real\\n');") == "real\n"
    await kernel.ok("%%bash --bg --out running\nsleep 60")


async def test_what_cells_delete_comes_back(kernel: Driver) -> None:
    """`%reset` leaves `id` and `mpi`, and what IPython needs of its own is there again with the next cell."""
    await kernel.ok("a = 1")
    await kernel.ok("%reset -f")
    assert (await kernel.run("keys")).keys == ("id", "mpi")
    assert (await kernel.ok("id")).text == "3"
    await kernel.ok("globals().clear()")
    assert (await kernel.ok("1 + 1")).text == "2"
    assert (await kernel.ok("_ + 1")).text == "3"


async def test_what_would_be_edited_is_shown(kernel: Driver, tmp_path: Path) -> None:
    """`%load` has no next input to fill."""
    script = tmp_path / "script.py"
    script.write_text("loaded = 1")
    assert "loaded = 1" in await kernel.output(f"%load {script}")


async def test_a_script_that_raises_fails_its_cell(kernel: Driver, tmp_path: Path) -> None:
    """`%run` leaves the script's names behind; what it raises is the cell's failure."""
    script = tmp_path / "script.py"
    script.write_text("made = 1\nprint('ran')\n")
    assert await kernel.output(f"%run {script}") == "ran\n"
    assert (await kernel.ok("made")).text == "1"
    script.write_text("1 / 0")
    assert await kernel.raises(f"%run {script}\nafter = True") == "ZeroDivisionError"
    assert await kernel.raises("after") == "NameError"
    cells = tmp_path / "cells.ipy"
    cells.write_text("%time 1\n1 / 0\n")
    assert await kernel.raises(f"%run {cells}") == "ZeroDivisionError"
    assert b"ZeroDivisionError" not in kernel.stdout


async def test_what_ends_no_cell_is_printed(kernel: Driver) -> None:
    """`%tb`, and what a callback raises, go to the output."""
    await kernel.raises("1/0")
    assert "ZeroDivisionError" in await kernel.output("%tb")
    await kernel.ok("def bad():\n    raise KeyError('bad')\nget_ipython().events.register('post_execute', bad)")
    assert b"KeyError: 'bad'" in kernel.stdout
    await kernel.ok("get_ipython().events.unregister('post_execute', bad)")


async def test_interrupts(kernel: Driver) -> None:
    """An interrupt ends a cell, what it awaits, and a command of `!` with what follows it."""
    import asyncio

    for code in (
        "while True: pass",
        "import asyncio; await asyncio.sleep(60)",
        "!trap '' INT; sleep 60\nafter = True",
        "x = !sleep 60\nafter = True",
        "get_ipython().run_cell_magic('bash', '', 'sleep 60; :')\nafter = True",
        "get_ipython().run_cell_magic('capture', '', 'import time; time.sleep(60)')\nafter = True",
    ):
        running_cell = asyncio.create_task(kernel.execute(f"print('up', flush=True)\n{code}"))
        await asyncio.sleep(0)  # the command is sent
        while not kernel.stdout and not running_cell.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        kernel.kernel.interrupt()
        reply = await running_cell
        assert reply.failure is not None
        assert (reply.failure.category, reply.failure.errors[0].type_name) == (
            "INTERRUPTED",
            "KeyboardInterrupt",
        )
    assert await kernel.raises("after") == "NameError"


async def test_nothing_grows() -> None:
    """Of thousands of cells the last thousand are kept, names of IPython's and sources of tracebacks too."""
    code = "len(get_ipython().user_ns), len(get_ipython().user_ns_hidden), len(__import__('linecache').cache)"
    sources = "import gc; gc.collect(); sum(type(one).__name__ == 'Source' for one in gc.get_objects())"
    async with running(KernelOptions(shell="ipython")) as kernel:
        kernel.number = 10_000
        await kernel.raises("1 / 0")
        for number in range(1005):
            await kernel.ok(f"{number}")
        sizes = (await kernel.ok(code)).text
        for number in range(10):
            await kernel.ok(f"print({number})\n{number}")
            await kernel.raises(f"{number} / 0")
        assert (await kernel.ok(code)).text == sizes
        assert int(str((await kernel.ok(sources)).text)) < 5  # of the ten cells that raised


@pytest.mark.parametrize("how", ["= 5", "= None", "= open('/dev/null', 'w')"])
async def test_replaced_streams(kernel: Driver, how: str) -> None:
    """User code may put anything in the place of stdout."""
    await kernel.ok(f"import sys; kept = sys.stdout; sys.stdout {how}")
    await kernel.ok("1 + 1")
    assert await kernel.raises("1/0") == "ZeroDivisionError"
    assert await kernel.output("sys.stdout = kept; print('back')") == "back\n"


@pytest.mark.parametrize("body", ["raise SystemExit", "return 5", "return self.__str__()"])
async def test_hostile_exceptions(kernel: Driver, body: str) -> None:
    """An exception whose text cannot be had arrives nevertheless."""
    await kernel.ok(f"class Bad(Exception):\n    def __str__(self): {body}")
    assert await kernel.raises("raise Bad") == "Bad"


async def test_start_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--exec-line` may be a magic, and leaves no trace. Nor do a user's profile and environment."""
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("leaked = 1")
    settings = "c = get_config()\nc.InteractiveShell.xmode = 'Minimal'\n"
    (startup.parent / "ipython_config.py").write_text(settings)
    async with running(KernelOptions(shell="ipython", exec_lines=("%load_ext autoreload", "a = 1"))) as kernel:
        assert (await kernel.run("keys")).keys == ("a", "id", "mpi")
        assert (await kernel.ok("a")).text == "1"
        assert str(tmp_path) not in str((await kernel.ok("import sys; sys.path")).text)
        reply = await kernel.execute("1 / 0")
        assert reply.failure is not None
        assert "----> 1 1 / 0" in reply.failure.traceback
        assert not kernel.late
