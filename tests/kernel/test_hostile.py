"""User code that spoils what Python consists of: its call ends with what it did, and the next one works."""

from __future__ import annotations

import asyncio

import pytest

from enginery._codec import decode, encode
from enginery.errors import SerializationError
from tests.kernel.conftest import Driver, running, value

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _is_well(kernel: Driver) -> None:
    reply = await kernel.ok("print('hey'); [40 + 2]")
    assert (value(reply), reply.text, kernel.stdout) == ([42], "[42]", b"hey\n")


@pytest.mark.parametrize(
    "body",
    [
        "def __getattribute__(self, name): raise SystemExit",
        "__cause__ = property(lambda self: 1 / 0)",
        "__cause__ = property(lambda self: 5)",
        "__traceback__ = property(lambda self: 5)",
        "__notes__ = property(lambda self: 1 / 0)",
        "__module__ = property(lambda self: 1 / 0)",
        "def __str__(self): raise SystemExit",
        "def __reduce__(self): raise SystemExit",
    ],
)
async def test_a_class_hides_nothing_of_its_exception(kernel: Driver, body: str) -> None:
    """Type, place and base classes arrive whatever the class puts in the place of its attributes."""
    reply = await kernel.execute(f"class E(ValueError):\n    {body}\nraise E('text')")
    assert reply.failure is not None
    raised = reply.failure.errors[0]
    assert raised.type_name == "E"
    assert raised.hierarchy[1:3] == ("builtins.ValueError", "builtins.Exception")
    assert raised.frames[-1].line == 3
    assert "line 3" in reply.failure.traceback
    await _is_well(kernel)


async def test_what_a_group_hides_is_found(kernel: Driver) -> None:
    """The members of a group are its own, whatever its class says."""
    code = (
        "class G(ExceptionGroup):\n    exceptions = property(lambda self: 1 / 0)\nraise G('m', [KeyError(1)])"
    )
    reply = await kernel.execute(code)
    assert reply.failure is not None
    assert [error.type_name for error in reply.failure.errors] == ["G", "KeyError"]


@pytest.mark.parametrize(
    "code",
    [
        "e = ValueError(0)\nfor i in range(20_000):\n    n = ValueError(i); n.__context__ = e; e = n\nraise e",
        "e = ValueError(0)\nfor i in range(20_000):\n    n = ValueError(i); n.__cause__ = e; e = n\nraise e",
        "e = ValueError(0); e.__notes__ = ['n' * 1_000_000] * 1000; raise e",
        "raise ValueError(b'x' * 30_000_000)",
    ],
)
async def test_outsized_exceptions_are_outlined(kernel: Driver, code: str) -> None:
    """Chains, notes and messages without end neither take long nor hide what was raised and where."""
    async with asyncio.timeout(20):
        reply = await kernel.execute(code)
    assert reply.failure is not None
    assert reply.failure.errors[0].type_name == "ValueError"
    assert "<execute" in reply.failure.traceback
    await _is_well(kernel)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("raise ValueError(object())", ValueError),
        ("def f():\n    nonlocal q", SyntaxError),
        ("from __future__ import braces", SyntaxError),
    ],
)
async def test_exceptions_that_survive_though_their_text_looked_different(
    kernel: Driver, code: str, kind: type
) -> None:
    """An address in the text, or a place that lies beside the arguments, does not cost the type."""
    reply = await kernel.execute(code)
    assert reply.failure is not None
    assert reply.failure.pickled is not None
    copy = decode(reply.failure.pickled)
    assert type(copy) is kind
    if kind is SyntaxError:
        assert str(copy) == reply.failure.errors[0].message


async def test_a_file_name_that_is_no_text(kernel: Driver) -> None:
    """Code compiled under a name with lone surrogates fails like any other."""
    reply = await kernel.execute(r"exec(compile('1/0', '\ud800', 'exec'))")
    assert reply.failure is not None
    assert reply.failure.errors[0].type_name == "ZeroDivisionError"


