"""docs/contract.md: its example of a session, sent as it stands there by plain gRPC, is answered as it says."""

from __future__ import annotations

import hmac
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import text_format
from google.rpc import error_details_pb2, status_pb2

import enginery
from enginery.v1 import cluster_pb2, cluster_pb2_grpc, engine_pb2, engine_pb2_grpc, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "contract.md").read_text()


def _messages(kind: str) -> list[str]:
    """Return the messages of the example that a side sends, as text."""
    [example] = re.findall(r"```textproto\n(.*?)```", PAGE, re.DOTALL)
    return [text for head, text in re.findall(r"# (.*)\n((?:[^#\n].*\n)+)", example) if kind in head]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give what stands in the `client.json` of a cluster with two engines."""
    state = tmp_path_factory.mktemp("cluster") / "state"
    with enginery.Cluster(n=2, state_dir=state):
        yield json.loads((state / "client.json").read_text())


def _channel(address: str, name: str, file: dict[str, str]) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(file["ca_pem"].encode())
    options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
    return grpc.secure_channel(address, credentials, options)


@pytest.fixture(scope="module")
def answers(file: dict[str, str]) -> list[cluster_pb2.SessionResponse]:
    """Give what the controller answers to the example, connected to as the page says."""
    requests = [text_format.Parse(text, cluster_pb2.SessionRequest()) for text in _messages("SessionRequest")]
    with _channel(file["address"], file["server_name"], file) as channel:
        session = cluster_pb2_grpc.ClusterServiceStub(channel).Session
        metadata = (("authorization", f"Bearer {file['token']}"),)
        return list(session(iter(requests), metadata=metadata, timeout=20))


def _replies(answers: list[cluster_pb2.SessionResponse]) -> dict[int, frame_pb2.Reply]:
    return {reply.call_id: reply for answer in answers for reply in answer.replies}


def test_the_session_is_answered_as_the_page_says(answers: list[cluster_pb2.SessionResponse]) -> None:
    """A welcome, then a reply for each call, in any order; the stream ends when all is answered."""
    welcome, shown = (
        text_format.Parse(text, cluster_pb2.SessionResponse()) for text in _messages("SessionResponse")
    )
    assert [field.name for field, _ in answers[0].ListFields()] == ["welcome"]
    assert [field.name for field, _ in answers[0].welcome.ListFields()] == [
        field.name for field, _ in welcome.welcome.ListFields()
    ]
    assert {_shown(reply) for reply in _replies(answers).values()} == {_shown(reply) for reply in shown.replies}


def _shown(reply: frame_pb2.Reply) -> tuple[object, ...]:
    return reply.call_id, reply.outcome, reply.HasField("engine_id"), reply.attempts


def test_its_replies_hold_what_the_page_says(answers: list[cluster_pb2.SessionResponse]) -> None:
    """Responses are those of the methods, errors are statuses with a reason, ids follow from the session's."""
    replies = _replies(answers)
    result = engine_pb2.ExecuteResponse.FromString(replies[1].response).result
    assert (result.text, result.operation_id) == ("2", "01020304-0506-0708-8000-000000000001")
    for number in (2, 3):
        assert "id" in engine_pb2.KeysResponse.FromString(replies[number].response).keys
    assert ":" in engine_pb2.ApplyResponse.FromString(replies[4].response).value.json.string_value
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(replies[5].error).details[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["engine_ids"]) == ("enginery", "INVALID_ENGINE_ID", "0, 1")
    failed = engine_pb2.ExecuteResponse.FromString(replies[6].response).result
    assert failed.error.errors[0].type_name == "ZeroDivisionError"


def test_a_large_value_is_sent_as_the_page_says(file: dict[str, str]) -> None:
    """The upload's messages, and the call that names the blob: the array is there."""
    said = re.findall(r"^    (\w+Request) +(.*)$", PAGE, re.MULTILINE)
    *upload, push = [text_format.Parse(text, getattr(engine_pb2, name)()) for name, text in said]
    metadata = (("authorization", f"Bearer {file['token']}"), ("enginery-engine-id", "0"))
    with _channel(file["address"], file["server_name"], file) as channel:
        engine = engine_pb2_grpc.EngineServiceStub(channel)
        assert engine.Upload(iter(upload), metadata=metadata, timeout=20).blob == upload[0].blob
        assert not engine.PushSerialized(push, metadata=metadata, timeout=20).HasField("error")
        asked = engine_pb2.ExecuteRequest(code="a.tolist()")
        assert engine.Execute(asked, metadata=metadata, timeout=20).result.text == "[1.0, 2.0]"


def test_a_host_is_called_as_the_page_says(file: dict[str, str]) -> None:
    """At the listed address, by the name and the token that the page makes of the client's."""
    with _channel(file["address"], file["server_name"], file) as channel:
        metadata = (("authorization", f"Bearer {file['token']}"),)
        listing = cluster_pb2_grpc.ClusterServiceStub(channel).ListEngines
        engine = listing(cluster_pb2.ListEnginesRequest(), metadata=metadata, timeout=20).engines[1]
    [address] = engine.direct_addresses
    text = f"enginery direct {address}"
    token = hmac.digest(file["token"].encode(), text.encode(), "sha256").hex()
    with _channel(address, f"host.{file['cluster_id']}.enginery", file) as channel:
        named = (("authorization", f"Bearer {token}"), ("enginery-engine-id", "1"))
        get_id = engine_pb2_grpc.EngineServiceStub(channel).GetId
        who = get_id(engine_pb2.GetIdRequest(), metadata=named, timeout=20)
    assert (who.engine_id, who.incarnation) == (1, engine.incarnation)
