"""Properties of engines: what views of one and of several have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from enginery import _calls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from enginery._options import Options
    from enginery.group import Group
    from enginery.operation import Operation

T = TypeVar("T")


class PropertiesOfOne:
    """The properties of the engine of an EngineView."""

    def _do(
        self, request: _calls.Request[T], block: bool | None, options: Options | None = None
    ) -> T | Operation[T]:
        raise NotImplementedError

    @overload
    def set_properties(
        self, properties: Mapping[str, object], *, block: Literal[True] | None = None
    ) -> None: ...
    @overload
    def set_properties(self, properties: Mapping[str, object], *, block: Literal[False]) -> Operation[None]: ...
    def set_properties(
        self, properties: Mapping[str, object], *, block: bool | None = None
    ) -> Operation[None] | None:
        """Update the engine's properties. Values are copied; InvalidProperty if one cannot be pickled."""
        return self._do(_calls.set_properties(properties), block)

    @overload
    def get_properties(
        self, keys: str | Sequence[str] | None = None, *, block: Literal[True] | None = None
    ) -> dict[str, Any]: ...
    @overload
    def get_properties(
        self, keys: str | Sequence[str] | None = None, *, block: Literal[False]
    ) -> Operation[dict[str, Any]]: ...
    def get_properties(
        self, keys: str | Sequence[str] | None = None, *, block: bool | None = None
    ) -> dict[str, Any] | Operation[dict[str, Any]]:
        """Return properties by key, by default all; they are copies. KeyError if a key is missing. Answers
        while others run.
        """
        return self._do(_calls.get_properties(keys), block)

    @overload
    def has_properties(
        self, keys: str | Sequence[str], *, block: Literal[True] | None = None
    ) -> list[bool]: ...
    @overload
    def has_properties(self, keys: str | Sequence[str], *, block: Literal[False]) -> Operation[list[bool]]: ...
    def has_properties(
        self, keys: str | Sequence[str], *, block: bool | None = None
    ) -> list[bool] | Operation[list[bool]]:
        """Return for each key whether there is such a property. Answers while others run."""
        return self._do(_calls.has_properties(keys), block)

    @overload
    def del_properties(self, keys: str | Sequence[str], *, block: Literal[True] | None = None) -> None: ...
    @overload
    def del_properties(self, keys: str | Sequence[str], *, block: Literal[False]) -> Operation[None]: ...
    def del_properties(self, keys: str | Sequence[str], *, block: bool | None = None) -> Operation[None] | None:
        """Remove properties: all of them or, if a key is missing (KeyError), none."""
        return self._do(_calls.del_properties(keys), block)

    @overload
    def clear_properties(self, *, block: Literal[True] | None = None) -> None: ...
    @overload
    def clear_properties(self, *, block: Literal[False]) -> Operation[None]: ...
    def clear_properties(self, *, block: bool | None = None) -> Operation[None] | None:
        """Remove all properties."""
        return self._do(_calls.clear_properties(), block)


class PropertiesOfSeveral:
    """The properties of the engines of an EnginesView, in target order."""

    def _do(
        self, request: _calls.Request[T], block: bool | None, options: Options | None = None
    ) -> list[T] | Group[T]:
        raise NotImplementedError

    @overload
    def set_properties(
        self, properties: Mapping[str, object], *, block: Literal[True] | None = None
    ) -> list[None]: ...
    @overload
    def set_properties(self, properties: Mapping[str, object], *, block: Literal[False]) -> Group[None]: ...
    def set_properties(
        self, properties: Mapping[str, object], *, block: bool | None = None
    ) -> list[None] | Group[None]:
        """See `EngineView.set_properties`; the answers are in target order."""
        return self._do(_calls.set_properties(properties), block)

    @overload
    def get_properties(
        self, keys: str | Sequence[str] | None = None, *, block: Literal[True] | None = None
    ) -> list[dict[str, Any]]: ...
    @overload
    def get_properties(
        self, keys: str | Sequence[str] | None = None, *, block: Literal[False]
    ) -> Group[dict[str, Any]]: ...
    def get_properties(
        self, keys: str | Sequence[str] | None = None, *, block: bool | None = None
    ) -> list[dict[str, Any]] | Group[dict[str, Any]]:
        """See `EngineView.get_properties`; the answers are in target order."""
        return self._do(_calls.get_properties(keys), block)

    @overload
    def has_properties(
        self, keys: str | Sequence[str], *, block: Literal[True] | None = None
    ) -> list[list[bool]]: ...
    @overload
    def has_properties(self, keys: str | Sequence[str], *, block: Literal[False]) -> Group[list[bool]]: ...
    def has_properties(
        self, keys: str | Sequence[str], *, block: bool | None = None
    ) -> list[list[bool]] | Group[list[bool]]:
        """See `EngineView.has_properties`; the answers are in target order."""
        return self._do(_calls.has_properties(keys), block)

    @overload
    def del_properties(
        self, keys: str | Sequence[str], *, block: Literal[True] | None = None
    ) -> list[None]: ...
    @overload
    def del_properties(self, keys: str | Sequence[str], *, block: Literal[False]) -> Group[None]: ...
    def del_properties(
        self, keys: str | Sequence[str], *, block: bool | None = None
    ) -> list[None] | Group[None]:
        """See `EngineView.del_properties`; the answers are in target order."""
        return self._do(_calls.del_properties(keys), block)

    @overload
    def clear_properties(self, *, block: Literal[True] | None = None) -> list[None]: ...
    @overload
    def clear_properties(self, *, block: Literal[False]) -> Group[None]: ...
    def clear_properties(self, *, block: bool | None = None) -> list[None] | Group[None]:
        """See `EngineView.clear_properties`; the answers are in target order."""
        return self._do(_calls.clear_properties(), block)
