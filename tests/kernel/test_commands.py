"""Every command but `execute`: values and functions in and out, names, reset, properties."""

from __future__ import annotations

import math
import os
import textwrap
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine_service.kernel_process import KernelOptions
from enginery._codec import decode, decode_functions, encode
from enginery._encoded import Codec, Encoded, Stored
from tests.kernel.conftest import Driver, running, value

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.asyncio(loop_scope="module")

_VALUES = [
    1,
    -(2**70),
    "text \u4e16",
    1.5,
    {"a": {"b": (1, (2, None))}},
    (1, [2]),
    None,
    True,
    b"bytes",
    {1, 2},
    1j,
]


def main_function(source: str, name: str = "f") -> Callable[..., object]:
    """Return a function as a script would have it in its `__main__`."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(textwrap.dedent(source), namespace)
    return namespace[name]  # type: ignore[return-value]


@pytest.mark.parametrize("obj", _VALUES)
async def test_push_and_pull(kernel: Driver, obj: object) -> None:
    """What is pushed comes back equal, and of the same type."""
    await kernel.push(a=obj)
    back = (await kernel.pull("a"))["a"]
    assert back == obj
    assert type(back) is type(obj)


async def test_lambdas_and_closures_push_and_pull(kernel: Driver) -> None:
    """Functions are values like others, with what they captured."""
    n = 5
    await kernel.push(f=lambda x: x + n)
    pulled = (await kernel.pull("f"))["f"]
    assert pulled(1) == 6  # type: ignore[operator]


async def test_push_is_all_or_nothing(kernel: Driver) -> None:
    """A name that is no identifier, or what is no dictionary, changes nothing."""
    bad = await kernel.run("push", values=(("namespace", encode({"a": 1, "no name": 2})),))
    assert bad.failure is not None
    assert bad.failure.errors[0].type_name == "ValueError"
    bad = await kernel.run("push", values=(("namespace", encode({"a": 1, 5: 2})),))
    assert bad.failure is not None
    assert bad.failure.errors[0].type_name == "TypeError"
    bad = await kernel.run("push", values=(("namespace", encode([1])),))
    assert bad.failure is not None
    assert bad.failure.errors[0].type_name == "TypeError"
    bad = await kernel.run("push", values=(("namespace", Encoded(Codec.PICKLE, (b"corrupt",), "3.11.0")),))
    assert bad.failure is not None
    assert bad.failure.category == "SERIALIZATION"
    assert (await kernel.run("keys")).keys == ("id", "mpi")


async def test_push_json(kernel: Driver) -> None:
    """A namespace may come as JSON."""
    await kernel.run("push", values=(("namespace", encode({"a": [1]}, (Codec.JSON,))),))
    reply = await kernel.run("pull", keys=("a", "id"), accept=(Codec.JSON,))
    assert value(reply, "namespace") == {"a": [1], "id": 3}


async def test_missing_names(kernel: Driver) -> None:
    """One missing name fails the whole call, and every missing one is named."""
    await kernel.push(a=1)
    for method in ("pull", "pull_serialized", "pull_function"):
        reply = await kernel.run(method, keys=("a", "b", "c"))
        assert reply.failure is not None
        error = reply.failure.errors[0]
        assert (error.type_name, error.message) == ("NameError", "names 'b', 'c' are not defined")
        assert not reply.values


async def test_keys(kernel: Driver) -> None:
    """Names that users put there, and `id` and `mpi`."""
    await kernel.ok("import os\nx: int = 1\n_private = 2\n_ = 3\ndef f(): pass\nglobals()[7] = 8")
    assert (await kernel.run("keys")).keys == ("_private", "f", "id", "mpi", "os", "x")


async def test_reset(kernel: Driver) -> None:
    """Namespace, history and properties are empty; modules stay loaded; `id` and `mpi` are back."""
    await kernel.ok("import json; id = 5; get_engine().properties['a'] = 1; json.mark = 1; del mpi")
    await kernel.ok("import asyncio; task = asyncio.create_task(asyncio.sleep(99)); await asyncio.sleep(0)")
    reply = await kernel.run("reset")
    assert reply.properties == {}
    assert (await kernel.run("keys")).keys == ("id", "mpi")
    assert (await kernel.ok("id, mpi, len(Out)")).text == "(3, None, 0)"
    assert (await kernel.ok("import json; json.mark")).text == "1"


async def test_the_id_follows_the_engine(kernel: Driver) -> None:
    """`id` is the engine's, and still the builtin; a user's own `id` stays."""
    assert (await kernel.execute("id, id(len) == __builtins__.id(len)", engine_id=7)).text == "(7, True)"
    assert (await kernel.execute("get_engine().id", engine_id=8)).text == "8"
    await kernel.execute("id = 'mine'", engine_id=8)
    assert (await kernel.execute("id", engine_id=9)).text == "'mine'"


async def test_apply(kernel: Driver) -> None:
    """A function of the caller's `__main__` sees the engine's globals; captured names fill what is missing."""
    assert value(await kernel.apply(math.sqrt, 16)) == 4
    assert value(await kernel.apply(lambda x, *, y: (x, y), 1, y=2)) == (1, 2)
    await kernel.push(a=100)
    f = main_function("a = 1; b = 2\ndef g(): return a + b\ndef f(): return a, b, g()")
    assert value(await kernel.apply(f)) == (100, 2, 102)
    assert (await kernel.run("keys")).keys == ("a", "id", "mpi")
    newer = main_function("a = 1; b = 3\ndef g(): return a + b\ndef f(): return a, b, g()")
    assert value(await kernel.apply(newer)) == (100, 3, 103)
    await kernel.push(b=50)
    assert value(await kernel.apply(newer)) == (100, 50, 150)
    setter = main_function("def f(v):\n    global made\n    made = v")
    await kernel.apply(setter, 9)
    assert (await kernel.pull("made"))["made"] == 9


async def test_apply_recursion_methods_and_coroutines(kernel: Driver) -> None:
    """Recursive functions, classes of `__main__` and async functions work."""
    fact = main_function("def f(n): return 1 if n < 2 else n * f(n - 1)")
    assert value(await kernel.apply(fact, 5)) == 120
    method = main_function("k = 2\nclass C:\n    def m(self): return k\ndef f(): return C().m()")
    await kernel.push(k=7)
    assert value(await kernel.apply(method)) == 7
    coroutine = main_function("import asyncio\nasync def f(): return await asyncio.sleep(0, 'slept')")
    assert value(await kernel.apply(coroutine)) == "slept"


@pytest.mark.parametrize(
    ("name", "result"),
    [("math.gcd", 4), ("max", 8), ("mine", 12), ("os.path.commonprefix", None), ("holder.method", 20)],
)
async def test_apply_by_name(kernel: Driver, name: str, result: object) -> None:
    """A callable may be named: in the namespace, a builtin, or dotted."""
    await kernel.ok("def mine(a, b): return a + b\nclass holder:\n    method = staticmethod(lambda a, b: 20)")
    args: tuple[object, ...] = (4, 8) if result is not None else (["ab", "ac"],)
    pair = encode([list(args), {}], (Codec.JSON,))
    reply = await kernel.run("apply", function_name=name, values=(("arguments", pair),), accept=(Codec.JSON,))
    assert value(reply) == (result if result is not None else "a")


@pytest.mark.parametrize(
    ("name", "error"), [("nothing", "NameError"), ("no.such", "NameError"), ("mpi", "TypeError")]
)
async def test_apply_by_a_bad_name(kernel: Driver, name: str, error: str) -> None:
    """A name that names nothing, or nothing callable, is the caller's error."""
    reply = await kernel.run("apply", function_name=name)
    assert reply.failure is not None
    assert reply.failure.errors[0].type_name == error


