"""IPython's shell as the shell of an engine: `--shell ipython`. See `Shell` for what it is used as."""

from __future__ import annotations

import asyncio
import builtins
import linecache
import sys
import traceback
import warnings
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from IPython.core import async_helpers, compilerop, interactiveshell, page
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from traitlets.config import Config

from engine_service.kernel import failure, ipython_magics, on_import, subprocesses
from engine_service.kernel.display import MAX_TEXT, bundle, cut, figure_of
from engine_service.kernel.namespace import HISTORY, plain
from engine_service.kernel_messages import DisplayData
from enginery._display_hint import Place, hint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from engine_service.kernel.awaiting import Awaiting
    from engine_service.kernel.namespace import Namespace


_MAX_FRAMES = 100  # of a traceback that IPython lays out


class IPythonShell:
    """Runs commands as IPython's cells, and calls of functions beside them."""

    def __init__(
        self, namespace: Namespace, awaiting: Awaiting, publish: Callable[[DisplayData], None]
    ) -> None:
        """Make the one shell of this process, in that namespace; `publish` passes on what is displayed."""
        self._awaiting = awaiting
        shell: Any = _Shell.instance(
            config=_config(), user_module=namespace.module, user_ns=namespace.variables
        )
        self._shell = shell
        shell.loop_runner = awaiting.run
        shell.enginery_seed = namespace.seed
        shell.display_pub.enginery_publish = publish
        shell.set_hook("show_in_pager", page.as_hook(page.display_page), 99)
        ipython_magics.install(shell)
        namespace.hidden = shell.user_ns_hidden
        builtins.display = display  # type: ignore[attr-defined]  # for functions too; IPython has it for cells
        warnings.filterwarnings("ignore", "To exit: use 'exit'", UserWarning)
        shell.display_formatter.formatters["image/png"].for_type("matplotlib.figure.Figure", figure_of)
        on_import.install(ipython=True)
        failure.leave_out(interactiveshell.__file__, async_helpers.__file__, compilerop.__file__)
        shell.hide_builtin()

    def start(self, source: str, _filename: str) -> None:
        """Run what an engine starts with, magics and all; nothing of it is displayed."""
        self._raise(self._shell.run_cell(source, silent=True))

    def execute(self, source: str, number: int) -> object:
        """Run a cell; `In`, `Out`, `_`, `_i` and their like are IPython's."""
        shell = self._shell
        shell.begin(number)
        try:
            self._raise(shell.run_cell(source, store_history=True))
            return plain(shell.displayhook.answer)
        finally:
            shell.displayhook.answer = None
            shell.forget(number - HISTORY)

    def _raise(self, result: Any) -> None:
        """Raise what a cell raised. What else it raised, as in a callback, is printed."""
        error = result.error_before_exec or result.error_in_exec
        self._shell.show_held(error)
        if isinstance(error, asyncio.CancelledError) and self._awaiting.was_interrupted:
            raise KeyboardInterrupt().with_traceback(error.__traceback__) from None
        if error is not None:
            raise error

    def ended(self) -> None:
        """Let those know who registered for the end of whatever runs, as figures of `%matplotlib inline`."""
        self._shell.events.trigger("post_execute")
        self._shell.show_held(None)

    def pretty(self, value: object, text: str) -> str:
        """Return it as IPython prints it."""
        found = self._shell.display_formatter.formatters["text/plain"](value)  # prints what it raises
        return cut(str.__str__(found), MAX_TEXT) if isinstance(found, str) else text

    def forms(self, value: object, text: str) -> DisplayData | None:
        """Return the forms that IPython's formatters give it, or whoever registered one for its type."""
        data, metadata = self._shell.display_formatter.format(value, exclude=("text/plain",))
        return bundle(data, metadata, text) if data else None

    def render(self, error: BaseException) -> str | None:
        """Return a traceback as `%xmode` says, without colours unless `%colors` says which."""
        text: str | None = self._shell.traceback_of(error)
        return text

    def reset(self) -> None:
        """Forget what cells left, but for settings: extensions, aliases and formatters stay."""
        self._shell.forget_all()


def _config() -> Config:
    config = Config()
    config.HistoryManager.enabled = False  # no database: engines would write to one all at once
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.cache_size = HISTORY
    return config


def _forget_sources() -> None:
    """Let go of what the library under IPython's tracebacks keeps for ever of each cell that raised."""
    library: Any = sys.modules.get("executing.executing")
    if library is None:
        return
    for source in (library.Source, *library.Source.__subclasses__()):
        kept = vars(source).get("__source_cache_with_lines", {})
        for key in [key for key in kept if key[0].startswith("<")]:  # those of files serve the next traceback
            del kept[key]
        vars(source).get("__executing_cache", {}).clear()
    for cached in (library.Source.statements_at_line, library.statement_containing_node):
        cached.cache_clear()


