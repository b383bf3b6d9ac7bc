"""enginery protos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import enginery
from enginery.errors import EngineryError

_PACKAGE = Path(enginery.__file__).parent
DESCRIPTOR_SET = _PACKAGE / "v1" / "descriptor_set.binpb"


def protos(
    descriptor_set: Annotated[
        bool,
        typer.Option("--descriptor-set", help="Print the path of the compiled descriptor set instead."),
    ] = False,
) -> None:
    """Print where the contract is: the folder to give to protoc or buf, or a descriptor set for grpcurl."""
    print(DESCRIPTOR_SET if descriptor_set else folder())


def folder() -> Path:
    """Return the folder of `enginery/v1/engine.proto`: installed with the package, or in a checkout.

    EngineryError if it is in neither.
    """
    for candidate in (_PACKAGE / "protos", _PACKAGE.parent / "protos"):
        if (candidate / "enginery" / "v1" / "engine.proto").is_file():
            return candidate
    raise EngineryError(f"the .proto files are not beside {_PACKAGE}: install the package again")
