"""Generate the stubs and the descriptor set in enginery/v1 from protos/, or --check that they are not stale."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTOR_SET = "descriptor_set.binpb"
GENERATOR = "1.80.0"
"""Version of grpcio-tools that makes the stubs: its code runs on every protobuf from 6.31.1 on."""


def generate(target: Path) -> None:
    """Write the stubs of every proto below `target`; SystemExit if the generator is another or fails."""
    found = metadata.version("grpcio-tools")
    if found != GENERATOR:
        raise SystemExit(f"grpcio-tools is {found}, but the stubs are made by {GENERATOR}: run `make setup`")
    protos = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    # mypy-protobuf's plugins are looked up on PATH; name the ones of this environment.
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--proto_path={ROOT / 'protos'}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    descriptor_set = target / "enginery" / "v1" / DESCRIPTOR_SET
    everything = [
        *arguments[:3],
        "--include_imports",
        "--include_source_info",  # the comments, which are the specification
        f"--descriptor_set_out={descriptor_set}",
        *protos,
    ]
    if protoc.main(everything) != 0:
        raise SystemExit("protoc failed")
    with descriptor_set.open("ab") as file:  # messages one behind the other are merged: lists grow
        file.write(_errors().SerializeToString())
    (target / "enginery" / "v1" / "__init__.py").write_text(
        '"""Stubs generated from protos/; never edited."""\n'
    )


def _errors() -> FileDescriptorSet:
    """Return what describes the details of a status, for those who show errors: no proto of ours imports it."""
    described = FileDescriptorSet()
    for module in (status_pb2, error_details_pb2):
        module.DESCRIPTOR.CopyToProto(described.file.add())
    return described


def stale(target: Path) -> list[str]:
    """Return the names of committed stubs that differ from freshly made ones, or are missing or left over."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "enginery" / "v1"
        names = {
            path.name
            for path in [*fresh.iterdir(), *target.iterdir()]
            if path.suffix in {".py", ".pyi", ".binpb"}
        }
        _, differing, missing = filecmp.cmpfiles(fresh, target, sorted(names), shallow=False)
        return sorted(differing + missing)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the stubs are stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    names = stale(ROOT / "enginery" / "v1")
    if names:
        raise SystemExit(f"stale stubs: {', '.join(names)}\nrun `make fix-stubs`")


if __name__ == "__main__":
    main()
