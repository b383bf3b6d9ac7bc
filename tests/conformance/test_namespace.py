"""Push, pull, apply and the rest of what touches a namespace, over every way to reach an engine."""

from __future__ import annotations

import math

import pytest
from google.protobuf import json_format

from enginery import _codec
from enginery._encoded import Codec
from enginery._reasons import DeliveryError
from enginery._values import to_value
from enginery.v1 import engine_pb2, value_pb2

from .under_test import EngineUnderTest, decode, encode, pickled

VALUES = [
    1,
    -(2**70),
    "text ☃",
    1.5,
    {"nested": {"tuple": (1, (2, 3)), "list": [None, True]}},
    None,
    b"bytes",
    {1, 2},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_what_is_pushed_is_pulled(engine: EngineUnderTest, value: object) -> None:
    """Any picklable object comes back equal."""
    await engine.push(value=value)
    assert await engine.pull("value") == {"value": value}


async def test_json_in_and_out(engine: EngineUnderTest) -> None:
    """A namespace goes in and comes out as plain JSON, whole numbers as whole numbers."""
    request = engine_pb2.PushRequest()
    request.json.update({"a": 1, "b": [1.5, "x", None, {"c": True}]})
    await engine.call(request, engine_pb2.PushResponse)
    assert await engine.evaluate("(a, type(a).__name__, b)") == (1, "int", [1.5, "x", None, {"c": True}])
    response = await engine.call(engine_pb2.PullRequest(keys=["a", "b"]), engine_pb2.PullResponse)
    assert json_format.MessageToDict(response.json) == {"a": 1, "b": [1.5, "x", None, {"c": True}]}


async def test_push_is_all_or_nothing(engine: EngineUnderTest) -> None:
    """A namespace that cannot be taken whole is not taken at all."""
    await engine.push(a=1)
    response = await engine.call(
        engine_pb2.PushRequest(pickled=encode({"a": 2, 5: 3}).pickle), engine_pb2.PushResponse
    )
    assert response.error.errors[0].type_name == "TypeError"
    assert await engine.pull("a") == {"a": 1}


async def test_a_corrupt_pickle_is_an_error_that_loses_nothing(engine: EngineUnderTest) -> None:
    """The call fails as data; the namespace is intact."""
    await engine.push(a=1)
    request = engine_pb2.PushRequest(pickled=value_pb2.Pickle(python_version="3.11.7", data=b"\x80\x05garbage"))
    response = await engine.call(request, engine_pb2.PushResponse)
    assert response.error.category == 3  # ERROR_CATEGORY_SERIALIZATION
    assert await engine.pull("a") == {"a": 1}


async def test_one_missing_name_fails_the_whole_pull(engine: EngineUnderTest) -> None:
    """A missing name is NameError for the call, naming it."""
    await engine.push(a=1)
    for request, answer in (
        (engine_pb2.PullRequest(keys=["a", "missing"]), engine_pb2.PullResponse),
        (engine_pb2.PullFunctionRequest(keys=["missing"]), engine_pb2.PullFunctionResponse),
        (engine_pb2.PullSerializedRequest(keys=["a", "missing"]), engine_pb2.PullSerializedResponse),
    ):
        error = (await engine.call(request, answer)).error.errors[0]  # type: ignore[attr-defined]
        assert error.type_name == "NameError"
        assert "missing" in error.message


async def test_pushed_functions_see_the_engines_globals(engine: EngineUnderTest) -> None:
    """A pushed function reads the engine's names; defaults, keyword defaults, closure, name and doc survive."""
    bound = 5

    def g(x: int = 2, *, y: int = 3) -> tuple[int, int, int, int]:
        """Doc."""
        return (a, x, y, bound)  # type: ignore[name-defined] # noqa: F821

    await engine.push(a=1)
    response = await engine.call(
        engine_pb2.PushFunctionRequest(pickled=pickled({"g": g})), engine_pb2.PushFunctionResponse
    )
    assert not response.HasField("error"), response.error.traceback
    assert await engine.evaluate("g()") == (1, 2, 3, 5)
    await engine.push(a=10)
    assert await engine.evaluate("(g(), g.__name__, g.__doc__)") == ((10, 2, 3, 5), "g", "Doc.")
    refused = await engine.call(
        engine_pb2.PushFunctionRequest(pickled=pickled({"h": 3})), engine_pb2.PushFunctionResponse
    )
    assert refused.error.errors[0].type_name == "TypeError"


async def test_pull_function(engine: EngineUnderTest) -> None:
    """Functions, lambdas and closures come back callable; anything else is TypeError."""
    await engine.execute("def double(x): return 2 * x\ntriple = lambda x: 3 * x\nother = 1")
    response = await engine.call(
        engine_pb2.PullFunctionRequest(keys=["double", "triple"]), engine_pb2.PullFunctionResponse
    )
    functions = decode(value_pb2.Value(pickle=response.pickled))
    assert isinstance(functions, dict)
    assert (functions["double"](4), functions["triple"](4)) == (8, 12)
    refused = await engine.call(engine_pb2.PullFunctionRequest(keys=["other"]), engine_pb2.PullFunctionResponse)
    assert refused.error.errors[0].type_name == "TypeError"


async def test_serialized_values_keep_their_own_form(engine: EngineUnderTest) -> None:
    """Arrays travel as raw buffers with dtype and shape, and arrive writable; empty ones too."""
    numpy = pytest.importorskip("numpy")
    values = {
        "array": numpy.arange(6.0).reshape(2, 3),
        "fortran": numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        "empty": numpy.empty((0, 3), dtype="i4"),
    }
    request = engine_pb2.PushSerializedRequest(
        values={key: to_value(_codec.encode(value, [Codec.NDARRAY])) for key, value in values.items()}
    )
    await engine.call(request, engine_pb2.PushSerializedResponse)
    assert await engine.evaluate("array[0, 0].item(); array[0, 0] = 9; fortran.flags.f_contiguous") is True
    response = await engine.call(
        engine_pb2.PullSerializedRequest(keys=["array", "fortran", "empty"]),
        engine_pb2.PullSerializedResponse,
    )
    array = decode(response.values["array"])
    assert isinstance(array, numpy.ndarray)
    assert array[0, 0] == 9
    array[0, 0] = 1
    assert decode(response.values["empty"]).shape == (0, 3)  # type: ignore[attr-defined]
    assert decode(response.values["fortran"]).tolist() == [[0, 1, 2], [3, 4, 5]]  # type: ignore[attr-defined]


async def test_keys_are_the_users_own(engine: EngineUnderTest) -> None:
    """Top-level names that users put there, and id and mpi; none of the interpreter's."""
    await engine.execute("import math\nvalue = 1\n5")
    response = await engine.call(engine_pb2.KeysRequest(), engine_pb2.KeysResponse)
    assert list(response.keys) == ["id", "math", "mpi", "value"]


async def test_id_is_a_number_and_still_the_builtin(engine: EngineUnderTest) -> None:
    """`id` is the engine's id, an int; calling it is the builtin."""
    engine_id = (await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)).engine_id
    code = "(id == int(id), isinstance(id, int), id(mpi) == __import__('builtins').id(mpi), mpi)"
    assert await engine.evaluate(code) == (True, True, True, None)
    assert await engine.evaluate("id") == engine_id
    assert type((await engine.pull("id"))["id"]) is int


