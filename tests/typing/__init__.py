"""What type checkers make of the client: `accepted.py` must pass mypy, each marked line of `refused.py` must
not."""
