"""What a `%px` shows of the operations that it began: live as it comes, or grouped when all is done."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Literal, get_args

from enginery._display_hint import read
from enginery._following import TICK, Following
from enginery._methods import ANY_ENGINE
from enginery._presenter import tagged
from enginery._screen import Screen
from enginery.errors import EngineryError
from enginery.operation import stop_on_interrupt
from enginery.result import Display, ExecuteResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery._presenter import Presenter, Stream
    from enginery.operation import Operation
    from enginery.operations import Event

Grouping = Literal["engine", "type", "order"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
_STREAMS: tuple[Stream, ...] = ("stdout", "stderr")
_WIDEST = 1000  # characters that are shown of a line that is not full
_LAST_WORDS = 1.0  # seconds for what stopped code writes to arrive


class Cell:
    """The operations of one `%px`, and what is shown of them."""

    def __init__(
        self, operations: Sequence[Operation[Any]], presenter: Presenter, untagged: int | None = None
    ) -> None:
        """Show nothing yet. What the engine `untagged` prints is shown as it is."""
        self._operations = operations
        self._untagged = untagged
        self._presenter = presenter
        self._screens: dict[tuple[int, Stream], Screen] = {}
        self._written: dict[tuple[int, Stream], float] = {}
        self._taken: dict[tuple[int, Stream], int] = {}  # how many lines were final
        self._rested: dict[tuple[int, Stream], int] = {}  # as many were when it was painted last
        self._kept: dict[tuple[int, Stream], int] = {}  # lines that are shown for now, and stay where they are
        self._engines: dict[int, int] = {}  # of tasks, where they run
        self._shown: list[list[tuple[str, Display]]] = [[] for _ in operations]  # displays, by their name
        self._places: dict[
            tuple[int, str], str
        ] = {}  # displays that may be changed, by the names of the engines
        self._heard: set[int] = set()  # those of which there was more than the end
        self._painted = 0.0

    # ---- live

    def stream(self, *, stops: bool = True) -> None:
        """Show output and displays as they come, tagged by engine, and at the end what each returned.

        Ctrl-C stops the operations and is raised; without `stops` they go on.
        """
        following = Following(self._operations)
        try:
            try:
                self._follow(following)
            except KeyboardInterrupt as interrupt:
                if stops:
                    left = [operation for operation in self._operations if not operation.done()]
                    interrupt.add_note(stop_on_interrupt(left))
                    self._follow(following, time.monotonic() + _LAST_WORDS)
                raise
        finally:
            following.close()
            self._end()
        self.finish(stops=stops)
        for position in range(len(self._operations)):
            self._complete(position)
            self._show_result(position, len(self._shown[position]))

    def _follow(self, following: Following, until: float | None = None) -> None:
        while following.goes_on and (until is None or time.monotonic() < until):
            for position, event in following.step():
                self._take(position, event)
            self._paint()

    def _take(self, position: int, event: Event) -> None:
        operation = self._operations[position]
        match event.kind:
            case "stdout" | "stderr":
                self._flush(position, "stderr" if event.kind == "stdout" else "stdout")  # that came before this
                self._write(position, event.kind, event.text)
            case "display" if event.display is not None:
                for stream in _STREAMS:  # what was written before comes before
                    self._flush(position, stream)
                self._display(position, event.display)
            case "dropped":
                note = f"\n[... {event.dropped_bytes} bytes of output were dropped ...]\n"
                self._write(position, "stderr", note)
            case "outcome" if position not in self._heard:  # the journal has its answer, and no other events
                self._write(position, "stdout", operation.stdout)
                self._write(position, "stderr", operation.stderr)
        self._heard.add(position)

    def _display(self, position: int, display: Display) -> None:
        """Show an object, in the place of another if it says so and that can be changed."""
        place = read(display.metadata)
        key = position, "" if place is None else place.name
        name = self._places.get(key, "") if place is not None and place.update else ""
        if name:
            self._presenter.replace(name, display)
        else:
            name = self._presenter.display(f"[output:{self._engine(position)}]", display)
        if place is not None:
            self._places[key] = name
        self._shown[position].append((name, display))

    def _write(self, position: int, stream: Stream, text: str) -> None:
        screen = self._screens.setdefault((position, stream), Screen())
        screen.write(text)
        self._written[position, stream] = time.monotonic()
        self._lines(position, stream, screen.take(rested=False))

    def _lines(self, position: int, stream: Stream, taken: tuple[list[str], bool]) -> None:
        lines, are_bars = taken
        if not lines:
            return
        key = position, stream
        self._taken[key] = self._taken.get(key, 0) + len(lines)
        kept = max(self._kept.pop(key, 0), len(lines) * are_bars)
        tagged_lines = [self._tag(position, stream, line) for line in lines]
        if tagged_lines[:kept]:
            self._presenter.ended_bars(stream, tagged_lines[:kept])
        if tagged_lines[kept:]:
            self._presenter.lines(stream, tagged_lines[kept:])

    def _tag(self, position: int, stream: Stream, line: str) -> str:
        engine_id = self._engine(position)
        return line if engine_id == self._untagged else f"[{stream}:{engine_id}] {line}"

    def _engine(self, position: int) -> int | str:
        """Return where an operation runs. Of a task it is known only when that was asked for, or at its end."""
        operation = self._operations[position]
        if operation.engine_id != ANY_ENGINE:
            return operation.engine_id
        if position not in self._engines:
            with contextlib.suppress(EngineryError):
                self._engines[position] = operation.info().engine_id
        engine_id = self._engines.get(position, ANY_ENGINE)
        return "any" if engine_id == ANY_ENGINE else engine_id

    def _flush(self, position: int, stream: Stream) -> None:
        screen = self._screens.get((position, stream))
        if screen is not None:
            self._lines(position, stream, screen.take())

    def _paint(self) -> None:
        """Show lines that are not full, or may still change, a few times a second."""
        now = time.monotonic()
        if now < self._painted + TICK:
            return
        self._painted = now
        bars: list[str] = []
        for key, screen in sorted(self._screens.items()):
            if now >= self._written[key] + TICK / 2:
                self._lines(*key, screen.take())
            taken = self._taken.get(key, 0)
            if screen.is_changing or self._rested.get(key) == taken:  # else it is full in a moment
                shown = [self._tag(*key, line[:_WIDEST]) for line in screen.changing]
                self._kept[key] = len(shown)
                bars += shown
            self._rested[key] = taken
        self._presenter.bars(bars)

    def _end(self) -> None:
        for (position, stream), screen in sorted(self._screens.items()):
            self._lines(position, stream, screen.take())
            are_bars = screen.is_changing
            self._lines(position, stream, (screen.end(), are_bars))
        self._presenter.close()

    def finish(self, *, stops: bool = True) -> None:
        """Wait for the answers, which come by another way than the events. Ctrl-C as for `stream`."""
        try:
            for operation in self._operations:
                operation.exception()
        except KeyboardInterrupt as interrupt:
            if stops:
                interrupt.add_note(stop_on_interrupt([one for one in self._operations if not one.done()]))
            raise

    def _complete(self, position: int) -> None:
        """Show again, in their places, displays that were too large to come with the events."""
        shown = self._shown[position]
        last = {name: index for index, (name, _) in enumerate(shown)}  # of those that were changed
        displays = self._operations[position].displays
        for index, ((name, before), display) in enumerate(zip(shown, displays, strict=False)):
            if len(display.data) > len(before.data) and last[name] == index:
                self._presenter.replace(name, display)

    # ---- at the end

    def show(self, grouping: Grouping = "type") -> None:
        """Show everything at once, of operations that are done.

        `engine`: all of one engine together. `type`: first what all printed, then what they displayed, then
        what they returned. `order`: the first display of each, then the second of each.
        """
        everyone = range(len(self._operations))
        displays = [self._displays(position) for position in everyone]
        if grouping == "engine":
            for position in everyone:
                self._show_output(position)
                for display in displays[position]:
                    self._show_display(position, display)
                self._show_result(position, self._display_count(position))
            return
        for position in everyone:
            self._show_output(position)
        pairs = [(index, position) for position in everyone for index in range(len(displays[position]))]
        if grouping == "order":
            pairs.sort()
        for index, position in pairs:
            self._show_display(position, displays[position][index])
        for position in everyone:
            self._show_result(position, self._display_count(position))

    def _display_count(self, position: int) -> int:
        """Return how many displays came before the result's own."""
        operation = self._operations[position]
        result = None if operation.exception() is not None else operation.result()
        has_own = isinstance(result, ExecuteResult) and result.shown is not None
        return len(operation.displays) - has_own

    def _displays(self, position: int) -> list[Display]:
        """Return what was displayed before the result, each as it was changed last."""
        ended: list[Display] = []
        places: dict[str, int] = {}
        for display in self._operations[position].displays[: self._display_count(position)]:
            place = read(display.metadata)
            if place is not None and place.update and place.name in places:
                ended[places[place.name]] = display
                continue
            if place is not None:
                places[place.name] = len(ended)
            ended.append(display)
        return ended

    def _show_output(self, position: int) -> None:
        operation = self._operations[position]
        for stream, text in (("stdout", operation.stdout), ("stderr", operation.stderr)):
            screen = Screen()
            screen.write(text)
            lines = [*screen.take()[0], *screen.end()]
            if lines:
                name: Stream = "stdout" if stream == "stdout" else "stderr"
                self._presenter.lines(name, [self._tag(position, name, line) for line in lines])

    def _show_display(self, position: int, display: Display) -> None:
        self._presenter.display(f"[output:{self._operations[position].engine_id}]", display)

    def _show_result(self, position: int, displays_before: int) -> None:
        """Show what an operation returned; its own displays come after `displays_before` others."""
        operation = self._operations[position]
        if operation.exception() is not None:
            return
        result = operation.result()
        if isinstance(result, ExecuteResult):
            tag = f"Out[{operation.engine_id}:{result.number}]:"
            own = operation.displays[displays_before:]
            if own and result.text is not None:
                self._presenter.display(tag, own[-1])
            elif result.pretty is not None:
                self._presenter.text(tagged(tag, result.pretty))
        elif result is not None:
            self._presenter.text(tagged(f"Out[{operation.engine_id}]:", repr(result)))
