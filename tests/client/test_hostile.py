"""What a controller or a host says that none should: each call ends with a reason, and nothing stays behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from enginery import _connection, _transfer
from enginery._connection_file import ConnectionInfo
from enginery._encoded import Codec, Encoded
from enginery._operation_calls import OperationCalls
from enginery._reasons import DeliveryError
from enginery._transfer import Arriving, Transfers
from enginery._values import describe
from enginery.errors import ProtocolError, ValueTooLarge
from enginery.operations import event_from_message
from enginery.v1 import operation_pb2, value_pb2
from tests.fuzz.hostile import CLUSTER, CONTROLLER, Ending, HostileChannel, Script
from tests.fuzz.rules import SECRET

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import enginery
    from tests.client.fake import FakeController

_INFO = ConnectionInfo("client", CLUSTER, CONTROLLER, "controller.c.enginery", "", SECRET)
_GARBAGE = b"\xff"
_ENGINES = "controller/enginery.v1.EngineService/"


def _refused(reason: str, work: Coroutine[Any, Any, object]) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        asyncio.run(work)
    assert caught.value.reason == reason
    return caught.value


@pytest.mark.parametrize("method", ["Session", "WatchEngines"])
def test_what_opens_a_connection_and_is_no_message(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Connecting fails with MALFORMED_MESSAGE, and logs no traceback of gRPC's."""

    async def connect() -> None:
        script = Script(is_well_known=True)
        well = script.opening

        def opening(name: str, metadata: Any) -> Any:
            return [_GARBAGE] if name.endswith(method) else well(name, metadata)

        monkeypatch.setattr(script, "opening", opening)
        monkeypatch.setattr(_connection, "open_channel", lambda info: HostileChannel(script, info.address))
        await _connection.open_connection(_INFO, bytes(8), "", 5.0)

    _refused("MALFORMED_MESSAGE", connect())
    assert not caplog.records


def _transfers(method: str, *said: bytes | Ending) -> Transfers:
    script = Script(is_well_known=True)
    for one in said:
        script.add(f"{_ENGINES}{method}", one)
    channel: Any = HostileChannel(script, CONTROLLER)
    return Transfers(channel, ())


def test_an_upload_that_is_answered_by_garbage() -> None:
    """It is refused with MALFORMED_MESSAGE."""

    async def upload() -> None:
        encoded = Encoded(Codec.TEXT, (b"text",))
        await _transfers("Upload", _GARBAGE).upload([0], describe("b", encoded), encoded, is_begun=False)

    _refused("MALFORMED_MESSAGE", upload())


@pytest.mark.parametrize("offset", [None, "x", "-1", "9" * 5_000])
def test_an_incomplete_upload_without_an_offset(offset: str | None) -> None:
    """Nothing is guessed: PROTOCOL_ERROR."""
    error = DeliveryError("UPLOAD_INCOMPLETE", **({} if offset is None else {"offset": offset}))
    assert _refused_offset(error) == "PROTOCOL_ERROR"


def _refused_offset(error: DeliveryError) -> str:
    with pytest.raises(DeliveryError) as caught:
        _transfer._offset_of(error)
    return caught.value.reason


@pytest.mark.parametrize("size", [1 << 46, (1 << 63) - 1, (1 << 64) - 1])
def test_a_value_that_fits_into_no_memory(
    client: enginery.Client, controller: FakeController, size: int
) -> None:
    """The call that it answers fails with ValueTooLarge; it does not wait for ever."""
    blob = value_pb2.Blob(blob_id="b", codec=value_pb2.CODEC_PICKLE, size=size, part_sizes=[size])
    _refused("VALUE_TOO_LARGE", _arriving(blob))
    controller.engines[0]._pull = lambda _, response: response.blob.CopyFrom(blob)  # type: ignore[method-assign,assignment]
    with pytest.raises(ValueTooLarge):
        client[0].pull("x", block=False).result(5)


async def _arriving(blob: value_pb2.Blob) -> Arriving:
    return Arriving(blob)


def test_a_list_that_does_not_go_on(client: enginery.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that leads to itself ends the list with an error; it is not asked for for ever."""

    async def page(*_: object, **__: object) -> operation_pb2.ListOperationsResponse:
        return operation_pb2.ListOperationsResponse(next_page_token="again")

    monkeypatch.setattr(OperationCalls, "_call", page)
    with pytest.raises(ProtocolError, match="does not go on"):
        client.operations()


def test_an_outcome_whose_response_is_none(client: enginery.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation of that id ends with ProtocolError; its events tell why there is no answer."""
    outcome = operation_pb2.OperationOutcome(state=operation_pb2.OPERATION_STATE_SUCCEEDED)
    outcome.response.type_url = "x/enginery.v1.ExecuteResponse"
    outcome.response.value = _GARBAGE
    answer = operation_pb2.GetOperationResponse(outcome=outcome)
    answer.operation.method = "execute"

    async def get(*_: object, **__: object) -> operation_pb2.GetOperationResponse:
        return answer

    monkeypatch.setattr(OperationCalls, "get", get)
    operation = client.operation("01020304-0506-0708-090a-0b0c0d0e0f10")
    with pytest.raises(ProtocolError, match="not a"):
        operation.result(5)
    event = event_from_message(operation_pb2.OperationEvent(sequence=1, outcome=outcome))
    assert event is not None
    assert "not a enginery.v1.ExecuteResponse" in event.error