async def test_apply_a_value_that_fits_nothing(kernel: Driver) -> None:
    """The failure names the type, and is of category SERIALIZATION."""
    values = (("function", encode(threading.Lock)),)
    reply = await kernel.run("apply", values=values, accept=(Codec.JSON, Codec.PICKLE))
    assert reply.failure is not None
    assert reply.failure.category == "SERIALIZATION"
    assert "lock" in reply.failure.errors[0].message


async def test_push_function_rebinds(kernel: Driver) -> None:
    """A pushed function has the engine's namespace as its globals; all else of it survives."""
    g = main_function(
        '''
        a = 1
        def make(c):
            def g(x, y=10, *, z: int = 20):
                """Its text."""
                return a, c, x, y, z
            g.mark = 5
            return g
        g = make(3)
        ''',
        "g",
    )
    await kernel.push(a=100)
    assert (await kernel.push_function(g=g)).failure is None
    assert (await kernel.ok("g(0)")).text == "(100, 3, 0, 10, 20)"
    await kernel.ok("a = 200")
    assert (await kernel.ok("g(0)[0], g.__name__, g.__doc__, g.mark, g.__kwdefaults__")).text == (
        "(200, 'g', 'Its text.', 5, {'z': 20})"
    )
    assert (await kernel.ok("g.__globals__ is globals()")).text == "True"


