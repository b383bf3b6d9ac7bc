"""A small run of `make fuzz`, and what Hypothesis makes. No crash, hang or secret; always a reason."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginery._methods import METHODS
from enginery.v1 import cluster_pb2
from tests.fuzz import campaign, mutator
from tests.fuzz.file_target import FileTarget
from tests.fuzz.kernel_target import STARTUP, KernelTarget, framed
from tests.fuzz.request_target import REQUESTS, RequestTarget, number_of
from tests.fuzz.rules import SECRET, BrokenRule, Watch, check_error, check_message, check_secret
from tests.fuzz.stream_target import SessionTarget
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import FieldDescriptor

COUNTS = {"kernel": 700, "requests": 1_500, "session": 700, "direct": 400, "registration": 400, "host": 300}
COUNTS |= {"transfers": 400, "link": 120, "state": 120, "journal": 100}
_MADE = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_inputs(name: str) -> None:
    """Each is answered, or rejected with a reason of the table; afterwards all works as before."""
    result = campaign.run(TARGETS[name], COUNTS.get(name, 300), seed=20)
    assert not result.failures
    assert result.outcomes > 3


# ---- the rules themselves


class _Careless:
    """Breaks the rules for some inputs."""

    name = "careless"
    seeds = (b"seed",)

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        return mutator.spoil(random, data, other)

    def run(self, data: bytes) -> str:
        if len(data) > 40:
            raise IndexError(f"{len(data)}")
        return f"of {len(data)} bytes"

    def close(self) -> None:
        """Nothing is open."""


def test_what_breaks_a_rule_is_found() -> None:
    """An error that is no rejection is reported with the input that caused it, each kind once."""
    result = campaign.run(_Careless, 3_000, seed=1)
    assert result.failures
    assert all(len(data) > 40 and "IndexError" in text for data, text in result.failures)


def test_rules() -> None:
    """What is no status with a reason, a message that cannot be shown, and a secret, are found."""
    with pytest.raises(BrokenRule, match="no status"):
        check_error(ValueError("x"))
    with pytest.raises(BrokenRule, match="cannot read"):
        check_message(cluster_pb2.SessionRequest, b"\xff")
    with pytest.raises(BrokenRule, match="secret"):
        check_secret(f"the token {SECRET}")


# ---- Hypothesis


def messages(descriptor: Any, depth: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of the fields of a message."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        one = _one(field, depth)
        if one is None:
            continue
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            value = _one(entry.fields_by_name["value"], depth)
            if value is not None:
                fields[field.name] = st.dictionaries(st.text(max_size=4), value, max_size=3)
        elif field.is_repeated:
            fields[field.name] = st.lists(one, max_size=3)
        elif field.containing_oneof is None:
            fields[field.name] = one
    plain = st.fixed_dictionaries({}, optional=fields)
    oneofs = [group for group in descriptor.oneofs if len(group.fields) > 1]
    if not oneofs:
        return plain
    chosen = [
        st.fixed_dictionaries({field.name: one})
        for group in oneofs
        for field in group.fields
        if (one := _one(field, depth)) is not None
    ]
    return st.tuples(plain, st.one_of(st.just({}), *chosen)).map(lambda pair: {**pair[0], **pair[1]})


def _one(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any] | None:
    if field.message_type is not None:
        return messages(field.message_type, depth - 1) if depth else None
    return st.integers(0, 1 << 62).map(lambda seed: mutator.scalar(Random(seed), field))


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    heard = Watch()
    yield heard
    heard.stop()


@pytest.fixture(scope="module")
def requests(watch: Watch) -> Iterator[RequestTarget]:
    target = RequestTarget(watch)
    yield target
    target.close()


@pytest.fixture(scope="module")
def sessions(watch: Watch) -> Iterator[SessionTarget]:
    target = SessionTarget(watch)
    yield target
    target.close()


@pytest.fixture(scope="module")
def kernels(watch: Watch) -> Iterator[KernelTarget]:
    target = KernelTarget(watch)
    yield target
    target.close()


@_MADE
@given(st.data())
def test_requests_of_any_fields(requests: RequestTarget, data: st.DataObject) -> None:
    """Whatever fields a request has, its call is answered or rejected."""
    number = data.draw(st.sampled_from(sorted(METHODS.values())))
    kind = REQUESTS[number]
    fields = data.draw(messages(kind.DESCRIPTOR))
    request = kind(**fields).SerializeToString()
    requests.run(bytes((number_of(number), data.draw(st.integers(0, 63)))) + mutator.pack([request]))


@_MADE
@given(st.lists(messages(cluster_pb2.SessionRequest.DESCRIPTOR, 4), max_size=3))
def test_sessions_of_any_fields(sessions: SessionTarget, sent: list[dict[str, Any]]) -> None:
    """Whatever a client sends behind its hello, each call has its reply, or the stream its status."""
    hello = {"hello": {"session_id": bytes(8)}}
    records = [cluster_pb2.SessionRequest(**fields).SerializeToString() for fields in [hello, *sent]]
    sessions.run(mutator.pack(records))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=6,
)
_FIELDS = ["started_at", "duration", "values", "failure", "text", "pretty", "value_error", "keys", "displays"]
_FIELDS += ["properties", "was_revoked", "acknowledgement", "number", "display", "fraction", "python_version"]
_REPLY = st.fixed_dictionaries(
    {"kind": st.sampled_from(["reply", "shown", "progress", "ready"]), "serial": st.just(1)},
    optional=dict.fromkeys(_FIELDS, _JSON),
)


@_MADE
@given(_REPLY, st.integers(0, STARTUP))
def test_kernels_that_say_anything(kernels: KernelTarget, meta: dict[str, Any], scenario: int) -> None:
    """Whatever JSON a kernel says, its call ends and the engine goes on."""
    kernels.run(bytes((scenario, 0, 0)) + framed(meta, 0))


@_MADE
@given(st.dictionaries(st.sampled_from(["token", "address", "role", "format", "pid", "insecure", "x"]), _JSON))
def test_connection_files_of_any_fields(watch: Watch, fields: dict[str, Any]) -> None:
    """Whatever JSON a connection file is, it is read or refused, and its token is not shown."""
    target = FileTarget(watch)
    try:
        target.run(json.dumps({**json.loads(FileTarget.seeds[0]), **fields}).encode("utf-8", "surrogatepass"))
    finally:
        target.close()
