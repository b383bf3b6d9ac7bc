"""Which engines the magics use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from enginery import client as clients
from enginery.client import Client
from enginery.cluster import Cluster
from enginery.errors import ConnectError, FileTimeoutError, InvalidEngineID
from enginery.view import EngineView
from enginery.views import EnginesView

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_SELECTION = re.compile(r"-?\d*(:-?\d*){1,2}")


class PxEngines:
    """The client and the targets that hold where a magic says nothing else."""

    def __init__(self, shell: InteractiveShell, view: EngineView | EnginesView | None) -> None:
        """Use the engines of `view`.

        Without one: all engines of the client that the notebook has, or else of the cluster that runs here.
        """
        self._ip = shell
        self._view = view
        self._client: Client | None = None if view is None else view.client
        self._is_chosen = view is not None
        self.targets: str | None = None
        """What `--targets` said last; None for all of the view."""

    def use(self, name: str) -> None:
        """Use the client, cluster or view in a variable of the notebook. UsageError if it is none of these."""
        named = self._ip.user_ns.get(name)
        if isinstance(named, EngineView | EnginesView):
            self._view, self._client, self.targets = named, named.client, None
        elif isinstance(named, Client | Cluster):
            self._view, self._client = None, named if isinstance(named, Client) else named.client
        else:
            raise UsageError(f"%pxconfig: {name} is no client, cluster or view")
        self._is_chosen = True

    def connect(self, path: str) -> None:
        """Use the cluster with this state directory or client.json. UsageError if there is none."""
        self._client, self._view, self._is_chosen = _connect(path), None, True

    @property
    def client(self) -> Client:
        """The client that is used: the one that was set, else the notebook's, else one of the cluster that runs
        here."""
        current = self._client
        if current is None or current.closed:
            current, self._view, self._is_chosen = None, None, False
        if current is None or not self._is_chosen:
            current = self._client = self._find_client(current)
        return current

    def _find_client(self, current: Client | None) -> Client:
        """Return the client of the notebook; of several the one that was used till now."""
        found: dict[int, tuple[str, Client]] = {}
        for name, value in self._ip.user_ns.items():
            if name.startswith("_") or not isinstance(value, Client | Cluster):
                continue
            try:
                client = value if isinstance(value, Client) else value.client
            except RuntimeError:  # a cluster that does not run
                continue
            if not client.closed:
                found.setdefault(id(client), (name, client))
        if current is not None and (not found or id(current) in found):
            return current
        if len(found) > 1:
            names = ", ".join(sorted(name for name, _ in found.values()))
            raise UsageError(f"several clients are open: {names}; say which by %pxconfig --client NAME")
        if found:
            return next(iter(found.values()))[1]
        return _connect(None)

    @property
    def described(self) -> str:
        """What holds where a magic says nothing else, as `--targets` takes it."""
        if self.targets is None and self._view is not None:
            return ",".join(str(engine_id) for engine_id in self.view().targets)
        return self.targets or "all"

    def view(self, targets: str | None = None) -> EnginesView:
        """Return the engines that are meant. UsageError if there are none such, or no cluster."""
        client = self.client
        named = targets or self.targets
        try:
            if named is None and self._view is not None:
                view = self._view
                return view if isinstance(view, EnginesView) else client[[view.engine_id]]
            several: EnginesView = client[parse_targets(named or "all")]
        except (InvalidEngineID, ValueError) as error:
            raise UsageError(str(error)) from None
        return several


def _connect(path: str | None) -> Client:
    try:
        return clients.connect(path)
    except (ConnectError, FileTimeoutError) as error:
        raise UsageError(str(error)) from None  # where we found that out says nothing


def parse_targets(text: str) -> Any:
    """Return what indexes a client: for `all`, `0`, `0,2`, `[0, 2]` or a slice such as `::2`.

    One id gives a list too. UsageError for anything else.
    """
    bare = text.strip().strip("[]").replace(" ", "")
    if bare == "all":
        return "all"
    if _SELECTION.fullmatch(bare):
        return slice(*[int(part) if part else None for part in bare.split(":")])
    try:
        return [int(part) for part in bare.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is not all, an id, ids such as 0,2, or a slice such as ::2") from None
