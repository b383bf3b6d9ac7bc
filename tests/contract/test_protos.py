"""Rules about the contract: enums, method numbers, and that old bytes still parse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf import json_format, unknown_fields

from enginery import _encoded, _methods, _reasons
from enginery.v1 import cluster_pb2, engine_pb2, error_pb2, frame_pb2, value_pb2
from tests.contract import goldens

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor

FILES = [module.DESCRIPTOR for module in (cluster_pb2, engine_pb2, error_pb2, frame_pb2, value_pb2)]
ENUMS: list[EnumDescriptor] = [enum for file in FILES for enum in file.enum_types_by_name.values()]
PROTOS = Path(__file__).resolve().parent.parent.parent / "protos"


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_enum_zero_is_unspecified(enum: EnumDescriptor) -> None:
    """Zero says "not set", and every value carries the enum's name."""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
    assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
    assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


def test_every_rpc_has_a_method_number() -> None:
    """The Method enum and EngineService are one list, streaming rpcs included."""
    assert set(_methods.METHODS) == {rpc.name for rpc in _methods.ENGINE_SERVICE.methods}
    assert set(_methods.METHODS.values()) == set(frame_pb2.Method.values()) - {0}
    assert len(_methods.NAMES) == len(_methods.METHODS)


def test_codecs_have_the_contracts_numbers() -> None:
    """The kernel's codec numbers, which no protobuf backs, are the contract's."""
    assert {f"CODEC_{codec.name}": int(codec) for codec in _encoded.Codec} == {
        name: number for name, number in value_pb2.Codec.items() if number
    }


def test_error_domain() -> None:
    """The domain that comments and documentation give is the one that is sent."""
    assert f"domain `{_reasons.DOMAIN}`" in (PROTOS / "enginery/v1/error.proto").read_text()


@pytest.mark.parametrize("name", goldens.MESSAGES)
def test_old_bytes_still_parse(name: str) -> None:
    """Messages serialized by earlier versions mean today what they meant then."""
    kind, data = goldens.load(name)
    message = kind.FromString(data)
    assert message == goldens.MESSAGES[name]
    assert not len(unknown_fields.UnknownFieldSet(message))
    assert json_format.Parse(json_format.MessageToJson(message), kind()) == message


def test_no_golden_is_orphaned() -> None:
    """Every golden on disk is still checked."""
    assert {path.stem for path in goldens.FOLDER.glob("*.hex")} == set(goldens.MESSAGES)
