"""Python objects ↔ encoded values: the only module beside the kernel's that pickles.

Unpickling runs code: decode only what comes from an engine or a client of one's own cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginery._encoded import Codec, Encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence


def encode(obj: object, accept: Sequence[Codec] = (Codec.PICKLE,)) -> Encoded:
    """Return `obj` in the first codec of `accept` that fits it.

    SerializationError names the type, and why each codec does not fit.
    """
    raise NotImplementedError


def encode_function(function: Callable[..., object]) -> Encoded:
    """Pickle a callable for `apply`: by reference what can be imported, by value what `__main__` holds."""
    raise NotImplementedError


def encode_functions(namespace: Mapping[str, object]) -> Encoded:
    """Pickle a dictionary of functions by value, wherever they come from, for push_function and pull_function."""
    raise NotImplementedError


def decode(value: Encoded) -> object:
    """Return the object of `value`; arrays are writable if the parts are, and copied if not.

    SerializationError if the bytes are corrupt or need what is not here; PythonVersionMismatch if another minor version
    of Python pickled them and that matters.
    """
    raise NotImplementedError


def decode_bound(value: Encoded, namespace: MutableMapping[str, object]) -> object:
    """As `decode`, but pickled functions get `namespace` as globals; names they captured fill what is missing."""
    raise NotImplementedError


def decode_functions(value: Encoded, namespace: dict[str, object]) -> dict[str, Callable[..., object]]:
    """Return pulled functions; those that captured no globals get `namespace` as theirs."""
    raise NotImplementedError
