"""`shell="ipython"` from a client's side."""

from __future__ import annotations

import pytest

import enginery


def test_a_cluster_of_ipython_shells() -> None:
    """Magics, figures and tracebacks of IPython come back as those of Python do."""
    with enginery.Cluster(1, shell="ipython") as cluster:
        engine = cluster.client[0]
        engine.execute("%matplotlib inline\nimport matplotlib.pyplot as plt")
        result = engine.execute("plt.plot([1, 2]);")
        assert [display.data["image/png"][:4] for display in result.displays] == [b"\x89PNG"]
        rich = engine.execute("class H:\n    def _repr_html_(self): return '<b>'\nH()")
        assert rich.shown is not None
        assert rich.text != rich.pretty  # as IPython prints it
        assert engine.execute("!echo shell").stdout == "shell\n"
        with pytest.raises(ZeroDivisionError) as caught:
            engine.execute("%cd -q /\n1 / 0")
        assert "----> 2 1 / 0" in str(caught.value.__cause__)
