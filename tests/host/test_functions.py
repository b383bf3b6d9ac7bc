"""Functions that calls name by digest: parsed once, sent to a kernel once, and the same call either way."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from engine_service.engine import Engine
from engine_service.known_functions import KnownFunctions, SentFunctions
from enginery._codec import decode, encode
from enginery._engine import CallContext
from enginery._function_window import Function, digest, whole_request
from enginery._reasons import DeliveryError
from enginery._values import from_value, to_pickle
from enginery.v1 import engine_pb2, frame_pb2, value_pb2
from tests.host.fakes import IDS, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def function_of(source: str, name: str = "", **names: Any) -> Function:
    """Return what a client's `__main__` would send of `f`."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, namespace)
    pickle = to_pickle(encode(namespace["f"]))
    pickle.name = name
    data = pickle.SerializeToString()
    return Function(digest(data), data)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine with a true kernel."""
    engine = Engine()
    await engine.start()
    yield engine
    engine.stop("the test ends")
    await engine.wait_stopped()


def asked(*args: Any, function: Function | None = None) -> bytes:
    request = engine_pb2.ApplyRequest(
        pickled_arguments=to_pickle(encode((args, {}))), accept=[value_pb2.CODEC_PICKLE]
    )
    if function is not None:
        request.pickled_function.ParseFromString(function.pickle)
    return request.SerializeToString()


async def call(engine: Engine, function: Function, *args: Any, operation_id: bytes = b"", **more: Any) -> Any:
    """Call by digest, and return the value."""
    more.setdefault("inline_limit", 3 << 20)
    context = CallContext(operation_id or IDS.mint(), function=function, **more)
    reply = await engine.call(frame_pb2.METHOD_APPLY, asked(*args), context)
    response = engine_pb2.ApplyResponse.FromString(reply.response)
    assert not response.HasField("error"), response.error.traceback
    return decode(from_value(response.value))


async def test_a_kernel_gets_a_function_once_and_its_successor_again(engine: Engine) -> None:
    """Whatever the arguments' size is, whether a task's or a view's, behind a reset, and in a new kernel."""
    function = function_of("def f(x):\n    return len(x), big[0]", big=["a" * 100_000])
    for is_task in (True, False):
        assert await call(engine, function, "abc", is_task=is_task) == (3, "a" * 100_000)
        assert await call(engine, function, "x" * 100_000, is_task=is_task) == (100_000, "a" * 100_000)
    await engine.call(frame_pb2.METHOD_RESET, b"", CallContext(IDS.mint()))
    assert await call(engine, function, "", is_task=True) == (0, "a" * 100_000)
    engine.keeper.kill("the test needs another")
    assert await call(engine, function, "", any_incarnation=True) == (0, "a" * 100_000)


async def test_a_kernel_forgets_what_is_too_much(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host knows when, and sends it again."""
    functions = [function_of(f"def f():\n    return {n}, len(text)", text="t" * 40_000) for n in range(4)]
    engine.kernel._functions = SentFunctions(100_000)
    for n in (0, 1, 2, 3, 3, 1, 0, 2):
        assert await call(engine, functions[n], is_task=True) == (n, 40_000)


async def test_an_id_names_one_function(engine: Engine) -> None:
    """In the request or by digest, it is the same call; with another function it is another."""
    small, other = (function_of(f"def f(x):\n    return x + {n}") for n in (1, 2))
    large = function_of("def f(x):\n    return x + len(text)", text="t" * 100_000)
    for function in (small, large):
        operation_id = IDS.mint()
        value = await call(engine, function, 1, operation_id=operation_id)
        assert await call(engine, function, 1, operation_id=operation_id) == value
        spliced = await engine.call(
            frame_pb2.METHOD_APPLY, asked(1, function=function), CallContext(operation_id)
        )
        assert spliced.outcome == frame_pb2.OUTCOME_OK
        for request, another in ((asked(1), other), (asked(2), function), (asked(1, function=other), None)):
            context = CallContext(operation_id, function=another)
            called = engine.call(frame_pb2.METHOD_APPLY, request, context)
            assert await refused(called) == "OPERATION_EXISTS"


@pytest.mark.parametrize("is_first_whole", [True, False])
async def test_a_large_call_is_the_same_however_its_function_comes(
    engine: Engine, is_first_whole: bool
) -> None:
    """As a controller sends it that has the task from its journal: the function behind the request."""
    function, other = (function_of(f"def f(x):\n    return len(x) + {n}") for n in (1, 2))
    operation_id, request = IDS.mint(), asked("x" * 200_000)
    forms = [(whole_request(request, function), None), (request, function)]
    for whole, named in forms if is_first_whole else reversed(forms):
        context = CallContext(operation_id, function=named)
        reply = await engine.call(frame_pb2.METHOD_APPLY, whole, context)
        assert reply.outcome == frame_pb2.OUTCOME_OK
    for whole, named in (
        (whole_request(request, other), None),
        (request, other),
        (asked("y" * 200_000), function),
    ):
        context = CallContext(operation_id, function=named)
        assert await refused(engine.call(frame_pb2.METHOD_APPLY, whole, context)) == "OPERATION_EXISTS"


async def test_people_read_the_function_s_name(engine: Engine) -> None:
    """While it is there and when it has ended."""
    for name, shown in (("package.work", "package.work"), ("", "<function>")):
        operation_id = IDS.mint()
        await call(engine, function_of("def f():\n    return 1", name), operation_id=operation_id)
        assert engine.operations.find(operation_id).arguments == shown


async def test_what_is_no_function_is_refused(engine: Engine) -> None:
    """Bytes that are no pickle of the contract, and a request that names a function beside the digest."""
    function = function_of("def f():\n    return 1")
    for wrong, request, reason in (
        (Function(b"d" * 16, b"\xff"), asked(), "MALFORMED_MESSAGE"),
        (Function(b"e" * 16, b""), asked(), "BAD_VALUE"),
        (function, asked(function=function), "BAD_REQUEST"),
    ):
        context = CallContext(IDS.mint(), function=wrong)
        assert await refused(engine.call(frame_pb2.METHOD_APPLY, request, context)) == reason


def test_what_is_parsed_is_bounded() -> None:
    """Too many are dropped, and parsed again when they come again."""
    known = KnownFunctions(10_000)
    functions = [function_of(f"def f():\n    return '{chr(97 + n) * 4_000}'") for n in range(3)]
    first = known.find(functions[0])
    assert known.find(functions[0]) is first
    for function in functions[1:]:
        known.find(function)
    assert known.find(functions[0]) is not first
    assert known.find(functions[0]).value == first.value
    with pytest.raises(DeliveryError):
        known.find(Function(b"e" * 16, b""))


async def test_small_and_large_go_together(engine: Engine) -> None:
    """Whatever sizes tasks have, in and out, each is answered, with those ahead of it and behind it."""
    function = function_of("def f(x, size):\n    return len(x), b'r' * size")
    sizes = [0, 10, 5_000, 40_000, 64_000, 70_000, 100_000, 500_000, 1_000_000]
    random = Random(7)
    asked_for = [(random.choice(sizes), random.choice(sizes)) for _ in range(80)]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(
            *(call(engine, function, "x" * size, out, is_task=True) for size, out in asked_for)
        )
    assert [(size, len(data)) for size, data in answers] == asked_for
