"""The contract is installed with the package, for callers in other languages."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import descriptor_pb2
from typer.testing import CliRunner

from enginery.cli.app import app


def _printed(*arguments: str) -> Path:
    done = CliRunner().invoke(app, ["protos", *arguments])
    assert done.exit_code == 0
    return Path(done.stdout.strip())


def test_the_folder_holds_the_contract() -> None:
    """What is printed can be given to protoc as it is."""
    assert (_printed() / "enginery" / "v1" / "engine.proto").is_file()


def test_the_descriptor_set_describes_every_service_with_its_comments() -> None:
    """So grpcurl and others need neither the files nor reflection."""
    found = descriptor_pb2.FileDescriptorSet.FromString(_printed("--descriptor-set").read_bytes())
    services = {service.name for file in found.file for service in file.service}
    assert {"EngineService", "ControllerService", "ClusterService"} <= services
    assert any(location.leading_comments for file in found.file for location in file.source_code_info.location)
