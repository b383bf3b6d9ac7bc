"""What is done to a library when user code imports it, so that what it shows gets to whoever sent the code."""

from __future__ import annotations

import builtins
import os
import sys
from typing import TYPE_CHECKING, Any

from enginery import _current
from enginery._display_hint import Place, hint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_BACKEND = "module://engine_service.kernel.figures"


def install(*, ipython: bool = False) -> None:
    """Give user code `display`, as IPython has it, and be there when it imports IPython or matplotlib.

    With `ipython`, IPython's own shell runs: its `display` is the one there is.
    """
    actions: dict[str, Callable[[ModuleType], None]] = {"matplotlib": _use_our_figures}
    if not ipython:
        builtins.display = display  # type: ignore[attr-defined]  # without a name in the namespace
        actions["IPython.core.display_functions"] = _use_our_display
    sys.meta_path.insert(0, _OnImport(actions))


def display(
    *objs: object,
    raw: bool = False,
    metadata: Mapping[str, object] | None = None,
    display_id: object = None,
    update: bool = False,
    **_options: object,
) -> Handle | None:
    """Show objects in every form that they offer; with `raw`, dictionaries of forms by MIME type.

    With a `display_id`, which may be True, it returns what changes them in their place. IPython's own has more
    options, which an engine cannot follow.
    """
    if update and display_id is None:
        raise TypeError("an update needs the display_id of what it changes")
    engine = _current.get_engine()
    name = os.urandom(16).hex() if display_id is True else None if display_id is None else str(display_id)
    hints = dict(metadata or {}) | ({} if name is None else hint(Place(name, update)))
    for obj in objs:
        engine.display(_Forms(obj) if raw else obj, hints)
    return None if name is None else Handle(name)


class Handle:
    """Changes what was displayed, as IPython's DisplayHandle."""

    def __init__(self, display_id: str) -> None:
        self.display_id = display_id

    def display(self, obj: object, **options: Any) -> None:
        """Show an object, which this changes from now on."""
        display(obj, display_id=self.display_id, **options)

    def update(self, obj: object, **options: Any) -> None:
        """Show another in its place."""
        display(obj, display_id=self.display_id, update=True, **options)


class _Forms:
    """An object that shows as these forms."""

    def __init__(self, forms: object) -> None:
        self._forms = forms

    def _repr_mimebundle_(self) -> object:
        return self._forms

    def __repr__(self) -> str:
        forms = self._forms
        return str(forms.get("text/plain", ", ".join(forms)) if isinstance(forms, dict) else forms)


def _use_our_display(functions: ModuleType) -> None:
    """Let `from IPython.display import display` be ours: there is no IPython shell here."""

    def publish(
        data: object,
        metadata: Mapping[str, object] | None = None,
        *,
        transient: Mapping[str, object] | None = None,
        update: bool = False,
        **_options: object,
    ) -> None:
        display_id = (transient or {}).get("display_id")
        display(data, raw=True, metadata=metadata, display_id=display_id, update=update)

    functions.display = display  # type: ignore[attr-defined]
    functions.publish_display_data = publish  # type: ignore[attr-defined]


def _use_our_figures(matplotlib: Any) -> None:
    """Let figures be shown here, unless the environment says how; what it says for a notebook is not meant."""
    named = os.environ.get("MPLBACKEND", "")
    if not named or "inline" in named:
        matplotlib.rcParams["backend"] = _BACKEND


class _OnImport:
    """A finder of modules that leaves the finding to the others, and acts once a module is loaded."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]) -> None:
        self._actions = actions

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        action = self._actions.pop(name, None)  # the others are asked below, and this again
        if action is None:
            return None
        import importlib.util  # some milliseconds that few kernels need

        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Acting(spec.loader, action)  # type: ignore[assignment]  # a loader in all but its base
        return spec


class _Acting:
    """A loader that does what another does, and then acts on the module."""

    def __init__(self, loader: Any, action: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._action(module)