def module_function() -> object:
    """Return a global that only the engine has."""
    return only_there  # type: ignore[name-defined]  # noqa: F821


async def test_push_function_of_a_module(kernel: Driver) -> None:
    """A function from any module is rebound, even if the engine cannot import that module."""
    await kernel.push(only_there="here")
    await kernel.push_function(f=module_function, h=lambda: only_there)  # type: ignore[name-defined]  # noqa: F821
    assert (await kernel.ok("f(), h()")).text == "('here', 'here')"


async def test_push_function_takes_functions_only(kernel: Driver) -> None:
    """Anything else is TypeError, and nothing is pushed."""
    reply = await kernel.run("push_function", values=(("namespace", encode({"f": abs, "n": 5})),))
    assert reply.failure is not None
    assert (reply.failure.errors[0].type_name, "'n'" in reply.failure.errors[0].message) == ("TypeError", True)
    assert "f" not in (await kernel.run("keys")).keys


async def test_pull_function(kernel: Driver) -> None:
    """Functions come back callable; those that captured nothing see the caller's globals."""
    await kernel.ok(
        "a = 5\ndef with_a(x): return a + x\ndef without(): return 7\ndef theirs(): return caller_has\nn = 1"
    )
    reply = await kernel.run("pull_function", keys=("with_a", "without", "theirs"))
    encoded = reply.values["namespace"]
    assert isinstance(encoded, Encoded)
    functions = decode_functions(encoded, {"caller_has": 9, "__builtins__": __builtins__})
    assert functions["with_a"](1) == 6
    assert functions["without"]() == 7
    assert functions["theirs"]() == 9
    bad = await kernel.run("pull_function", keys=("n",))
    assert bad.failure is not None
    assert bad.failure.errors[0].type_name == "TypeError"


async def test_serialized_values(kernel: Driver) -> None:
    """Each value has its own form; arrays arrive writable, on either side, empty ones too."""
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "e": np.zeros((0, 3), "i4"),
        "f": np.asfortranarray(np.eye(3)),
        "z": np.array(5),
    }
    values = tuple((name, encode(array, (Codec.NDARRAY,))) for name, array in arrays.items())
    await kernel.run("push_serialized", values=(*values, ("t", encode("text", (Codec.TEXT,)))))
    check = "[(x.flags.writeable, x.dtype.str, x.shape, x.flags.f_contiguous) for x in (a, e, f, z)], t"
    expected = (
        [(x.flags.writeable, x.dtype.str, x.shape, x.flags.f_contiguous) for x in arrays.values()],
        "text",
    )
    assert (await kernel.ok(check)).text == repr(expected)
    reply = await kernel.run("pull_serialized", keys=(*arrays, "t"), accept=(Codec.NDARRAY, Codec.JSON))
    for name, array in arrays.items():
        back = value(reply, name)
        assert isinstance(back, np.ndarray)
        assert back.flags.writeable
        np.testing.assert_array_equal(back, array)
    assert reply.values["t"].codec is Codec.JSON
    await kernel.ok("del a, e, f, z")


async def test_large_values_go_by_file(kernel: Driver) -> None:
    """What does not fit the inline limit comes as a sealed file; and a file can be pushed."""
    await kernel.ok("import numpy; big = numpy.arange(500_000)")
    reply = await kernel.run("pull", keys=("big",))
    stored = reply.values["namespace"]
    assert isinstance(stored, Stored)
    assert stored.size == sum(stored.part_sizes) > 4_000_000
    assert stored.part_sizes[0] % 64 == 0
    with pytest.raises(PermissionError):
        os.ftruncate(stored.fd, 1)
    pieces, position = [], 0
    for size in stored.part_sizes:
        pieces.append(os.pread(stored.fd, size, position))
        position += size
    pulled = decode(Encoded(stored.codec, tuple(pieces), stored.python_version))
    assert isinstance(pulled, dict)
    assert pulled["big"].flags.writeable
    assert pulled["big"].sum() == 499_999 * 250_000
    await kernel.ok("del big")
    assert (await kernel.run("push", values=(("namespace", stored),))).failure is None
    stored.close()
    assert (await kernel.ok("big[0] = 5; big.flags.writeable, big.flags.aligned, int(big.sum())")).text == (
        f"(True, True, {499_999 * 250_000 + 5})"
    )
    await kernel.ok("small = b'x' * 1000")
    reply = await kernel.run("pull_serialized", keys=("small", "id"), inline_limit=100, accept=(Codec.PICKLE,))
    assert isinstance(reply.values["small"], Stored)
    assert isinstance(reply.values["id"], Encoded)
    reply.close()


