"""Where the output of a `%px` goes: a notebook, a terminal, or wherever stdout was sent."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from IPython.core.interactiveshell import InteractiveShell
    from rich.live import Live

    from enginery.result import Display

Stream = Literal["stdout", "stderr"]


class Presenter:
    """Prints lines and displays; of progress bars only how they end. Right where nobody watches."""

    def __init__(self, shell: InteractiveShell) -> None:
        """Show in the shell's outputs."""
        self._shell = shell

    def lines(self, stream: Stream, lines: Sequence[str]) -> None:
        """Print full lines."""
        out = sys.stdout if stream == "stdout" else sys.stderr
        out.write("".join(f"{line}\n" for line in lines))
        out.flush()

    def bars(self, lines: Sequence[str]) -> None:
        """Show these lines for now, in the place of those of the last call."""

    def ended_bars(self, stream: Stream, lines: Sequence[str]) -> None:
        """Show for good what bars ended with; `bars` without them follows."""
        self.lines(stream, lines)

    def text(self, text: str) -> None:
        """Show a value that has only text."""
        self.lines("stdout", text.split("\n"))

    def display(self, tag: str, display: Display) -> str:
        """Show an object; return the name by which `replace` finds it."""
        text = display.data.get("text/plain", repr(display))
        self.text(tagged(tag, text if isinstance(text, str) else repr(display)))
        return ""

    def replace(self, name: str, display: Display) -> None:
        """Show an object in the place of what was shown before it had all of its forms."""

    def close(self) -> None:
        """Take away what was shown for now."""


class Notebook(Presenter):
    """Rich displays in every form; bars are an output that changes in its place, and stays with what they ended
    with."""

    def __init__(self, shell: InteractiveShell) -> None:
        """Show as outputs of the cell that runs."""
        super().__init__(shell)
        self._area = ""  # the display of the bars
        self._ended: list[str] = []
        self._shown: list[str] = []

    def bars(self, lines: Sequence[str]) -> None:
        """Change the output of the bars, which is made when there are any."""
        shown = [*self._ended, *lines]
        if not self._area and shown:
            self._area = uuid.uuid4().hex
            self._publish({"text/plain": "\n".join(shown)}, {}, self._area)
        elif self._area and shown != self._shown:
            self._publish({"text/plain": "\n".join(shown)}, {}, self._area, update=True)
        self._shown = shown
        if self._area and not lines:  # later ones get an output below what is printed till then
            self._area, self._ended, self._shown = "", [], []

    def ended_bars(self, stream: Stream, lines: Sequence[str]) -> None:
        """Keep them where they are."""
        self._ended.extend(lines)

    def text(self, text: str) -> None:
        """Show a value that has only text."""
        self._publish({"text/plain": text}, {})

    def display(self, tag: str, display: Display) -> str:
        """Show an object in every form, below its tag."""
        self._publish({"text/plain": tag}, {})
        name = uuid.uuid4().hex
        self._publish(*display._repr_mimebundle_(), name)
        return name

    def replace(self, name: str, display: Display) -> None:
        """Show an object in the place of what was shown."""
        self._publish(*display._repr_mimebundle_(), name, update=True)

    def close(self) -> None:
        """Leave of the bars what they ended with."""
        self.bars([])

    def _publish(
        self, data: Mapping[str, Any], metadata: Mapping[str, Any], name: str = "", *, update: bool = False
    ) -> None:
        sys.stdout.flush()  # printed before, so it comes before
        sys.stderr.flush()
        transient = {"display_id": name} if name else None
        publish: Any = self._shell.display_pub.publish
        publish(data=dict(data), metadata=dict(metadata), transient=transient, update=update)


class Terminal(Presenter):
    """Bars at the bottom, everything else above them."""

    def __init__(self, shell: InteractiveShell) -> None:
        """Show on the terminal that is stdout."""
        super().__init__(shell)
        self._live: Live | None = None
        self._bars: list[str] = []

    def lines(self, stream: Stream, lines: Sequence[str]) -> None:
        """Print full lines, above the bars if there are any."""
        if self._live is None:
            super().lines(stream, lines)
            return
        from rich.text import Text

        for line in lines:
            self._live.console.print(Text.from_ansi(line), soft_wrap=True)

    def bars(self, lines: Sequence[str]) -> None:
        """Show bars at the bottom."""
        from rich.text import Text

        if list(lines) == self._bars:
            return
        self._bars = list(lines)
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(highlight=False),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(
            Text("\n", no_wrap=True, overflow="crop").join(map(Text.from_ansi, lines)), refresh=True
        )

    def close(self) -> None:
        """Take the bars away."""
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live, self._bars = None, []


def presenter(shell: InteractiveShell) -> Presenter:
    """Return what fits the shell and where its output goes."""
    if getattr(shell, "kernel", None) is not None:
        return Notebook(shell)
    return Terminal(shell) if sys.stdout.isatty() else Presenter(shell)


def tagged(tag: str, text: str) -> str:
    """Return a text behind its tag, below it if it has several lines."""
    return f"{tag}\n{text}" if "\n" in text else f"{tag} {text}"
