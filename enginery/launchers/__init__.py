"""Where engines are started: on this machine, or by an engine of distribution that runs already.

Each is named by a URL, and its library is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enginery.launchers.launcher import Launcher

_SCHEMES = {"dask": "tcp", "dask+tls": "tls"}  # and what Dask calls the transport


def check(on: str | Launcher | None) -> None:
    """Raise ValueError if `on` names no place where engines can be started."""
    if isinstance(on, str):
        _dask_address(on)


def find(on: str | Launcher | None) -> Launcher | None:
    """Return the launcher that `on` names, or is; None for this machine. ValueError as in `check`."""
    if not isinstance(on, str):
        return on
    from enginery.launchers.dask import DaskLauncher

    return DaskLauncher(_dask_address(on))


def noted(note: Mapping[str, str]) -> Launcher:
    """Return the launcher that left this note (`Launcher.note`), to stop its engines."""
    from enginery.launchers.dask import DaskLauncher

    return DaskLauncher(note["dask"], name=note["name"])


def _dask_address(on: str) -> str:
    scheme, separator, place = on.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"on={on!r}: engines run here, or on dask://HOST:PORT or dask+tls://HOST:PORT")
    host, _, port = place.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ValueError(f"on={on!r}: say where the Dask scheduler is, dask://HOST:PORT")
    return f"{_SCHEMES[scheme]}://{place}"