async def test_reset(engine: EngineUnderTest) -> None:
    """Namespace, history and properties are empty, numbering restarts, modules stay loaded."""
    await engine.execute("import fractions; a = 1")
    await engine.call(
        engine_pb2.SetPropertiesRequest(properties={"p": encode(1, Codec.JSON)}),
        engine_pb2.SetPropertiesResponse,
    )
    await engine.call(engine_pb2.ResetRequest(), engine_pb2.ResetResponse)
    assert list((await engine.call(engine_pb2.KeysRequest(), engine_pb2.KeysResponse)).keys) == ["id", "mpi"]
    assert not (
        await engine.call(engine_pb2.GetPropertiesRequest(), engine_pb2.GetPropertiesResponse)
    ).properties
    missing = await engine.call(engine_pb2.GetResultRequest(), engine_pb2.GetResultResponse)
    assert missing.error.errors[0].type_name == "IndexError"
    assert (await engine.execute("'fractions' in __import__('sys').modules")).text == "True"
    assert (await engine.execute("1")).number == 2


async def test_get_result_of_nothing_and_of_unknown_numbers(engine: EngineUnderTest) -> None:
    """Both are IndexError; the default is the latest."""
    for request in (engine_pb2.GetResultRequest(), engine_pb2.GetResultRequest(number=7)):
        response = await engine.call(request, engine_pb2.GetResultResponse)
        assert response.error.errors[0].type_name == "IndexError"
    await engine.execute("1")
    await engine.execute("2")
    latest = await engine.call(engine_pb2.GetResultRequest(), engine_pb2.GetResultResponse)
    assert latest.result.text == "2"


