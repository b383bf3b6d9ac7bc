"""What libraries show on an engine without an IPython shell: displays of IPython, figures of matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.conftest import Driver, running

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.asyncio(loop_scope="module")


def shown(kernel: Driver) -> list[Mapping[str, str | bytes]]:
    """Return what the last command displayed."""
    return [display.data for display in kernel.heard.log.displays()]


async def test_display_needs_no_import(kernel: Driver) -> None:
    """`display` is there as in IPython, for any number of objects or for their forms."""
    await kernel.ok("display(1, 'two'); display({'text/html': '<p>'}, raw=True, metadata={'a': 1})")
    one, two, raw = shown(kernel)
    assert (one, two) == ({"text/plain": "1"}, {"text/plain": "'two'"})
    assert raw["text/html"] == "<p>"
    assert dict(kernel.heard.log.displays()[2].metadata) == {"a": 1}


async def test_display_of_ipython_is_the_same(kernel: Driver) -> None:
    """What is imported from IPython.display shows in the caller's place too; the module is as it was found."""
    await kernel.ok(
        "from IPython.display import Markdown, display as show\nshow(Markdown('*x*'))\nassert show is display"
    )
    assert shown(kernel)[0]["text/markdown"] == "*x*"
    await kernel.ok("import inspect, IPython.core.display_functions as found\nassert inspect.getsource(found)")


async def test_figures_are_displayed(kernel: Driver) -> None:
    """`plt.show()` displays open figures and closes them, and so does the end of a command, if it succeeds."""
    await kernel.ok("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show(); print('after')")
    assert [sorted(forms) for forms in shown(kernel)] == [["image/png", "text/plain"]]
    await kernel.ok("figure, axes = plt.subplots()\naxes.plot([1])\nplt.figure();")
    assert len(shown(kernel)) == 2
    await kernel.raises("plt.figure(); 1 / 0")
    reply = await kernel.ok("assert not plt.get_fignums()\nfigure")
    assert not shown(kernel)
    png = reply.displays[0].data["image/png"]
    assert png[:4] == b"\x89PNG"


async def test_the_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPLBACKEND holds."""
    monkeypatch.setenv("MPLBACKEND", "svg")
    async with running() as kernel:
        await kernel.ok("import matplotlib; assert matplotlib.get_backend() == 'svg'")
