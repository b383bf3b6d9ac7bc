"""How the codec takes objects apart for a pickle: as cloudpickle does, and better where that fails."""

from __future__ import annotations

import sys
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle as _cloudpickle

from enginery import _by_value

if TYPE_CHECKING:
    import io
    import pickle
    from collections.abc import Callable, Collection


class Pickler(_cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """Pickles functions of some ids by value, wherever they come from; and, `with_sources`, what belongs to the
    user's own modules with their source (`_own_modules`).
    """

    def __init__(
        self,
        file: io.BytesIO,
        keep_in_band: Callable[[pickle.PickleBuffer], bool],
        by_value: Collection[int] = frozenset(),
        *,
        with_sources: bool = False,
    ) -> None:
        """Take where the pickle goes, and what says of a buffer whether it goes there too."""
        super().__init__(file, protocol=5, buffer_callback=keep_in_band)
        self._by_value = by_value
        self._with_sources = with_sources

    def reducer_override(self, obj: Any) -> Any:
        """Return how an object is pickled, NotImplemented for pickle's own way."""
        if id(obj) in self._by_value:
            return self._dynamic_function_reduce(obj)
        if type(obj) is MethodType and _is_shell_here(obj):
            return getattr, (sys.modules["IPython.core.getipython"], "get_ipython")
        if self._with_sources and _is_of_module(obj):
            from enginery import _own_modules  # not in kernels

            reduced = _own_modules.reduction(obj)
            if reduced is not None and is_reference(obj):
                return reduced
        reduced = _by_value.reduction_of_function(obj)
        if reduced is None or is_reference(obj):
            reduced = _by_value.reduction(obj)
        if reduced is not None:
            return reduced
        theirs: Any = super().reducer_override(obj)
        if type(theirs) is tuple and theirs[0] is _cloudpickle._make_skeleton_class:
            _, _, bases, variables, *_ = theirs[1]
            variables.update(_by_value.slots(obj, bases))
        return theirs

    def _dynamic_function_reduce(self, function: FunctionType) -> tuple[Any, ...]:
        reduced: tuple[Any, ...] = super()._dynamic_function_reduce(function)
        if self._with_sources:
            from enginery import _own_modules

            # Modules that it imports when it runs go along with those that cloudpickle found.
            reduced[2][1]["_cloudpickle_submodules"] += _own_modules.imported_within(function)
        return reduced


def _is_shell_here(method: MethodType) -> bool:
    """Return whether it is a notebook's `get_ipython`: functions with magics mean that of where they run."""
    ipython: Any = sys.modules.get("IPython.core.interactiveshell")
    return ipython is not None and getattr(method, "__func__", None) is ipython.InteractiveShell.get_ipython


def _is_of_module(obj: object) -> bool:
    kind = type(obj)
    return kind in (FunctionType, ModuleType, _by_value.CachedFunction) or issubclass(kind, type)


def is_reference(obj: object) -> bool:
    """Return whether cloudpickle would write the mere name of `obj`."""
    if type(obj) is _by_value.CachedFunction:
        return _cloudpickle._lookup_module_and_qualname(obj) is not None
    return bool(_cloudpickle._should_pickle_by_reference(obj))