async def test_apply_calls_a_function_with_the_engines_globals(engine: EngineUnderTest) -> None:
    """A function of the caller's script reads the engine's names; output and value arrive."""
    source: dict[str, object] = {"__name__": "__main__"}
    exec("def f(x, y=1):\n    print('called')\n    return a + x + y", source)
    await engine.push(a=100)
    request = engine_pb2.ApplyRequest(
        pickled_function=pickled(source["f"]),
        pickled_arguments=encode(((10,), {"y": 2})).pickle,
        accept=[value_pb2.CODEC_PICKLE],
    )
    response = await engine.call(request, engine_pb2.ApplyResponse)
    assert not response.HasField("error"), response.error.traceback
    assert decode(response.value) == 112
    assert response.stdout == "called\n"


async def test_apply_by_name_with_json(engine: EngineUnderTest) -> None:
    """Any language can call a function by its name, dotted or not."""
    await engine.execute("import math")
    request = engine_pb2.ApplyRequest(function_name="math.sqrt")
    request.json_arguments.args.add().number_value = 2.0
    response = await engine.call(request, engine_pb2.ApplyResponse)
    assert decode(response.value) == math.sqrt(2)


async def test_apply_names_the_type_that_has_no_accepted_form(engine: EngineUnderTest) -> None:
    """A value that fits no accepted codec is an error that names its type."""
    await engine.execute("def make(): return {1, 2}")
    response = await engine.call(engine_pb2.ApplyRequest(function_name="make"), engine_pb2.ApplyResponse)
    assert response.error.category == 3  # ERROR_CATEGORY_SERIALIZATION
    assert "set" in response.error.errors[0].message


async def test_properties(engine: EngineUnderTest) -> None:
    """Set, get, has, del and clear; missing keys are KeyError; all or nothing."""
    values = {"gpu": encode(True, Codec.JSON), "name": encode("a", Codec.JSON), "set": encode({1, 2})}
    await engine.call(engine_pb2.SetPropertiesRequest(properties=values), engine_pb2.SetPropertiesResponse)
    everything = await engine.call(engine_pb2.GetPropertiesRequest(), engine_pb2.GetPropertiesResponse)
    assert {key: decode(value) for key, value in everything.properties.items()} == {
        "gpu": True,
        "name": "a",
        "set": {1, 2},
    }
    present = await engine.call(
        engine_pb2.HasPropertiesRequest(keys=["gpu", "no", "name"]), engine_pb2.HasPropertiesResponse
    )
    assert list(present.present) == [True, False, True]
    for request, answer in (
        (engine_pb2.GetPropertiesRequest(keys=["gpu", "no"]), engine_pb2.GetPropertiesResponse),
        (engine_pb2.DelPropertiesRequest(keys=["gpu", "no"]), engine_pb2.DelPropertiesResponse),
    ):
        error = (await engine.call(request, answer)).error.errors[0]  # type: ignore[attr-defined]
        assert error.type_name == "KeyError"
    await engine.call(engine_pb2.DelPropertiesRequest(keys=["gpu"]), engine_pb2.DelPropertiesResponse)
    assert await engine.evaluate("sorted(get_engine().properties)") == ["name", "set"]
    await engine.call(engine_pb2.ClearPropertiesRequest(), engine_pb2.ClearPropertiesResponse)
    left = await engine.call(engine_pb2.GetPropertiesRequest(), engine_pb2.GetPropertiesResponse)
    assert not left.properties


async def test_user_code_changes_its_own_properties(engine: EngineUnderTest) -> None:
    """The change is visible to others when the call that made it has answered."""
    await engine.execute("get_engine().properties['stage'] = [1, 2]")
    response = await engine.call(
        engine_pb2.GetPropertiesRequest(keys=["stage"]), engine_pb2.GetPropertiesResponse
    )
    assert decode(response.properties["stage"]) == [1, 2]
    await engine.execute("get_engine().properties['stage'].append(3)")
    assert await engine.evaluate("get_engine().properties['stage']") == [1, 2]
    refused = await engine.execute("get_engine().properties = {}")
    assert refused.error.errors[0].type_name == "AttributeError"


async def test_a_registered_engine_keeps_its_id(engine: EngineUnderTest) -> None:
    """SetId on a registered engine is FAILED_PRECONDITION."""
    if not engine.transport.registered:
        await engine.call(engine_pb2.SetIdRequest(engine_id=7), engine_pb2.SetIdResponse)
        response = await engine.call(engine_pb2.GetIdRequest(), engine_pb2.GetIdResponse)
        assert response.engine_id == 7
        return
    with pytest.raises(DeliveryError) as caught:
        await engine.call(engine_pb2.SetIdRequest(engine_id=7), engine_pb2.SetIdResponse)
    assert caught.value.reason == "ENGINE_REGISTERED"
