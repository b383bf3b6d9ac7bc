"""The token that clients show to a host whose own port they call: it is good there and nowhere else."""

from __future__ import annotations

import hashlib
import hmac

MAX_ADDRESSES = 16
"""Addresses of one host for which there are such tokens."""


def direct_token(client_token: str, address: str) -> str:
    """Return the token for a host at `address`, `host:port`, as its hello and ListEngines say it.

    Made of the client token, which a host so never learns: what it is shown opens no other port.
    """
    return hmac.new(client_token.encode(), f"enginery direct {address}".encode(), hashlib.sha256).hexdigest()