@pytest.mark.parametrize(
    "code",
    [
        "class M(type):\n    __module__ = property(lambda s: 1 / 0)\nclass C(metaclass=M): pass\nC()",
        "class M(type):\n    def __getattribute__(s, n): raise ValueError\nclass C(metaclass=M): pass\nC()",
        "class S(str):\n    def __len__(s): return -1\nclass C:\n    def __repr__(s): return S('abc')\nC()",
        "class S(str):\n    def __len__(s): return -1\nclass C:\n    def _repr_html_(s): return S('<b>')\nC()",
        "class C:\n    def __reduce__(s): raise SystemExit\nC()",
        "globals().clear()\nclass C: pass\nC()",
        "import sys; sys.modules.pop('pprint', None); p, sys.path[:] = sys.path[:], []; {'a': 1}",
    ],
)
async def test_odd_values_are_shown(code: str) -> None:
    """What cannot be shown or sent in one form costs that form, not the call."""
    async with running() as kernel:
        reply = await kernel.ok(code)
        assert reply.text
        await kernel.ok("import sys; sys.path[:] = globals().get('p', sys.path)")
        await _is_well(kernel)


async def test_a_value_that_exits_when_it_is_unpickled() -> None:
    """Neither reader nor writer ends because a value's own code calls sys.exit()."""

    class Exits:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, ("raise SystemExit(3)",))

    class Refuses:
        def __reduce__(self) -> str:
            raise SystemExit(3)

    with pytest.raises(SerializationError, match="SystemExit: 3"):
        decode(encode(Exits()))
    with pytest.raises(SerializationError, match="SystemExit: 3"):
        encode(Refuses())


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nclass W:\n    def write(s, x): pass\n    def flush(s): raise SystemExit\nsys.stdout = W()",
        "import sys; del sys.stdout, sys.stderr",
        "import time; time.time = lambda: 10**30; time.perf_counter = time.monotonic = lambda: float('nan')",
        "globals().clear()",
        "__builtins__ = {}",
        "import sys; sys.modules['__main__'] = None",
    ],
)
async def test_the_next_command_works(code: str) -> None:
    """What one command breaks around it is not the end of the kernel or of its state."""
    async with running() as kernel:
        await kernel.ok(code)
        await kernel.ok(
            "import sys; sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__\nclass C: pass\nkept = 1"
        )
        await _is_well(kernel)
        assert value(await kernel.execute("kept, C.__module__, sys.modules['__main__'].kept")) == (
            1,
            "__main__",
            1,
        )


async def test_a_kernel_beyond_repair_ends() -> None:
    """Where not even an exception can be described the kernel ends, so that the engine gets another."""
    from engine_service.kernel_process import KernelExited

    async with running() as kernel, asyncio.timeout(10):
        with pytest.raises(KernelExited):
            await kernel.execute("import builtins\nfor name in list(vars(builtins)): delattr(builtins, name)")


async def test_a_timer_left_behind_does_not_end_an_idle_kernel() -> None:
    """What a signal handler of user code raises between commands is printed, and harms nobody."""
    async with running() as kernel:
        code = "import signal; signal.signal(signal.SIGALRM, lambda *a: 1 / 0); signal.setitimer(0, 0.05)"
        await kernel.ok(f"x = 5; {code};")
        async with asyncio.timeout(10):
            while not any(b"ZeroDivisionError" in data for _, data in kernel.late):  # noqa: ASYNC110 - a list
                await asyncio.sleep(0.01)
        assert value(await kernel.execute("x")) == 5


async def test_progress_with_a_text_of_lone_surrogates(kernel: Driver) -> None:
    """A text that is no Unicode is shown as well as it can be."""
    await kernel.ok(r"get_engine().progress(0.5, '\ud800' * 300)")
    assert kernel.progress[-1][1].startswith(r"\ud800")


async def test_a_property_key_must_be_unicode(kernel: Driver) -> None:
    """Such a key could be set and never be asked for."""
    assert await kernel.raises(r"get_engine().properties['\ud800'] = 1") == "InvalidProperty"
