"""What an answer of a kernel may bring, beside its form (`kernel_wire`): what was asked for and can be told on.

An answer that brings anything else breaks the protocol: nobody would close its files, or take its properties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine_service.kernel_frames import WireError
from enginery import _values
from enginery._encoded import MAX_PROPERTIES, Codec
from enginery._reasons import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine_service.kernel_messages import Reply
    from enginery._encoded import Encoded

_VALUE, _NAMESPACE, _NONE = frozenset({"value"}), frozenset({"namespace"}), frozenset[str]()
_NAMES = {"execute": _VALUE, "apply": _VALUE, "pull": _NAMESPACE, "pull_function": _NAMESPACE}
_TOLD_IN = frozenset({Codec.PICKLE, Codec.JSON})


def check_answer(method: str, keys: tuple[str, ...], reply: Reply) -> None:
    """WireError unless `reply` may answer a command of `method` that asks for `keys`."""
    names = frozenset(keys) if method == "pull_serialized" else _NAMES.get(method, _NONE)
    given = reply.values.keys()
    if reply.failure is not None or reply.was_revoked:
        names = _NONE
    elif method == "execute":  # whose value may fit no codec that was asked for
        names = names & given
    if given != names:
        raise WireError(f"an answer to {method} with other values than it has")
    if reply.properties is not None:
        check_properties(reply.properties)


def check_properties(properties: Mapping[str, Encoded]) -> None:
    """WireError unless the controller can be told of them."""
    try:
        for value in properties.values():
            if value.codec not in _TOLD_IN:
                raise WireError(f"a property as {value.codec.name}")
            _values.to_value(value)
    except DeliveryError as error:
        raise WireError(f"a property that cannot be told: {error.text}") from error
    size = sum(len(key) + value.size for key, value in properties.items())
    if size > MAX_PROPERTIES:
        raise WireError(f"properties of {size} bytes are over the limit of {MAX_PROPERTIES}")
