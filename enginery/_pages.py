"""Where the next page of a listing of operations begins: the same on hosts and controller, which merges."""

from __future__ import annotations

import base64
import binascii

from enginery._reasons import DeliveryError

_PREFIX = b"ops:"
_TIME_BYTES = 8
_ID_BYTES = 16

Position = tuple[int, bytes]
"""When an operation was submitted, in nanoseconds since 1970, and its id; listed by falling position."""


def token(last: Position) -> str:
    """Return the token of the page after the operation at `last`."""
    time_ns, operation_id = last
    return base64.urlsafe_b64encode(_PREFIX + time_ns.to_bytes(_TIME_BYTES, "big") + operation_id).decode()


def read(text: str) -> Position | None:
    """Return the position below which a page begins, None for the first; BAD_PAGE_TOKEN if it is not ours."""
    if not text:
        return None
    try:
        data = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise DeliveryError("BAD_PAGE_TOKEN") from None
    if len(data) != len(_PREFIX) + _TIME_BYTES + _ID_BYTES or not data.startswith(_PREFIX):
        raise DeliveryError("BAD_PAGE_TOKEN")
    start = len(_PREFIX)
    return int.from_bytes(data[start : start + _TIME_BYTES], "big"), data[start + _TIME_BYTES :]
