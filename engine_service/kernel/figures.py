"""The matplotlib backend of engines: figures are displayed, by `plt.show()` and at the end of each command.

Imported by matplotlib alone, so there is one of these only where figures are made.
"""

from __future__ import annotations

from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas

from enginery import _current

__all__ = ["FigureCanvas", "close", "show"]


def show(*_args: object, **_kwargs: object) -> None:
    """Display every open figure and close it."""
    managers = Gcf.get_all_fig_managers()
    try:
        for manager in managers:
            _current.get_engine().display(manager.canvas.figure)
    finally:
        close()


def close() -> None:
    """Close every figure."""
    Gcf.destroy_all()
