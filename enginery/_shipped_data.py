"""Data files of packages that clients sent: what `importlib.resources` reads them by."""

from __future__ import annotations

import io
import zipfile
from importlib.resources.abc import TraversableResources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable


class Data(TraversableResources):
    """The files of one package, as an archive in memory."""

    def __init__(self, files: Mapping[str, bytes], package: str) -> None:
        """Take the files by path; `package` is the folder of the package among them."""
        archive = zipfile.ZipFile(io.BytesIO(), "w")
        for path, data in files.items():
            archive.writestr(path, data)
        self._root = zipfile.Path(archive, f"{package}/")

    def files(self) -> Traversable:
        """Return the package's folder."""
        return self._root