async def test_value_limit() -> None:
    """A value over the limit is refused, naming limit and option; the kernel goes on."""
    async with running(KernelOptions(value_limit=1000)) as kernel:
        await kernel.push(a="x" * 2000)
        reply = await kernel.run("pull", keys=("a",))
        assert reply.failure is not None
        assert reply.failure.category == "RESOURCE"
        assert "1000 bytes" in reply.failure.errors[0].message
        assert "--value-limit" in reply.failure.errors[0].message
        executed = await kernel.execute("a")
        assert "--value-limit" in (executed.value_error or "")
        assert executed.text == repr("x" * 2000)


async def test_recursion_bombs(kernel: Driver) -> None:
    """Values nested beyond all bounds are errors, in every direction, and the kernel lives."""
    await kernel.ok("bomb = []\nfor _ in range(100_000): bomb = [bomb]")
    for accept in ((Codec.PICKLE,), (Codec.JSON,)):
        reply = await kernel.run("pull", keys=("bomb",), accept=accept)
        assert reply.failure is not None
        assert reply.failure.category == "SERIALIZATION"
    assert "repr() raised RecursionError" in ((await kernel.ok("bomb")).text or "")
    for bomb in (
        Encoded(Codec.JSON, (b"[" * 200_000 + b"]" * 200_000,)),
        Encoded(Codec.PICKLE, (b"\x80\x05" + b"(" * 100_000 + b"t" * 99_000,), "3.11.7"),
    ):
        reply = await kernel.run("push_serialized", values=(("a", bomb),))
        assert reply.failure is not None
        assert reply.failure.category == "SERIALIZATION"
    await kernel.run("reset")
    assert (await kernel.ok("1")).text == "1"


async def test_properties(kernel: Driver) -> None:
    """Values are copied in and out; changes come with the reply of whatever command made them."""
    reply = await kernel.run(
        "set_properties", values=(("a", encode({"n": [1]}, (Codec.JSON,))), ("t", encode((1, 2))))
    )
    assert reply.properties is not None
    assert {key: (v.codec, decode(v)) for key, v in reply.properties.items()} == {
        "a": (Codec.JSON, {"n": [1]}),
        "t": (Codec.PICKLE, (1, 2)),
    }
    assert (await kernel.ok("p = get_engine().properties; p['a']['n'].append(2); p['a']")).text == "{'n': [1]}"
    reply = await kernel.ok("mine = [1]; p['mine'] = mine; mine.append(2); p['mine'], sorted(p), len(p)")
    assert reply.text == "([1], ['a', 'mine', 't'], 3)"
    assert reply.properties is not None
    assert (await kernel.ok("1")).properties is None
    changed = await kernel.apply(main_function("def f(): get_engine().properties['from_apply'] = 1"))
    assert changed.properties is not None
    missing = await kernel.run("del_properties", keys=("a", "none"))
    assert missing.failure is not None
    assert missing.failure.errors[0].type_name == "KeyError"
    assert missing.properties is None
    removed = await kernel.run("del_properties", keys=("a", "t"))
    assert set(removed.properties or ()) == {"mine", "from_apply"}
    assert (await kernel.run("clear_properties")).properties == {}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("get_engine().properties['a'] = __import__('threading').Lock()", "InvalidProperty"),
        ("get_engine().properties[5] = 1", "TypeError"),
        ("get_engine().properties['a']", "KeyError"),
        ("del get_engine().properties['a']", "KeyError"),
        ("get_engine().properties['a'] = 'x' * (2 << 20)", "InvalidProperty"),
        ("get_engine().properties = {}", "AttributeError"),
        ("get_engine().id = 5", "AttributeError"),
        ("del get_engine().id", "AttributeError"),
        ("get_engine().anything = 5", "AttributeError"),
    ],
)
async def test_properties_are_strict(kernel: Driver, code: str, error: str) -> None:
    """Text keys, values that pickle, nothing else of the engine can be changed."""
    assert await kernel.raises(code) == error
    assert (await kernel.ok("1")).properties is None


async def test_a_corrupt_property_changes_nothing(kernel: Driver) -> None:
    """All or none, and the error is the sender's."""
    values = (("a", encode(1)), ("b", Encoded(Codec.PICKLE, (b"corrupt",), "3.11.0")))
    reply = await kernel.run("set_properties", values=values)
    assert reply.failure is not None
    assert reply.failure.category == "SERIALIZATION"
    assert reply.properties is None
