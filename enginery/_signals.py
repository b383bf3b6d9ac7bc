"""Signals that come at a bad moment: held back until it has passed."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Hold back signals that would break off the block, and let them in at its end.

    Not by the signal mask, since the processes that are started in the block would inherit it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled by the main thread
        return
    came: list[int] = []
    numbers = [n for n in _DEFERRED if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