class _Compiler(compilerop.CachingCompiler):
    """Names cells as an engine's commands are named, and keeps the source of the last ones alone."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self._names: deque[str] = deque()

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        if number == self.number:
            return f"<execute {number}>"
        name: str = super().get_code_name(raw_code, transformed_code, number)
        return name

    def cache(self, transformed_code: str, number: int = 0, raw_code: str | None = None) -> str:
        name: str = super().cache(transformed_code, number, raw_code)
        self._names.append(name)
        if len(self._names) > HISTORY:
            old = self._names.popleft()
            if old not in self._names:
                linecache.cache.pop(old, None)
                self._filename_map.pop(old, None)
        return name


class _Hook(DisplayHook):
    """Takes the last value of a cell as its answer; those before it, if asked for, are displayed."""

    answer: object = None
    shell: Any

    def __call__(self, result: object = None) -> None:
        self.check_for_underscore()
        if result is None or self.quiet():
            return
        if self.answer is not None:
            display(self.answer)
        self.answer = result
        self.update_user_ns(result)
        self.fill_exec_result(result)

    def cull_cache(self) -> None:
        """Forget the oldest value."""
        outputs = self.shell.user_ns.get("_oh", {})
        if outputs:
            number = min(outputs)
            del outputs[number]
            self.shell.drop(f"_{number}")


class _Publisher(DisplayPublisher):
    """Passes on what is displayed."""

    enginery_publish: Callable[[DisplayData], None]

    def publish(
        self,
        data: Mapping[str, object],
        metadata: Mapping[str, object] | None = None,
        source: object = None,
        *,
        transient: Mapping[str, object] | None = None,
        update: bool = False,
        **_options: object,
    ) -> None:
        display_id = (transient or {}).get("display_id")
        hints = {} if display_id is None else hint(Place(str(display_id), update))
        text = data.get("text/plain")
        shown = bundle(data, metadata or {}, text if isinstance(text, str) else ", ".join(data))
        self.enginery_publish(DisplayData(shown.data, {**shown.metadata, **hints}))


class _Shell(InteractiveShell):
    """IPython's shell, which tells what a cell raised instead of printing it."""

    displayhook_class = _Hook
    display_pub_class = _Publisher
    compiler_class = _Compiler
    compile: Any
    displayhook: Any
    history_manager: Any
    enginery_seed: Callable[[], None]

    def __init__(self, **options: Any) -> None:
        self._depth = 0
        self._passes_on = False
        self.latest: Any = None
        """The result of the cell that ran last."""
        self._held: list[BaseException] = []
        super().__init__(**options)

    def init_virtualenv(self) -> None:
        """Leave `sys.path` as it is: what runs is this Python, whatever environment its starter had entered."""

    def begin(self, number: int) -> None:
        """Let the next cell have this number, and find what the last ones may have deleted."""
        if "_oh" not in self.user_ns:
            self.init_user_ns()
            self.hide_builtin()
        self.execution_count = self.compile.number = number
        for history in (self.history_manager.input_hist_parsed, self.history_manager.input_hist_raw):
            history.extend([""] * (number - len(history)))

    def run_cell(self, *args: Any, **options: Any) -> Any:
        """Run a cell; magics run others within."""
        self._depth += 1
        try:
            self.latest = super().run_cell(*args, **options)
        finally:
            self._depth -= 1
        return self.latest

    @contextmanager
    def passing_on(self) -> Iterator[None]:
        """Let nothing be printed of what cells within raise: who runs them raises it; `latest` has it."""
        before, self._passes_on = self._passes_on, True
        try:
            yield
        finally:
            self._passes_on = before

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **options: Any) -> None:
        """Hold back what ends the cell."""
        if not self._hold(exc_tuple):
            super().showtraceback(exc_tuple, *args, **options)

    def showsyntaxerror(self, *args: Any, **options: Any) -> None:
        """Hold it back if it is of the cell."""
        if not self._hold(None):
            super().showsyntaxerror(*args, **options)

    def _format_exception_for_storage(self, *_args: object, **_options: object) -> dict[str, object]:
        return {}  # the history keeps no exceptions; their texts may be anything, even another exception

    def _tee(self, *_args: object, **_options: object) -> Any:
        return nullcontext()  # nor output, which is the host's

    def _hold(self, exc_tuple: Any) -> bool:
        if self._depth != 1 and not (self._depth and self._passes_on):
            return False
        error = self._get_exc_info(exc_tuple)[1]
        running = self.displayhook.exec_result
        if (
            running is not None
            and error is not running.error_in_exec
            and error is not running.error_before_exec
        ):
            return False
        self._held.append(error)
        return True

    def show_held(self, raised: BaseException | None) -> None:
        """Print what was held back but for `raised`, which others show."""
        held, self._held = self._held, []
        for error in held:
            if error is not raised:
                super().showtraceback((type(error), error, error.__traceback__))

    def traceback_of(self, error: BaseException) -> str | None:
        """Return a traceback as text; None for exceptions that IPython leaves to Python."""
        if issubclass(type(error), UsageError):
            return f"UsageError: {error}\n"
        with suppress(Exception):  # it has none, or it does not work
            return "\n".join([*error._render_traceback_(), ""])  # type: ignore[attr-defined]
        if issubclass(type(error), BaseExceptionGroup):
            return None
        if sum(1 for _ in traceback.walk_tb(error.__traceback__)) > _MAX_FRAMES:
            return None  # it would take seconds
        if issubclass(type(error), SyntaxError):
            lines = self.SyntaxTB.structured_traceback(type(error), error, None)
        else:
            lines = self.InteractiveTB.structured_traceback(
                type(error), error, error.__traceback__, tb_offset=0
            )
            _forget_sources()
        return f"{self.InteractiveTB.stb2text(lines)}\n"

    def ask_exit(self) -> None:
        """End as `exit()` of Python does: the engine goes on."""
        raise SystemExit

    def safe_execfile(self, *args: Any, **options: Any) -> None:
        """Run a file of `%run`. What it raises, or interrupts it, ends the cell: nobody watches its output."""
        super().safe_execfile(*args, **{**options, "raise_exceptions": True})

    def safe_execfile_ipy(self, *args: Any, **options: Any) -> None:
        """Run a file of cells, as `%run` does too."""
        with self.passing_on():
            super().safe_execfile_ipy(*args, **{**options, "raise_exceptions": True})

    def reset(self, new_session: bool = True, aggressive: bool = False) -> None:
        """Empty the namespace, as `%reset` does, but for what an engine puts there."""
        super().reset(new_session, aggressive)
        self.enginery_seed()
        self.hide_builtin()

    def set_next_input(self, s: str, replace: bool = False) -> None:
        """Show what `%load` and `%recall` would have edited: there is nobody to do that."""
        print(s)

    def enable_gui(self, gui: str | None = None) -> None:
        """Refuse windows: there is no screen here."""
        if gui not in (None, "inline"):  # as older IPythons call it
            raise UsageError(f"an engine has no screen for {gui}: say %matplotlib inline")

    def system(self, cmd: str) -> None:
        """Run a command of `!`; its output is the cell's."""
        code = subprocesses.call(self.var_expand(cmd, depth=1))
        self.user_ns["_exit_code"] = self.user_ns_hidden["_exit_code"] = code

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> Any:
        """Return the output of a command, as `lines = !command` does."""
        from IPython.utils.text import LSString, SList

        output = subprocesses.output_of(self.var_expand(cmd, depth=depth + 1))
        return SList(output.splitlines()) if split else LSString(output)

    def drop(self, name: str) -> None:
        """Remove a name that IPython put into the namespace."""
        kept = self.user_ns_hidden.pop(name, None)
        if kept is not None and self.user_ns.get(name) is kept:
            del self.user_ns[name]

    def forget(self, number: int) -> None:
        """Drop what is kept of that input, and of all that nobody reads."""
        history = self.history_manager
        history.db_input_cache.clear()
        for name in ("outputs", "exceptions"):  # not every version has them
            getattr(history, name, {}).clear()
        if number > 0:
            self.drop(f"_i{number}")
            for inputs in (history.input_hist_parsed, history.input_hist_raw):
                inputs[number : number + 1] = [""] * len(inputs[number : number + 1])

    def forget_all(self) -> None:
        """Put IPython's own names back into a namespace that was emptied, and begin a history."""
        self.user_ns_hidden.clear()
        self.history_manager.reset(new_session=False)
        self.history_manager.output_hist.clear()
        for inputs in (self.history_manager.input_hist_parsed, self.history_manager.input_hist_raw):
            inputs[:] = [""]
        hook = self.displayhook
        hook._, hook.__, hook.___ = "", "", ""
        self.compile.reset_compiler_flags()
        self.init_user_ns()
        self.hide_builtin()

    def hide_builtin(self) -> None:
        """Let `__builtin__`, which IPython puts there too, not be the user's."""
        self.user_ns["__builtin__"] = self.user_ns_hidden["__builtin__"] = builtins
