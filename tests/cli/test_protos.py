"""The contract is installed with the package, for callers in other languages."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
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


def test_the_descriptor_set_describes_the_details_of_errors() -> None:
    """So grpcurl shows an error's reason and metadata; and each file comes after those that it imports."""
    found = descriptor_pb2.FileDescriptorSet.FromString(_printed("--descriptor-set").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    for name in ("Status", "ErrorInfo", "RetryInfo"):
        assert pool.FindMessageTypeByName(f"google.rpc.{name}").fields
