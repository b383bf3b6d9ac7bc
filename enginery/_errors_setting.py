"""The attribute `errors` of clients and views: how what user code raised on an engine is raised here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, overload

if TYPE_CHECKING:
    from enginery._decode import Errors


class ErrorsSetting:
    """An attribute that is "raise" or "wrap"; ValueError if it is set to anything else."""

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: object, kind: type) -> Errors: ...
    def __get__(self, owner: object | None, kind: type) -> Self | Errors:
        """Return the setting."""
        return self if owner is None else owner._errors  # type: ignore[attr-defined]

    def __set__(self, owner: object, errors: Errors) -> None:
        """Check and keep it."""
        owner._errors = check_errors(errors)  # type: ignore[attr-defined]


def check_errors(errors: Errors) -> Errors:
    """Return how errors are to be raised; ValueError if there is no such way."""
    if errors not in ("raise", "wrap"):
        raise ValueError(f'errors is "raise" or "wrap", not {errors!r}')
    return errors
